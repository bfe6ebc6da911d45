"""Softmax and norms along dimensions that may be split: their statistics are all-reduced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from autoplan.layouts import BP, P
from autoplan.strategies.across_ranks import (
    box,
    largest,
    named_argument,
    row_count,
    wide_dtype,
    widened,
)
from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import result_bytes
from autoplan.strategies.rule import InnerCollective, OpCall, OpMemory, Rule

aten = torch.ops.aten


# -- softmax --------------------------------------------------------------------------------


def _softmax(call: OpCall) -> str:
    """The elements along `k` are weighed against each other."""
    names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
    if names:
        names[call.dim(1)] = "k"
    return f"{' '.join(names)} -> {' '.join(names)}"


def _split_softmax(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Softmax or its logarithm from the maximum and the sum of all ranks.

    Every rank divides its own elements by the sum, so that there its gradient is an addend.
    """
    call, axes = context.call, context.axes("k")
    if not axes:
        return context.same_op(x, *args, **kwargs)
    dims, dtype = [call.dim(1)], call.outputs[0].dtype
    x = widened(aten.to.dtype(x, dtype), dtype)
    shift = largest(context, x, dims, axes)
    safe = call.op == "aten._safe_softmax.default"  # zero, not nan, where all is minus infinity
    if safe:
        shift = aten.masked_fill.Scalar(shift, torch.eq(shift, -math.inf), 0.0)
    x = torch.sub(x, shift)
    powers = torch.exp(x)
    total = box(context, aten.sum.dim_IntList(powers, dims, True), axes, P, BP)
    if safe:
        total = aten.masked_fill.Scalar(total, torch.eq(total, 0), 1.0)
    if "log_softmax" in call.op:
        return aten.to.dtype(torch.sub(x, torch.log(total)), dtype)
    return aten.to.dtype(torch.div(powers, total), dtype)


def _softmax_inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    size = row_count(call, context, [call.dim(1)]) * wide_dtype(call.outputs[0].dtype).itemsize
    for axis in context.axes("k"):
        yield InnerCollective("all_reduce", size, axis)
        yield InnerCollective("all_reduce", size, axis)
        if call.inputs[0].requires_grad:
            yield InnerCollective("all_reduce", size, axis, backward=True)


def _softmax_memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """The program of split elements keeps their powers, and none of its result."""
    if not context.axes("k"):
        return plain
    size = result_bytes(call, context)
    return OpMemory((), kept=size, forward=size, backward=2 * size)


# -- norms ----------------------------------------------------------------------------------


def _normalized(call: OpCall) -> list[int]:
    """The normalised dimensions, the last ones."""
    ndim = len(call.inputs[0].shape)
    return list(range(ndim - len(call.argument(1, "normalized_shape")), ndim))


def _indices(call: OpCall) -> list[str]:
    return [f"k{i}" for i in range(len(_normalized(call)))]


def _norm(call: OpCall) -> str:
    """Scale and shift carry the normalised dimensions alone."""
    last = " ".join(_indices(call))
    return f"{', '.join([f'*b {last}', *[last] * (len(call.inputs) - 1)])} -> *b {last}"


