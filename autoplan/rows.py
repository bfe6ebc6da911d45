"""Rows that a model reads one by one, in a loop over the batch, and where they meet again.

No op's rule ties row 3 of a mask to the batch; that it meets row 3 of the tokens does, and that it
becomes entry 3 of a stack.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from autoplan.sites import tensor_of

aten = torch.ops.aten

Dim = tuple[str, int, int]
"""A dimension of a tensor: graph node, output, dimension."""

_Tensor = tuple[str, int]
_Rows = dict[_Tensor, int | None]
"""Tensors of which a value depends on single rows: which row, or None for several."""


def rows_apart(graph: fx.Graph) -> Iterator[tuple[Dim, Dim]]:
    """Pairs of dimensions that are one, by a loop over all rows of a tensor.

    Row i of one tensor meets row i of another in some op, for every i; or it alone becomes entry i
    of as many that are stacked or joined.
    """
    reads = {node: found for node in graph.nodes if (found := _row_read(node)) is not None}
    sizes: dict[_Tensor, int] = {}
    seen: dict[_Tensor, set[int]] = {}
    for tensor, row, size in reads.values():
        sizes[tensor] = size
        seen.setdefault(tensor, set()).add(row)
    looped = {each for each, rows in seen.items() if len(rows) == sizes[each] > 1}
    if not looped:
        return
    rows: dict[fx.Node, _Rows] = {}
    met: dict[tuple[_Tensor, _Tensor], set[int]] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node in reads and reads[node][0] in looped:
            tensor, row, _ = reads[node]
            rows[node] = {tensor: row}
            continue
        rows[node] = _joined(node, rows)
        single = [(each, row) for each, row in rows[node].items() if row is not None]
        for one, row in single:
            for other, same in single:
                if one < other and row == same:
                    met.setdefault((one, other), set()).add(row)
        yield from _entries(node, rows, sizes)
    for (one, other), numbers in met.items():
        if len(numbers) == sizes[one] == sizes[other]:
            yield (*one, 0), (*other, 0)


def _row_read(node: fx.Node) -> tuple[_Tensor, int, int] | None:
    """Tensor, row and number of rows, where a node is one row of dimension 0 of a tensor."""
    args: tuple[Any, ...] = node.args
    if node.target is operator.getitem:
        pieces, start = args
        at = {aten.unbind.int: 1, aten.split.Tensor: 2, aten.chunk.default: 2}.get(pieces.target)
        if at is None:
            return None
        source, dim, width = pieces.args[0], _dim(pieces, at), 1
        if len(pieces.meta["val"]) != source.meta["val"].shape[dim]:
            return None
    elif node.target in (aten.select.int, aten.slice.Tensor) and len(args) > 2:
        source, dim, start = args[:3]
        width = 1 if node.target is aten.select.int else node.meta["val"].shape[dim]
    else:
        return None
    shape = source.meta["val"].shape
    if dim % len(shape) or width != 1:
        return None
    return tensor_of(source), start % shape[0], shape[0]


def _dim(node: fx.Node, position: int) -> int:
    found: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return int(found)


def _joined(node: fx.Node, rows: Mapping[fx.Node, _Rows]) -> _Rows:
    joined: _Rows = {}
    for each in node.all_input_nodes:
        for tensor, row in rows.get(each, {}).items():
            joined[tensor] = row if joined.get(tensor, row) == row else None
    return joined


def _entries(
    node: fx.Node, rows: Mapping[fx.Node, _Rows], sizes: Mapping[_Tensor, int]
) -> Iterator[tuple[Dim, Dim]]:
    """A tensor of which only row i is in entry i, and the dimension of the entries."""
    if node.target not in (aten.stack.default, aten.cat.default):
        return
    entries: Any = node.args[0]
    shape = node.meta["val"].shape
    dim = _dim(node, 1) % len(shape)
    if shape[dim] != len(entries):
        return
    for tensor, size in sizes.items():
        if len(entries) == size and all(
            rows.get(entry, {}).get(tensor) == number for number, entry in enumerate(entries)
        ):
            yield (*tensor, 0), (node.name, 0, dim)
