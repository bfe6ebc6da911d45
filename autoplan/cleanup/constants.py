"""Constants: what depends on no input, parameter or buffer is computed at capture."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import py_sym_types

from autoplan.cleanup.pins import HINT
from autoplan.cleanup.writes import like

aten = torch.ops.aten


def fold_constants(graph: fx.Graph) -> tuple[dict[str, torch.Tensor], fx.Graph]:
    """Compute what depends on no input, parameter or buffer; keep the results as placeholders.

    Dimensions along which a result only repeats are stored once and expanded. Also returns what
    was computed, as a graph for `recompute`.
    """
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "call_function" and _is_constant(node, values):
            values[node] = _evaluate(node, values)
    constants: dict[str, torch.Tensor] = {}
    folded = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in values:
        copies[node] = folded.node_copy(node, copies.__getitem__)
    recipes: dict[str, fx.Node] = {}
    first = next(iter(graph.nodes))
    for node, value in values.items():
        if all(user in values for user in node.users):
            continue
        if not isinstance(value, torch.Tensor):
            node.replace_all_uses_with(value)
            continue
        narrow = _without_repetition(value)
        with graph.inserting_before(first):
            stored = graph.placeholder(f"constant_{node.name}")
        constants[stored.name], recipes[stored.name] = narrow.contiguous(), copies[node]
        stored.meta["val"] = like(narrow)
        stored.meta["path"], stored.meta["source"] = node.meta["path"], node.meta["source"]
        with graph.inserting_before(node):
            whole = stored
            if narrow.shape != value.shape:
                whole = graph.call_function(aten.expand.default, (stored, list(value.shape)))
                whole.meta.update(node.meta)
        node.replace_all_uses_with(whole)
    for node in reversed(list(values)):
        if not node.users:
            graph.erase_node(node)
    folded.output(recipes)
    folded.eliminate_dead_code()
    return constants, folded


def recompute(folded: fx.Graph, constants: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `fold_constants` computed, once more: after an edit of the types in its graph.

    `constants` are those that are still used; they say which dimensions are stored once.
    """
    returned = folded.output_node()
    recipes: Any = returned.args[0]
    returned.args = ({name: node for name, node in recipes.items() if name in constants},)
    folded.eliminate_dead_code()
    values: dict[fx.Node, Any] = {}
    for node in folded.nodes:
        if node.op == "call_function":
            values[node] = _evaluate(node, values)
    results = {}
    for name, node in recipes.items():
        if name in constants:
            value = values[node]
            for dim, size in enumerate(constants[name].shape):
                value = value.narrow(dim, 0, size)
            results[name] = value.contiguous()
    return results


def _is_constant(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
            return False
        if target == HINT:
            return False
    elif target is not operator.getitem:
        return False
    value = node.meta.get("val")
    if isinstance(value, py_sym_types):
        return False
    return all(each in values for each in node.all_input_nodes)


def _evaluate(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """The node's value on the CPU; pointwise ops compute repeated dimensions once."""

    def value_of(each: fx.Node) -> Any:
        return values[each]

    args = fx.node.map_arg(node.args, value_of)
    kwargs = dict(fx.node.map_arg(node.kwargs, value_of))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    assert callable(node.target)
    pointwise = isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.pointwise in node.target.tags or str(node.target).startswith(_POINTWISE)
    )
    if pointwise:
        shapes = [a.shape for a in args if isinstance(a, torch.Tensor)]
        whole = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        args = tuple(_without_repetition(a) if isinstance(a, torch.Tensor) else a for a in args)
        return node.target(*args, **kwargs).expand(whole)
    result = node.target(*args, **kwargs)
    if isinstance(result, torch.Tensor):
        result = _without_repetition(result, compare=True).expand(result.shape)
    return result


_POINTWISE = (
    *("aten.to.dtype", "aten._to_copy.", "aten.where.Scalar", "aten.masked_fill.", "aten.rsub."),
    *("aten.__and__.", "aten.__or__.", "aten.floor_divide.", "aten.divide.", "aten.true_divide."),
    *("aten.multiply.", "aten.subtract.", "aten.negative.", "aten.less", "aten.greater"),
    "aten.not_equal.",
)
"""Beginnings of ops that torch does not tag as such, or not all overloads of them."""


def _without_repetition(value: torch.Tensor, compare: bool = False) -> torch.Tensor:
    """Narrow dimensions of stride zero, or (`compare`) of equal contents, to size one."""
    for dim, size in enumerate(value.shape):
        if size > 1:
            one = value.narrow(dim, 0, 1)
            if value.stride(dim) == 0 or (compare and _repeats(value, dim, one)):
                value = one
    return value


def _repeats(value: torch.Tensor, dim: int, one: torch.Tensor) -> bool:
    """Whether all is like the first entry of a dimension; the last tells most that are not."""
    last = value.narrow(dim, value.shape[dim] - 1, 1)
    return bool((last == one).all()) and bool((value == one).all())