def _split_norm(
    context: LocalContext, x: Any, normalized_shape: Any, *args: Any, **kwargs: Any
) -> Any:
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang and Sennrich 2019) from means of all ranks.

    Every rank uses the means on its own elements, so that there their gradients are addends.
    """
    call = context.call
    axes = context.axes(*_indices(call))
    if not axes:
        return context.same_op(x, normalized_shape, *args, **kwargs)
    dims, dtype = _normalized(call), call.inputs[0].dtype
    count = math.prod(normalized_shape)

    def mean(values: Any) -> Any:
        total = aten.sum.dim_IntList(values, dims, True)
        return box(context, torch.div(total, count), axes, P, BP)

    x = widened(x, dtype)
    if call.op == "aten.layer_norm.default":
        x = torch.sub(x, mean(x))
    x = torch.mul(x, torch.rsqrt(torch.add(mean(torch.mul(x, x)), _epsilon(call))))
    given = dict(zip(("weight", "bias"), args, strict=False)) | kwargs
    if given.get("weight") is not None:
        x = torch.mul(x, given["weight"])
    if call.op == "aten.layer_norm.default" and given.get("bias") is not None:
        x = torch.add(x, given["bias"])
    return aten.to.dtype(x, call.outputs[0].dtype)


def _epsilon(call: OpCall) -> float:
    """The one given, or that of the type in which the means are taken."""
    given, dtype = named_argument(call, "eps"), call.inputs[0].dtype
    return float(torch.finfo(wide_dtype(dtype)).eps if given is None else given)


def _norm_inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    size = row_count(call, context, _normalized(call)) * wide_dtype(call.inputs[0].dtype).itemsize
    for axis in context.axes(*_indices(call)):
        for _ in ("mean", "square")[call.op == "aten.rms_norm.default" :]:
            yield InnerCollective("all_reduce", size, axis)
            if call.inputs[0].requires_grad:
                yield InnerCollective("all_reduce", size, axis, backward=True)


def _norm_memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """Statistics of each row; the program of split elements keeps them centred, and normalised."""
    size = result_bytes(call, context)
    dims, wide = _normalized(call), wide_dtype(call.inputs[0].dtype).itemsize
    rows = row_count(call, context, dims) * wide
    centred = call.op == "aten.layer_norm.default"
    if not context.axes(*_indices(call)):
        if centred:
            return replace(plain, kept=2 * rows)
        scaled = size if len(call.inputs) > 1 else 0
        return replace(plain, kept=rows + scaled, backward=3 * size)
    if centred:
        return OpMemory((), kept=2 * size + 2 * rows, forward=size, backward=3 * size)
    return replace(plain, kept=size + 2 * rows, forward=size, backward=3 * size)


def _cosine(call: OpCall) -> str:
    """The dimension of the vectors is whole."""
    ndim = len(call.outputs[0].shape) + 1
    dim = int(call.argument(2, "dim", 1)) % ndim
    names = [f"d{i}" if i != dim else "[k]" for i in range(ndim)]
    inputs = [names[ndim - len(shape) :] for shape in call.input_shapes]
    kept = [name for i, name in enumerate(names) if i != dim]
    return f"{', '.join(' '.join(each) for each in inputs)} -> {' '.join(kept)}"


def _weight_norm(call: OpCall) -> str | None:
    """One length for each slice along a dimension, which alone can be split.

    Its kernel divides by the number of slices.
    """
    ndim, dim = len(call.inputs[0].shape), int(call.argument(2, "dim", 0))
    if dim < 0:
        return None
    slices = " ".join("d" if i == dim else f"[k{i}]" for i in range(ndim))
    lengths = " ".join("d" if i == dim else "1" for i in range(ndim))
    return f"{slices}, {lengths} -> {slices}"


_SOFTMAX = Rule(
    _softmax,
    saves=("output",),
    memory=_softmax_memory,
    program=_split_softmax,
    inner=_softmax_inner,
)
_NORM = Rule(_norm, saves=(0, 1, 2), memory=_norm_memory, program=_split_norm, inner=_norm_inner)

RULES: dict[str, Rule] = {
    "aten.softmax.int": _SOFTMAX,
    "aten.log_softmax.int": _SOFTMAX,
    "aten._softmax.default": _SOFTMAX,
    "aten._log_softmax.default": _SOFTMAX,
    "aten._safe_softmax.default": _SOFTMAX,
    "aten.layer_norm.default": _NORM,
    "aten.rms_norm.default": _NORM,
    "aten._weight_norm.default": Rule(_weight_norm, saves=(0, 1), needs_rows=True),
    "aten.cosine_similarity.default": Rule(_cosine, saves=(0, 1)),
}
