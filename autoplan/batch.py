"""Which arguments carry the batch, read off the graph instead of guessed from sizes.

Dimensions that an op's rule calls by one index are one index: an argument of the batch's size
along dimension 0 may still hold features, and cutting it would be wrong without any error.
Rows that are looked up by the constants 0, 1, 2, ... go along with those constants, too: so does
the padding mask that transformers writes as `mask[arange(batch)[:, None], arange(length)]`. Rows
that data look up are numbers of a whole table. Rows read in a loop: see `autoplan.rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from autoplan.capture import Captured
from autoplan.rows import Dim, rows_apart
from autoplan.sites import describe, tensor_of
from autoplan.strategies.indexing import index_places, result_dims
from autoplan.strategies.rule import Arg, OpCall, Rule

_Place = tuple[int, int]
"""A dimension of an op's tensor: position among its inputs, or -1 for its output; dimension."""


@dataclass
class _Ties:
    """Dimensions that are one index: a forest, of which each tree has one root."""

    leader: dict[Dim, Dim] = field(default_factory=dict)

    def root(self, dim: Dim) -> Dim:
        while self.leader.get(dim, dim) != dim:
            dim = self.leader[dim]
        return dim

    def tie(self, one: Dim, other: Dim) -> None:
        self.leader[self.root(one)] = self.root(other)


def arguments_without_batch(captured: Captured, rules: Mapping[str, Rule]) -> frozenset[int]:
    """Flat positions of tensor arguments whose dimension 0 is known not to be the batch.

    The batch is dimension 0 of the first tensor argument. An argument of the same size along
    dimension 0 counts as without it if the graph ties that dimension to others, none of them the
    batch, or to nothing although it has a rule for every op that reads it (class weights, say).
    What an op without a rule reads, or nothing at all, is left to its size; so are rows of which
    constants look up each one in order, some more than once.
    """
    arguments = [each for each in captured.inputs_of("input") if each.meta.shape]
    if not arguments:
        return frozenset()
    ties = _Ties()
    repeated: set[Dim] = set()
    constants = _constant_values(captured)
    for node in captured.graph.nodes:
        rule = rules.get(str(node.target)) if node.op == "call_function" else None
        if rule is None:
            continue
        call, operands = describe(node)
        bound = rule.bound(call)
        tensors = [tensor_of(each) for each in operands]
        tensors += [(node.name, output) for output in range(len(call.outputs))]
        first: dict[str, Dim] = {}
        for (name, output), dims in zip(tensors, (*bound.inputs, *bound.outputs), strict=True):
            for number, index in enumerate(dims):
                if index is not None:
                    dim = (name, output, number)
                    ties.tie(dim, first.setdefault(index, dim))
        for source, at in _lookups(call):
            rows = call.inputs[0].shape[source]
            value = constants.get(operands[at])
            looked_up = (*tensors[0], source)
            along = None if value is None else _numbered_along(value, rows)
            if along is not None:
                for position, number in _going_along(call, at, along):
                    ties.tie(looked_up, (*tensors[position], number))
            elif value is not None and _repeats_in_order(value, rows):
                repeated.add(looked_up)
    for one, other in rows_apart(captured.graph):
        ties.tie(one, other)
    read_blindly = {
        source.name
        for node in captured.graph.nodes
        if node.op == "call_function" and not _has_rule(node, rules)
        for source in node.all_input_nodes
    }
    read = {node.name for node in captured.graph.nodes if node.users}
    first_argument = min(arguments, key=lambda each: each.position)
    undecided = {ties.root(dim) for dim in repeated}
    batch = ties.root((first_argument.node, 0, 0))
    tied = {ties.root(dim) for dim in ties.leader if ties.root(dim) != dim}
    rows_of = {each: ties.root((each.node, 0, 0)) for each in arguments}
    return frozenset(
        each.position
        for each, root in rows_of.items()
        if each.node in read  # else left to its size
        and each.meta.shape[0] == first_argument.meta.shape[0]
        and root != batch
        and root not in undecided
        and (root in tied or each.node not in read_blindly)
    )


