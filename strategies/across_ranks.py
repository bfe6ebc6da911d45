"""What the local programs of reductions and norms take from all ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from autoplan.boxing import Step
from autoplan.layouts import Entry, local_shape
from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall

aten = torch.ops.aten


def named_argument(call: OpCall, name: str) -> Any:
    """An argument of an ATen op by its name in the op's schema, or its default; None without."""
    _, packet, overload = call.op.split(".")
    arguments = getattr(getattr(aten, packet), overload)._schema.arguments
    for position, each in enumerate(arguments):
        if each.name == name:
            return call.argument(position, name, each.default_value)
    return None


def box(context: LocalContext, x: Any, axes: Sequence[str], source: Entry, target: Entry) -> Any:
    """Box `x`, which no axis splits, from `source` to `target` on each of `axes`."""
    for axis in axes:
        x = context.box(x, Step(axis, source, target, (0, 0)))
    return x


def largest(context: LocalContext, x: Any, dims: Sequence[int], axes: Sequence[str]) -> Any:
    """The largest element along `dims`, which `axes` split, on all ranks; no gradient."""
    x = aten.detach.default(x)
    if _some_rank_is_empty(context):
        last_first = reversed(range(len(context.call.inputs[0].shape)))
        padding = [rows for i in last_first for rows in (0, int(i in dims))]
        x = aten.constant_pad_nd.default(x, padding, -math.inf)
    found = torch.amax(x, list(dims), True)
    for axis in axes:
        found = context.comm.all_reduce_max(found, axis)
    return found


def _some_rank_is_empty(context: LocalContext) -> bool:
    """Whether any rank, not only this one, has an empty shard of the first input."""
    shape, layout, mesh = context.call.inputs[0].shape, context.input_layouts[0], context.mesh
    everyone = itertools.product(*map(range, mesh.sizes))
    return any(0 in local_shape(shape, layout, mesh, rank) for rank in everyone)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is summed in float32, as torch's own kernels do."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def widened(x: Any, dtype: torch.dtype) -> Any:
    """`x`, of type `dtype`, in the type to sum in."""
    return aten.to.dtype(x, wide_dtype(dtype)) if wide_dtype(dtype) != dtype else x


def row_count(call: OpCall, context: LocalContext, dims: Sequence[int]) -> int:
    """Numbers that a reduction of the local shard along `dims` leaves."""
    ranges = context.input_ranges(0)
    return math.prod(stop - start for i, (start, stop) in enumerate(ranges) if i not in dims)
