"""Variances, deviations and vector norms: sums of squares along dimensions that may be split."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from autoplan.layouts import BP, B, P
from autoplan.strategies.across_ranks import box, named_argument, row_count, wide_dtype, widened
from autoplan.strategies.local import LocalContext
from autoplan.strategies.reductions import (
    REDUCED,
    reduced_dims,
    reduction,
    shaped,
    split_axes,
    whole,
)
from autoplan.strategies.rule import InnerCollective, OpCall, Rule

aten = torch.ops.aten


def _correction(call: OpCall) -> float:
    if call.op.endswith(".correction"):
        given = named_argument(call, "correction")
        return 1.0 if given is None else float(given)
    return float(named_argument(call, "unbiased"))


def _spread(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Variance or deviation, and mean: first the mean of all ranks, then the squares around it.

    Every rank uses the mean on its own rows too, so there its gradient is an addend.
    """
    call, axes = context.call, split_axes(context)
    if not axes:
        return context.same_op(x, *args, **kwargs)
    dims = reduced_dims(call)
    count = math.prod(call.inputs[0].shape[i] for i in dims)
    x = widened(x, call.inputs[0].dtype)
    mean = box(context, torch.div(aten.sum.dim_IntList(x, dims, True), count), axes, P, B)
    around = torch.sub(x, box(context, mean, axes, B, BP))
    squares = aten.sum.dim_IntList(torch.mul(around, around), dims, True)
    total = box(context, squares, axes, P, B)
    result = torch.div(total, max(count - _correction(call), 0.0))
    if call.op.startswith("aten.std"):
        result = _root(result)
    if len(call.outputs) == 1:
        return shaped(call, result)
    return shaped(call, result), shaped(call, mean, 1)


def _root(x: Any) -> Any:
    """Square root, whose gradient at zero is zero: as torch has it for deviations and norms."""
    zero = torch.eq(x, 0)
    root = torch.sqrt(aten.masked_fill.Scalar(x, zero, 1.0))
    return aten.masked_fill.Scalar(root, zero, 0.0)


def _spread_inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    dtype = call.inputs[0].dtype
    size = row_count(call, context, reduced_dims(call)) * wide_dtype(dtype).itemsize
    for axis in split_axes(context):
        yield InnerCollective("all_reduce", size, axis)
        yield InnerCollective("all_reduce", size, axis)
        if call.inputs[0].requires_grad:
            yield InnerCollective("all_reduce", size, axis, backward=True)


def _order(call: OpCall) -> float:
    name = "ord" if "linalg" in call.op else "p"
    given = named_argument(call, name)
    return 2.0 if given is None else float(given)


def _norm(call: OpCall) -> str:
    """Vector norms of order 1 and 2 are sums; other norms need their dimensions whole."""
    matrix = call.op == "aten.linalg_norm.default" and named_argument(call, "ord") is not None
    vector = not matrix or len(reduced_dims(call)) == 1
    plain = vector and named_argument(call, "dtype") is None
    return reduction(call) if plain and _order(call) in (1, 2) else whole(call)


def _vector_norm(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    call, axes = context.call, split_axes(context)
    if not axes:
        return context.same_op(x, *args, **kwargs)
    x = widened(x, call.inputs[0].dtype)
    sizes = torch.abs(x) if _order(call) == 1 else torch.mul(x, x)
    total = box(context, aten.sum.dim_IntList(sizes, reduced_dims(call), True), axes, P, B)
    return shaped(call, total if _order(call) == 1 else _root(total))


def _norm_inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    size = row_count(call, context, reduced_dims(call)) * wide_dtype(call.inputs[0].dtype).itemsize
    for axis in split_axes(context):
        yield InnerCollective("all_reduce", size, axis)


_VARIANCE = Rule(reduction, completes=REDUCED, saves=(0,), program=_spread, inner=_spread_inner)
_DEVIATION = Rule(
    reduction, completes=REDUCED, saves=(0, "output"), program=_spread, inner=_spread_inner
)
_NORM = Rule(_norm, completes=REDUCED, saves=(0, "output"), program=_vector_norm, inner=_norm_inner)

RULES: dict[str, Rule] = {
    **{
        f"aten.{name}.{overload}": rule
        for name, rule in (
            ("var", _VARIANCE),
            ("var_mean", _VARIANCE),
            ("std", _DEVIATION),
            ("std_mean", _DEVIATION),
        )
        for overload in ("default", "dim", "correction")
    },
    "aten.linalg_vector_norm.default": _NORM,
    "aten.linalg_norm.default": _NORM,
    "aten.norm.Scalar": _NORM,
    "aten.norm.ScalarOpt_dim": _NORM,
}
