"""Ops that reduce along dimensions, and ops that run along one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from autoplan.layouts import B, P
from autoplan.strategies.across_ranks import (
    box,
    largest,
    named_argument,
    row_count,
    wide_dtype,
    widened,
)
from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import InnerCollective, OpCall, Rule

aten = torch.ops.aten


def reduced_dims(call: OpCall) -> list[int]:
    """The dimensions of the first input that the op reduces, counted from the front."""
    ndim = len(call.inputs[0].shape)
    dims = named_argument(call, "dim")
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return list(range(ndim))
    if ndim == 0:
        return []
    return [dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)]


def keeps(call: OpCall) -> bool:
    return len(call.outputs[0].shape) == len(call.inputs[0].shape)


def reduction(call: OpCall) -> str:
    """`d0 [d1] -> d0` for a reduction of dimension 1, with brackets where that must be whole."""
    names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
    dims = reduced_dims(call)
    kept = [("1" if keeps(call) else "") if i in dims else name for i, name in enumerate(names)]
    output = " ".join(filter(None, kept))
    return f"{' '.join(names)} -> {', '.join([output] * len(call.outputs))}"


def whole(call: OpCall) -> str:
    """The reduced dimensions cannot be split."""
    source, target = reduction(call).split("->")
    names = source.split()
    for dim in reduced_dims(call):
        names[dim] = f"[{names[dim]}]"
    return f"{' '.join(names)} -> {target}"


def _along(position: int) -> Callable[[OpCall], str]:
    """One dimension, given at `position`, is whole on every rank."""

    def notation(call: OpCall) -> str:
        names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
        if names:
            names[call.dim(position)] = "[k]"
        return f"{' '.join(names)} -> {', '.join([' '.join(names)] * len(call.outputs))}"

    return notation


# -- programs -------------------------------------------------------------------------------


def split_axes(context: LocalContext) -> tuple[str, ...]:
    return context.axes(*(f"d{i}" for i in reduced_dims(context.call)))


def shaped(call: OpCall, result: Any, output: int = 0) -> Any:
    """A result with its reduced dimensions kept, as the op returns it."""
    if not keeps(call):
        result = aten.squeeze.dims(result, reduced_dims(call))
    return aten.to.dtype(result, call.outputs[output].dtype)


def _mean(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Mean over split dimensions: the local sum over the global count, an addend of the mean."""
    call = context.call
    dims = reduced_dims(call)
    if not split_axes(context):
        return context.same_op(x, *args, **kwargs)
    total = aten.sum.dim_IntList(x, dims, keeps(call), dtype=call.outputs[0].dtype)
    return aten.div.Tensor(total, math.prod(call.inputs[0].shape[i] for i in dims))


