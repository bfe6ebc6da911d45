"""Regions without gradient or with autocast become part of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

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
            if node.args[2]:
                raise CaptureError(
                    "torch.autocast inside the model cannot be planned; cast the model instead, "
                    "e.g. model.to(torch.bfloat16)."
                )
            without_grad, region, operands = False, node.args[4], node.args[5:]
        inner = getattr(module, region.target)
        inline_regions(inner.graph, inner)
        body = inner.graph
        with graph.inserting_before(node):
            if without_grad:
                operands = tuple(_detached(graph, each) for each in operands)
            results = _copy_into(graph, body, operands)
        _replace_by_results(graph, node, results)
    for node in list(graph.find_nodes(op="get_attr")):
        if not node.users:
            graph.erase_node(node)


def _detached(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    if not value.meta["val"].is_floating_point():
        return value
    node = graph.call_function(aten.detach.default, (value,))
    node.meta.update(value.meta)
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