def _has_rule(node: fx.Node, rules: Mapping[str, Rule]) -> bool:
    rule = rules.get(str(node.target))
    return rule is not None and rule.applies(describe(node)[0])


def _constant_values(captured: Captured) -> dict[fx.Node, torch.Tensor]:
    """Whole numbers that do not depend on any argument, also where they are stored once."""
    paths = {each.node: each.path for each in captured.inputs_of("constant")}
    values: dict[fx.Node, torch.Tensor] = {}
    for node in captured.graph.nodes:
        value = captured.constants.get(paths.get(node.name, ""))
        if node.target is torch.ops.aten.expand.default:
            stored = values.get(node.args[0])
            value = None if stored is None else stored.expand(node.meta["val"].shape)
        if value is not None and value.dtype in (torch.int64, torch.int32) and not value.is_meta:
            values[node] = value
    return values


def _numbered_along(index: torch.Tensor, rows: int) -> int | None:
    """The dimension of `index` along which its values are 0 ... rows - 1, if there is one."""
    for dim, size in enumerate(index.shape):
        if size == rows > 1:
            numbers = torch.arange(rows).reshape([-1 if i == dim else 1 for i in range(index.ndim)])
            if bool((index == numbers).all()):
                return dim
    return None


def _repeats_in_order(index: torch.Tensor, rows: int) -> bool:
    """Whether `index` reads every row, in order, and some more than once."""
    steps = index.flatten().diff()
    return (
        index.numel() > rows > 1
        and int(index.min()) == 0
        and int(index.max()) == rows - 1
        and bool(((steps == 0) | (steps == 1)).all())
    )


def _lookups(call: OpCall) -> Iterator[tuple[int, int]]:
    """Dimensions of the first input that are addressed by number, and the input with the numbers.

    An op of aten that reads or writes elements by number; others have none.
    """
    if call.op in ("aten.index.Tensor", "aten.index_put.default"):
        yield from index_places(call).items()
    elif call.op == "aten.embedding.default":
        yield 0, 1
    elif call.op == "aten.take_along_dim.default":
        if call.argument(2, "dim") is not None:
            yield call.dim(2), 1
    elif call.op.split(".")[1] in _NUMBERED_ALONG_DIM and call.inputs[0].shape:
        index = call.argument(2, "index")
        if isinstance(index, Arg):
            yield call.dim(1), index.position


_NUMBERED_ALONG_DIM = frozenset(
    {
        "gather",
        "index_select",
        "index_add",
        "index_copy",
        "index_fill",
        "scatter",
        "scatter_add",
        "scatter_reduce",
    }
)
"""Ops whose arguments begin with a tensor, a dimension of it and numbers along that dimension."""


def _going_along(call: OpCall, at: int, along: int) -> Iterator[_Place]:
    """Dimensions that are the dimension `along` of the index tensor at input `at`."""
    if call.op in ("aten.index.Tensor", "aten.index_put.default"):
        shapes = {each: call.inputs[each].shape for each in index_places(call).values()}
        common, result = result_dims(call)
        number = along + len(common) - len(shapes[at])  # among the common dimensions
        size = shapes[at][along]
        for each, shape in shapes.items():
            own = number - len(common) + len(shape)
            if own >= 0 and shape[own] == size:
                yield each, own
        place = result.index(common[number])
        if call.op == "aten.index.Tensor":
            yield -1, place
            return
        values = call.inputs[-1].shape
        own = place - len(result) + len(values)
        if own >= 0 and values[own] == size:
            yield len(call.inputs) - 1, own
        return
    yield at, along
    if call.op == "aten.embedding.default":
        yield -1, along
    elif call.op == "aten.index_select.default":
        yield -1, call.dim(1)
    elif call.op in ("aten.gather.default", "aten.take_along_dim.default"):
        yield -1, along
    elif len(call.inputs) > 2:  # what is written
        of_vector = call.op.split(".")[1].startswith("index_")
        number = call.dim(1) if of_vector else along
        if number < len(call.inputs[2].shape):
            yield 2, number
