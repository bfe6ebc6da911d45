"""Regions without gradient or with autocast become part of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autoplan.cleanup.places import at
from autoplan.errors import CaptureError

aten = torch.ops.aten


def inline_regions(graph: fx.Graph, module: fx.GraphModule) -> None:
    """Replace `wrap_with_set_grad_enabled` and `wrap_with_autocast` regions by their contents."""
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", str(node.target))
        if node.op != "call_function" or not name.startswith("wrap_with_"):
            continue
        if name == "wrap_with_set_grad_enabled":
            without_grad = not node.args[0]
            region, operands = node.args[1], node.args[2:]
        else:
            without_grad, region, operands = False, node.args[4], node.args[5:]
        inner = getattr(module, region.target)
        inline_regions(inner.graph, inner)
        if name == "wrap_with_autocast" and node.args[2]:
            _write_casts(inner.graph)
        body = inner.graph
        with graph.inserting_before(node):
            if without_grad:
                operands = tuple(_detached(graph, each) for each in operands)
            results = _copy_into(graph, body, operands)
        _replace_by_results(graph, node, results)
    for node in list(graph.find_nodes(op="get_attr")):
        if not node.users:
            graph.erase_node(node)


def _write_casts(graph: fx.Graph) -> None:
    """Make the casts of autocast explicit: an op that gives another type than it would without.

    Its values were traced with autocast on; what it would give without is seen on meta tensors.
    """
    for node in list(graph.nodes):
        value = _first(node.meta.get("val"))
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if str(node.target).split(".")[1] in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            raise CaptureError(
                f"a recurrent layer inside torch.autocast{at(node)} is traced without its casts; "
                "move it out of the region, or cast the layer and its input."
            )
        if _type_without_autocast(node) == value.dtype and not _refuses_mixed_types(node):
            continue
        with graph.inserting_before(node):
            casts = {each: _cast(graph, each, value.dtype) for each in node.all_input_nodes}
        node.args = fx.node.map_arg(node.args, casts.__getitem__)
        node.kwargs = fx.node.map_arg(node.kwargs, casts.__getitem__)


def _refuses_mixed_types(node: fx.Node) -> bool:
    """Products want one type, which meta tensors do not check; norms and pointwise ops mix."""
    values = [each.meta["val"] for each in node.all_input_nodes]
    types = {v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}
    target: Any = node.target
    mixes = torch.Tag.pointwise in target.tags or "norm" in target._schema.name
    return len(types) > 1 and not mixes


def _type_without_autocast(node: fx.Node) -> torch.dtype | None:
    """The type of the node's result on its inputs as they are; None where it takes no such mix."""

    def on_meta(each: fx.Node) -> Any:
        value = each.meta["val"]
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    target: Any = node.target
    args = fx.node.map_arg(node.args, on_meta)
    kwargs = dict(fx.node.map_arg(node.kwargs, on_meta))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("meta")
    try:
        result = target(*args, **kwargs)
    except RuntimeError:
        return None
    first = _first(result)
    return first.dtype if isinstance(first, torch.Tensor) else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) and value else value


def _cast(graph: fx.Graph, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    before = value.meta["val"]
    if not isinstance(before, torch.Tensor) or not before.is_floating_point():
        return value
    if before.dtype == dtype:
        return value
    node = graph.call_function(aten.to.dtype, (value, dtype))
    node.meta.update(value.meta)
    node.meta["val"] = torch.empty(before.shape, dtype=dtype, device="meta")
    return node


def _detached(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    if not value.meta["val"].is_floating_point():
        return value
    node = graph.call_function(aten.detach.default, (value,))
    node.meta.update(value.meta)
    node.meta["region"] = True
    return node


def _copy_into(graph: fx.Graph, body: fx.Graph, operands: tuple[Any, ...]) -> Any:
    mapping: dict[fx.Node, Any] = dict(
        zip(body.find_nodes(op="placeholder"), operands, strict=True)
    )
    for node in body.nodes:
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda n: mapping[n])
        if node.op != "placeholder":
            mapping[node] = graph.node_copy(node, lambda n: mapping[n])
    raise CaptureError("a captured region has no output.")


def _replace_by_results(graph: fx.Graph, node: fx.Node, results: Any) -> None:
    if isinstance(results, (tuple, list)):
        for user in list(node.users):
            piece: Any = user.args[1]
            user.replace_all_uses_with(results[piece])
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(results)
    graph.erase_node(node)
