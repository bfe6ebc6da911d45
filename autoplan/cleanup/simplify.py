"""Ops that say nothing: assertions, aliases, devices, dead code."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import py_sym_types

from autoplan.cleanup.places import at
from autoplan.errors import CaptureError

aten = torch.ops.aten


_ASSERTS = ("_assert", "sym_constrain", "_guards", "assert_async")


def drop_asserts(graph: fx.Graph) -> None:
    """Remove metadata and value assertions: shapes are fixed once captured."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and any(word in str(node.target) for word in _ASSERTS):
            graph.erase_node(node)


def refuse_dynamic_shapes(graph: fx.Graph) -> None:
    """Raise CaptureError at the first op whose shape depends on data."""
    for node in graph.nodes:
        value = node.meta.get("val")
        for each in value if isinstance(value, (tuple, list)) else (value,):
            sizes = each.shape if isinstance(each, torch.Tensor) else (each,)
            if any(isinstance(size, py_sym_types) for size in sizes):
                raise CaptureError(
                    f"the shape of {node.target} depends on data{at(node)}; a plan needs fixed "
                    "shapes: use a mask, torch.where, or compute it outside the model."
                )


_DROPOUTS = tuple(
    f"aten.{kind}.default"
    for kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
)


def refuse_unkeyed_random(graph: fx.Graph, keyed: Container[str]) -> None:
    """Raise CaptureError at an op that draws from torch's generator: ranks would draw apart."""
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and str(node.target) not in keyed:
            raise CaptureError(
                f"{node.target} draws random numbers{at(node)}; only dropout and attention's "
                "dropout are drawn alike on every rank: draw outside the model and pass the result "
                "in."
            )


def drop_no_ops(graph: fx.Graph, aliases_only: bool = False) -> None:
    """Remove ops that return their input: aliases, casts to the same type, dropout that is off.

    `aliases_only` keeps `contiguous`, which may copy: before in-place ops are functionalised.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and str(node.target) == "aten.broadcast_tensors.default":
            _drop_broadcast(graph, node)
            continue
        if node.op != "call_function" or not _is_no_op(node):
            continue
        if aliases_only and _may_copy(node):
            continue
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


def _may_copy(node: fx.Node) -> bool:
    """Whether the op may return a new tensor even where it changes nothing."""
    name = str(node.target)
    if name.startswith("aten.to."):
        return any(each is True for each in (*node.args[1:], *node.kwargs.values()))
    return name.startswith(("aten._to_copy.", "aten.lift_fresh_copy.", "aten.contiguous."))


def _drop_broadcast(graph: fx.Graph, node: fx.Node) -> None:
    """`broadcast_tensors` of equal shapes, which losses call first, returns its operands."""
    operands: Any = node.args[0]
    if len({tuple(each.meta["val"].shape) for each in operands}) > 1:
        return
    for user in list(node.users):
        user.replace_all_uses_with(operands[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)


def _is_no_op(node: fx.Node) -> bool:
    name = str(node.target)
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), torch.Tensor):
        return False
    before, after = source.meta["val"], node.meta.get("val")
    if not isinstance(after, torch.Tensor):
        return False
    same: bool = before.shape == after.shape and before.dtype == after.dtype
    if name in ("aten.alias.default", "aten.contiguous.default", "aten.lift_fresh_copy.default"):
        return True
    if name.startswith(("aten.to.", "aten._to_copy.")):
        return same
    if name.split(".")[1] in (
        "expand",
        "view",
        "reshape",
        "slice",
        "squeeze",
        "_unsafe_view",
        "flatten",
    ):
        return same
    if name in _DROPOUTS:
        return not node.args[1] or not node.args[2]
    return False


def forget_devices(graph: fx.Graph) -> None:
    """Casts keep their type and lose their device: a program runs where its inputs are."""
    for node in graph.find_nodes(op="call_function", target=aten.to.dtype_layout):
        node.target = aten.to.dtype
        node.args, node.kwargs = (node.args[0], node.kwargs["dtype"]), {}


def drop_unused(
    graph: fx.Graph, kinds: Mapping[str, tuple[str, str]], aliases: Mapping[str, str]
) -> None:
    """Remove dead code, and placeholders that nothing reads; parameters and arguments stay."""
    for node in reversed(list(graph.nodes)):
        kind, path = kinds.get(node.name, ("constant", ""))
        kept = node.op in ("placeholder", "output") and kind in ("parameter", "input")
        if not node.users and node.op != "output" and (not kept or path in aliases):
            graph.erase_node(node)
