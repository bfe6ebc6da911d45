"""Ops that say nothing: assertions, aliases, devices, dead code."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import py_sym_types

from autoplan.cleanup.places import at
from autoplan.errors import CaptureError

aten = torch.ops.aten


_ASSERTS = ("_assert", "sym_constrain", "_guards", "assert_async")


def drop_asserts(graph: fx.Graph) -> None:
    """Remove metadata and value assertions, and numbers that only they read.

    Shapes are fixed once captured.
    """
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function":
            continue
        asserts = any(word in str(node.target) for word in _ASSERTS)
        is_number = isinstance(node.meta.get("val"), py_sym_types)
        if asserts or (is_number and not node.users):
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


_OF_VMAP = ("lazy_load_decompositions", "_vmap_increment_nesting", "_add_batch_dim")


def refuse_foreign_calls(graph: fx.Graph) -> None:
    """Raise CaptureError at what is no op on tensors: vmap, cond, a graph within the graph."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            name = getattr(node.target, "__name__", str(node.target))
            fix = "write it with ops on tensors, such as torch.where"
            if name in _OF_VMAP:
                name, fix = "torch.vmap", "write the batched form, with einsum or bmm"
            raise CaptureError(f"{name} in the model cannot be planned{at(node)}; {fix}.")


_DROPOUTS = tuple(
    f"aten.{kind}.default"
    for kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
)


def number_random_ops(graph: fx.Graph, draws: Callable[[fx.Node], bool]) -> None:
    """Number the calls that draw numbers as the model makes them, those that nothing reads too."""
    random = [node for node in graph.nodes if node.op == "call_function" and draws(node)]
    for number, node in enumerate(random):
        node.meta["draw"] = number


def refuse_unkeyed_random(graph: fx.Graph, keyed: Container[str]) -> None:
    """Raise CaptureError at an op that draws from torch's generator: ranks would draw apart."""
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        seeded = torch.Tag.nondeterministic_seeded in tags and str(node.target) not in keyed
        if seeded and not _drops_nothing(node):
            raise CaptureError(
                f"{node.target} draws random numbers{at(node)}, and no rule draws them alike on "
                "every rank; draw them outside the model and pass them in as an argument."
            )


def _drops_nothing(node: fx.Node) -> bool:
    """Whether the op draws numbers for a dropout alone, and that is off."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return "dropout" in given and (not given["dropout"] or not given.get("train", True))


def drop_no_ops(graph: fx.Graph) -> None:
    """Remove ops that return their input: aliases, casts to the same type, dropout that is off."""
    for node in list(graph.nodes):
        if node.op == "call_function" and str(node.target) == "aten.broadcast_tensors.default":
            _drop_broadcast(graph, node)
            continue
        if node.op != "call_function" or not _is_no_op(node):
            continue
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


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
    if name.removeprefix("aten.").split(".")[0] in (
        "expand",
        "view",
        "reshape",
        "slice",
        "squeeze",
        "_unsafe_view",
        "flatten",
    ):
        return same
    return is_dropout_off(node)


def is_dropout_off(node: fx.Node) -> bool:
    """Whether a node is dropout that returns its argument."""
    return str(node.target) in _DROPOUTS and (not node.args[1] or not node.args[2])


def forget_devices(graph: fx.Graph) -> None:
    """Casts keep their type and lose their device: a program runs where its inputs are."""
    for node in graph.find_nodes(op="call_function", target=aten.to.dtype_layout):
        node.target = aten.to.dtype
        node.args, node.kwargs = (node.args[0], node.kwargs["dtype"]), {}


def drop_unused(
    graph: fx.Graph,
    kinds: Mapping[str, tuple[str, str]],
    aliases: Mapping[str, str],
    updates: Container[str],
) -> None:
    """Remove dead code, and placeholders that nothing reads.

    Parameters and arguments stay, and buffers among `updates`: one may be written over unread.
    """
    for node in reversed(list(graph.nodes)):
        kind, path = kinds.get(node.name, ("constant", ""))
        kept = node.op in ("placeholder", "output") and kind in ("parameter", "input")
        kept = kept or (kind == "buffer" and path in updates)
        if not node.users and node.op != "output" and (not kept or path in aliases):
            graph.erase_node(node)
