"""Ops that reduce or normalise along dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, Rule


def _reduced_dims(call: OpCall) -> list[int]:
    ndim = len(call.inputs[0].shape)
    dims = call.argument(1, "dim") if ".dim" in call.op else None
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return list(range(ndim))
    if ndim == 0:
        return []
    return [dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)]


def _reduction(whole: bool) -> Callable[[OpCall], str]:
    """`whole`: the reduced dimensions cannot be split; otherwise they are summed over."""

    def notation(call: OpCall) -> str:
        names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
        dims = _reduced_dims(call)
        keep = len(call.outputs[0].shape) == len(names)
        kept = [("1" if keep else "") if i in dims else name for i, name in enumerate(names)]
        if whole:
            names = [f"[{name}]" if i in dims else name for i, name in enumerate(names)]
        return f"{' '.join(names)} -> {' '.join(filter(None, kept))}"

    return notation


def _mean(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Mean over split dimensions: the local sum over the global count, an addend of the mean."""
    call = context.call
    dims = _reduced_dims(call)
    if not context.axes(*(f"d{i}" for i in dims)):
        return context.same_op(x, *args, **kwargs)
    keep = len(call.outputs[0].shape) == len(call.inputs[0].shape)
    total = torch.ops.aten.sum.dim_IntList(x, dims, keep, dtype=call.outputs[0].dtype)
    return torch.ops.aten.div.Tensor(total, math.prod(call.inputs[0].shape[i] for i in dims))


def _along(position: int) -> Callable[[OpCall], str]:
    """One dimension, given at `position`, is whole on every rank."""

    def notation(call: OpCall) -> str:
        names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
        if names:
            names[call.dim(position)] = "[k]"
        return f"{' '.join(names)} -> {' '.join(names)}"

    return notation


def _layer_norm(call: OpCall) -> str:
    """Normalised dimensions are whole; scale and shift carry them alone."""
    whole = [f"[k{i}]" for i in range(len(call.argument(1, "normalized_shape")))]
    scales = [" ".join(whole)] * (len(call.inputs) - 1)
    return f"{', '.join([' '.join(['*b', *whole]), *scales])} -> *b {' '.join(whole)}"


_LINEAR = (frozenset({0}),)
_SUM = Rule(_reduction(whole=False), sums=True, partial=_LINEAR)
_MEAN = Rule(_reduction(whole=False), sums=True, partial=_LINEAR, program=_mean)
_EXTREME = Rule(_reduction(whole=True), saves=(0, "output"))
_NORM = Rule(_layer_norm, saves=(0,))

RULES: dict[str, Rule] = {
    "aten.sum.default": _SUM,
    "aten.sum.dim_IntList": _SUM,
    "aten.mean.default": _MEAN,
    "aten.mean.dim": _MEAN,
    "aten.any.dim": _EXTREME,
    "aten.all.dim": _EXTREME,
    "aten.softmax.int": Rule(_along(1), saves=("output",)),
    "aten.log_softmax.int": Rule(_along(1), saves=("output",)),
    "aten._softmax.default": Rule(_along(1), saves=("output",)),
    "aten.cumsum.default": Rule(_along(1), partial=_LINEAR),
    "aten.layer_norm.default": _NORM,
    "aten.rms_norm.default": _NORM,
}
