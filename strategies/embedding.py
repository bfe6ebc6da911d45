"""Table look-ups, with the table split over its rows (vocabulary), its width, or not at all."""

from __future__ import annotations

from typing import Any

import torch

from autoplan.layouts import local_ranges
from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import result_bytes
from autoplan.strategies.rule import OpCall, OpMemory, Rule


def _embedding(call: OpCall) -> str | None:
    """A gradient scaled by frequency needs the counts of all rows; a sparse one has no layout."""
    if call.argument(3, "scale_grad_by_freq", False) or call.argument(4, "sparse", False):
        return None
    return "v h, *b -> *b h"


def _vocabulary_parallel(
    context: LocalContext, weight: Any, ids: Any, *args: Any, **kwargs: Any
) -> Any:
    """Rows of other ranks look up as zero, so that the results add up (Shoeybi et al. 2019, 3)."""
    if not context.axes("v"):
        return context.same_op(weight, ids, *args, **kwargs)
    start, stop = context.input_ranges(0)[0]
    padding = context.call.argument(2, "padding_idx", -1)
    local_padding = padding - start if start <= padding < stop else -1
    elsewhere = torch.logical_or(torch.lt(ids, start), torch.ge(ids, stop))
    local = torch.ops.aten.masked_fill.Scalar(torch.sub(ids, start), elsewhere, 0)
    if _some_rank_holds_none(context):
        weight = torch.ops.aten.constant_pad_nd.default(weight, [0, 0, 0, 1])
    rows = torch.ops.aten.embedding.default(weight, local, local_padding)
    return torch.ops.aten.masked_fill.Scalar(rows, torch.unsqueeze(elsewhere, -1), 0.0)


def _some_rank_holds_none(context: LocalContext) -> bool:
    """Whether a rank has no row to look up; the table is then about as small as the mesh."""
    shape, mesh = context.call.inputs[0].shape, context.mesh
    last = tuple(size - 1 for size in mesh.sizes)
    start, stop = local_ranges(shape, context.input_layouts[0], mesh, last)[0]
    return start == stop


def _memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """Of a split vocabulary: local numbers of rows, flags of foreign ones, rows to be zeroed."""
    if not context.axes("v"):
        return plain
    ids, size = context.input_meta(1), result_bytes(call, context)
    return OpMemory((), kept=ids.num_bytes + ids.numel, forward=size, backward=size)


def _flops(call: OpCall) -> float:
    return 0.0


RULES: dict[str, Rule] = {
    "aten.embedding.default": Rule(
        _embedding,
        sums=True,
        partial=(frozenset({0}),),
        saves=(1,),
        memory=_memory,
        program=_vocabulary_parallel,
        flops=_flops,
    ),
}
