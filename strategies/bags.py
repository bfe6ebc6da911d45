"""Bags of embeddings: rows of a table, looked up and reduced bag by bag.

Capture writes bags of equal size as a matrix of ids, one row a bag; then the bags can be split.
"""

from __future__ import annotations

from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, Rule

_SUM, _MEAN, _MAX = 0, 1, 2


def _mode(call: OpCall) -> int:
    return int(call.argument(4, "mode", _SUM))


def _is_matrix(call: OpCall) -> bool:
    return len(call.inputs[1].shape) == 2


def _bag(call: OpCall) -> str | None:
    """The other results, which say how the bags were read, are for the op's own backward.

    A gradient scaled by frequency needs the counts of all rows; a sparse one has no layout.
    """
    if call.argument(3, "scale_grad_by_freq", False) or call.argument(5, "sparse", False):
        return None
    rows = "[v]" if _mode(call) == _MAX else "v"
    ids, offsets, bags = ("b [l]", "b", "b") if _is_matrix(call) else ("[n]", "[o]", "[b]")
    weights = f", {ids}" if len(call.inputs) == 4 else ""
    others = (
        " ".join(f"[r{at}_{i}]" for i in range(len(meta.shape)))
        for at, meta in enumerate(call.outputs[1:])
    )
    return f"{rows} h, {ids}, {offsets}{weights} -> {bags} h, {', '.join(others)}"


def _linear(call: OpCall) -> tuple[frozenset[int], ...]:
    """Sums and means are linear in the table, and in the weights of the ids."""
    if _mode(call) == _MAX:
        return ()
    return tuple(frozenset({i}) for i in (0, 3)[: len(call.inputs) - 2])


def _local_bag(
    context: LocalContext,
    table: Any,
    ids: Any,
    offsets: Any,
    scale: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    weights: Any = None,
    ends: bool = False,
    padding: int | None = None,
) -> Any:
    """Ids in a matrix are one run; rows of the table that other ranks hold weigh nothing."""
    if _is_matrix(context.call):
        (first, last), (_, length) = context.input_ranges(1)
        ids = torch.ops.aten.reshape.default(ids, [(last - first) * length])
        offsets = torch.sub(offsets, first * length)
        if weights is not None:
            weights = torch.ops.aten.reshape.default(weights, [(last - first) * length])
    bag = torch.ops.aten.embedding_bag.padding_idx
    if not context.axes("v"):
        results = bag(table, ids, offsets, scale, mode, sparse, weights, ends, padding)
        return (results[0], None, None, None) if any(context.split.values()) else results
    size, dtype = context.call.inputs[0].shape[0], context.call.inputs[0].dtype
    start, stop = context.input_ranges(0)[0]
    counted = torch.ge(ids, 0) if padding is None else torch.ne(ids, padding % size)
    here = torch.logical_and(torch.ge(ids, start), torch.lt(ids, stop))
    share = torch.ops.aten.to.dtype(torch.logical_and(counted, here), dtype)
    if weights is not None:
        share = torch.mul(share, weights)
    local = torch.ops.aten.masked_fill.Scalar(torch.sub(ids, start), torch.logical_not(here), 0)
    if start < stop:
        total = bag(table, local, offsets, False, _SUM, False, share, ends, None)[0]
    else:  # no rows: the sum of nothing, in as many steps as on the other ranks
        total = torch.ops.aten.expand.default(torch.sum(table), list(context.output_shape()))
    if mode == _MEAN:
        total = torch.div(total, torch.unsqueeze(_sizes(counted, offsets, ends, dtype), -1))
    return (total, None, None, None)


def _sizes(counted: Any, offsets: Any, ends: bool, dtype: torch.dtype) -> Any:
    """How many ids of each bag count, at least one; `ends`: the last offset only ends a bag."""
    before = torch.ops.aten.constant_pad_nd.default(torch.cumsum(counted, 0), [1, 0])
    edges = torch.ops.aten.index.Tensor(before, [offsets])
    if not ends:
        edges = torch.ops.aten.cat.default([edges, torch.ops.aten.slice.Tensor(before, 0, -1)])
    sizes = torch.ops.aten.diff.default(edges)
    return torch.ops.aten.to.dtype(torch.clamp(sizes, min=1), dtype)


_BAG = Rule(
    _bag,
    sums=True,
    partial=_linear,
    saves=(1, 2),
    program=_local_bag,
    flops=lambda call: 0.0,
)

RULES: dict[str, Rule] = {
    "aten.embedding_bag.default": _BAG,
    "aten.embedding_bag.padding_idx": _BAG,
}
