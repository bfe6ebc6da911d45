"""Refit: the graph of one batch becomes that of another, from how two captures differ.

Shapes and sizes in a graph grow with the rows of the batch along a line, which two captures fix. A
search prices many numbers of microbatches; capturing a model anew for each would be most of its
time. What is refitted is priced only: the plan that a search ends with is made of a capture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from autoplan.capture import Captured
from autoplan.strategies.rule import TensorMeta


class UnlikeError(Exception):
    """Two captures that are no two points of a line: another op, another constant."""


@dataclass(frozen=True)
class _Line:
    """Whole numbers that are `at_one` for `rows_one` and `at_other` for `rows_other`."""

    rows_one: int
    rows_other: int
    rows: int

    def number(self, one: int, other: int) -> int:
        if one == other:
            return one
        slope, rest = divmod(other - one, self.rows_other - self.rows_one)
        if rest:
            raise UnlikeError
        return one + slope * (self.rows - self.rows_one)

    def shape(self, one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
        if len(one) != len(other):
            raise UnlikeError
        return tuple(self.number(a, b) for a, b in zip(one, other, strict=True))


def refitted(
    one: Captured, rows_one: int, other: Captured, rows_other: int, rows: int
) -> Captured | None:
    """The graph for a batch of `rows`, of those for two others; None where they are too unlike.

    Values in the result are on the meta device: it has shapes and types only.
    """
    line = _Line(rows_one, rows_other, rows)
    try:
        return _refitted(one, other, line)
    except UnlikeError:
        return None


def _refitted(one: Captured, other: Captured, line: _Line) -> Captured:
    first, second = list(one.graph.nodes), list(other.graph.nodes)
    if len(first) != len(second):
        raise UnlikeError
    partner = dict(zip(first, second, strict=True))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node, twin in partner.items():
        if (node.op, str(node.target), node.name) != (twin.op, str(twin.target), twin.name):
            raise UnlikeError
        arguments = _tree((node.args, node.kwargs), (twin.args, twin.kwargs), line, copies)
        if node.op == "output":
            graph.output(arguments[0][0])
            continue
        copy = graph.create_node(
            node.op, node.target, tuple(arguments[0]), dict(arguments[1]), node.name
        )
        copy.name = node.name
        copy.meta = dict(node.meta)
        if "val" in node.meta:
            copy.meta["val"] = _value(node.meta["val"], twin.meta["val"], line)
        copies[node] = copy
    inputs = tuple(
        replace(a, meta=_meta(a.meta, b.meta, line))
        for a, b in zip(one.inputs, other.inputs, strict=True)
    )
    leaves = tuple(
        _meta(a, b, line) if isinstance(a, TensorMeta) and isinstance(b, TensorMeta) else a
        for a, b in zip(one.leaves, other.leaves, strict=True)
    )
    return replace(one, graph=graph, inputs=inputs, leaves=leaves)


def _tree(one: Any, other: Any, line: _Line, copies: dict[fx.Node, fx.Node]) -> Any:
    """Arguments of an op, numbers on their lines, nodes replaced."""
    if isinstance(one, fx.Node):
        if not isinstance(other, fx.Node) or one.name != other.name:
            raise UnlikeError
        return copies[one]
    if isinstance(one, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(one) != len(other):
            raise UnlikeError
        return type(one)(_tree(a, b, line, copies) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            raise UnlikeError
        return {key: _tree(one[key], other[key], line, copies) for key in one}
    if type(one) is int and type(other) is int:
        return line.number(one, other)
    if type(one) is not type(other):
        raise UnlikeError
    return one


def _value(one: Any, other: Any, line: _Line) -> Any:
    if isinstance(one, (list, tuple)):
        return type(one)(_value(a, b, line) for a, b in zip(one, other, strict=True))
    if not isinstance(one, torch.Tensor):
        return one
    shape = line.shape(tuple(one.shape), tuple(other.shape))
    return torch.empty(shape, dtype=one.dtype, device="meta")


def _meta(one: TensorMeta, other: TensorMeta, line: _Line) -> TensorMeta:
    return replace(one, shape=line.shape(one.shape, other.shape))