def _nanmean(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """As the mean, over the count of numbers on all ranks."""
    call, axes = context.call, split_axes(context)
    if not axes:
        return context.same_op(x, *args, **kwargs)
    dims, keep = reduced_dims(call), keeps(call)
    total = aten.nansum.default(x, dims, keep, dtype=call.outputs[0].dtype)
    numbers = torch.logical_not(torch.isnan(aten.detach.default(x)))
    count = aten.sum.dim_IntList(numbers, dims, keep)
    return torch.div(total, box(context, count, axes, P, B))


def _nanmean_inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    size = 8 * row_count(call, context, reduced_dims(call))
    for axis in split_axes(context):
        yield InnerCollective("all_reduce", size, axis)


def _some_or_all(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Flags of all ranks by their maximum: as numbers, which every backend reduces."""
    found, axes = context.same_op(x, *args, **kwargs), split_axes(context)
    if not axes:
        return found
    wanted = 0 if context.call.op.startswith("aten.all.") else 1
    flag = aten.to.dtype(torch.eq(found, wanted), torch.uint8)
    for axis in axes:
        flag = context.comm.all_reduce_max(flag, axis)
    return aten.to.dtype(torch.eq(flag, wanted), context.call.outputs[0].dtype)


def _some_or_all_inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    for axis in split_axes(context):
        size = row_count(call, context, reduced_dims(call))
        yield InnerCollective("all_reduce", size, axis)


def _extreme(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The extreme of all ranks; its gradient goes in equal parts to all elements that reach it.

    Its value is the maximum itself. Its gradient is that of `part`, this rank's part of the mean
    of those elements; `part - part` is zero and carries it, and where the maximum is infinite
    `part` is infinite alike.
    """
    call, axes = context.call, split_axes(context)
    if not axes:
        return context.same_op(x, *args, **kwargs)
    dims, least = reduced_dims(call), call.op.startswith(("aten.amin.", "aten.min."))
    x = torch.neg(x) if least else x
    extreme = largest(context, x, dims, axes)
    reached = torch.eq(aten.detach.default(x), extreme)
    here = aten.sum.dim_IntList(reached, dims, True)
    shares = torch.div(x, box(context, here, axes, P, B))
    shares = aten.masked_fill.Scalar(shares, torch.logical_not(reached), 0.0)
    part = aten.sum.dim_IntList(shares, dims, True)
    infinite = torch.logical_and(torch.isinf(extreme), torch.gt(here, 0))
    carried = torch.add(extreme, torch.sub(part, aten.detach.default(part)))
    result = shaped(call, torch.where(infinite, part, carried))
    return torch.neg(result) if least else result


def _extreme_inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    rows = row_count(call, context, reduced_dims(call))
    for itemsize in (call.inputs[0].itemsize, 8):
        for axis in split_axes(context):
            yield InnerCollective("all_reduce", rows * itemsize, axis)


def _log_sum_exp(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Shifted by the maximum of all ranks, so that nothing overflows."""
    call, axes = context.call, split_axes(context)
    if not axes:
        return context.same_op(x, *args, **kwargs)
    dims = reduced_dims(call)
    x = widened(x, call.inputs[0].dtype)
    shift = largest(context, x, dims, axes)
    shift = aten.masked_fill.Scalar(shift, torch.isinf(shift), 0.0)
    powers = torch.exp(torch.sub(x, shift))
    total = box(context, aten.sum.dim_IntList(powers, dims, True), axes, P, B)
    return shaped(call, torch.add(torch.log(total), shift))


def _log_sum_exp_inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    rows = row_count(call, context, reduced_dims(call))
    for axis in split_axes(context):
        for _ in ("maximum", "sum"):
            size = rows * wide_dtype(call.inputs[0].dtype).itemsize
            yield InnerCollective("all_reduce", size, axis)


def _if_floating(call: OpCall) -> str:
    """Whole numbers have no minus infinity to pad an empty shard with."""
    return reduction(call) if call.inputs[0].dtype.is_floating_point else whole(call)


_LINEAR = (frozenset({0}),)
REDUCED = frozenset(f"d{i}" for i in range(16))
_SUM = Rule(reduction, sums=True, partial=_LINEAR)
_COUNT = Rule(reduction, sums=True)
_MEAN = Rule(reduction, sums=True, partial=_LINEAR, program=_mean)
_FLAGS = Rule(reduction, completes=REDUCED, program=_some_or_all, inner=_some_or_all_inner)
_EXTREME = Rule(
    _if_floating,
    completes=REDUCED,
    saves=(0, "output"),
    program=_extreme,
    inner=_extreme_inner,
)
_PICKED = Rule(whole, saves=("output",))

RULES: dict[str, Rule] = {
    "aten.sum.default": _SUM,
    "aten.sum.dim_IntList": _SUM,
    "aten.mean.default": _MEAN,
    "aten.mean.dim": _MEAN,
    "aten.nansum.default": Rule(reduction, sums=True, saves=(0,)),
    "aten.nanmean.default": Rule(
        reduction, sums=True, saves=(0,), program=_nanmean, inner=_nanmean_inner
    ),
    "aten.count_nonzero.default": _COUNT,
    "aten.count_nonzero.dim_IntList": _COUNT,
    **{
        f"aten.{name}.{overload}": _FLAGS
        for name in ("any", "all")
        for overload in ("default", "dim", "dims")
    },
    **{f"aten.{name}.default": _EXTREME for name in ("amax", "amin", "max", "min")},
    "aten.logsumexp.default": Rule(
        reduction,
        completes=REDUCED,
        saves=(0, "output"),
        program=_log_sum_exp,
        inner=_log_sum_exp_inner,
    ),
    "aten.prod.dim_int": Rule(whole, saves=(0, "output")),
    "aten.argmax.default": Rule(whole),
    "aten.argmin.default": Rule(whole),
    "aten.aminmax.default": Rule(whole, saves=(0, "output")),
    "aten.max.dim": _PICKED,
    "aten.min.dim": _PICKED,
    "aten.median.dim": _PICKED,
    "aten.nanmedian.dim": _PICKED,
    "aten.mode.default": _PICKED,
    "aten.kthvalue.default": _PICKED,
    "aten.cumsum.default": Rule(_along(1), partial=_LINEAR),
    "aten.cumprod.default": Rule(_along(1), saves=(0, "output")),
    "aten.logcumsumexp.default": Rule(_along(1), saves=(0, "output")),
    "aten.cummax.default": Rule(_along(1), saves=(0, "output")),
    "aten.cummin.default": Rule(_along(1), saves=(0, "output")),
}
