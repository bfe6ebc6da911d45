"""Ops that act on each element by itself: every dimension can be split."""

from __future__ import annotations

from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, Rule


def _pointwise(call: OpCall) -> str:
    """`*b` for every tensor; dimensions of size one broadcast."""
    return ", ".join(["*b"] * len(call.inputs)) + " -> " + ", ".join(["*b"] * len(call.outputs))


def _additive(call: OpCall) -> tuple[frozenset[int], ...]:
    """P passes where every addend is a tensor; a number would be added once a rank."""
    return (frozenset({0, 1}),) if len(call.inputs) == 2 else ()


def _bilinear(call: OpCall) -> tuple[frozenset[int], ...]:
    """P passes through either factor, the other one whole."""
    return tuple(frozenset({i}) for i in range(len(call.inputs)))


def _factors(call: OpCall) -> tuple[int | str, ...]:
    """A factor is kept for the gradient of the other one."""
    if len(call.inputs) < 2:
        return ()
    first, second = call.inputs
    return (*((0,) if second.requires_grad else ()), *((1,) if first.requires_grad else ()))


def _quotient(call: OpCall) -> tuple[int | str, ...]:
    return (0, 1) if len(call.inputs) == 2 else ()


def _widening(call: OpCall) -> tuple[frozenset[int], ...]:
    """A cast is linear where it does not round addends before they are summed."""
    source, target = call.inputs[0].dtype, call.outputs[0].dtype
    both_float = source.is_floating_point and target.is_floating_point
    return (frozenset({0}),) if both_float and target.itemsize >= source.itemsize else ()


def _cast(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The type only: the captured device is where the model was, not where the program runs."""
    return torch.ops.aten.to.dtype(x, context.call.outputs[0].dtype)


_NONLINEAR = Rule(_pointwise, saves=(0,))
_FROM_OUTPUT = Rule(_pointwise, saves=("output",))
_CONSTANT = Rule(_pointwise)
_ADDITIVE = Rule(_pointwise, partial=_additive)
_LINEAR = Rule(_pointwise, partial=(frozenset({0}),))

_SAVES_INPUT = (
    "gelu.default silu.default relu6.default hardtanh.default hardswish.default mish.default "
    "pow.Tensor_Scalar square.default log.default log1p.default cos.default sin.default "
    "erf.default abs.default leaky_relu.default elu.default softplus.default log_sigmoid.default "
    "clamp.default clamp_min.default clamp_max.default"
)
_SAVES_OUTPUT = (
    "relu.default tanh.default sigmoid.default exp.default rsqrt.default sqrt.default "
    "reciprocal.default"
)
_WITHOUT_GRADIENT = (
    "eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor "
    "gt.Scalar ge.Tensor ge.Scalar logical_not.default logical_and.default logical_or.default "
    "bitwise_not.default bitwise_and.Tensor bitwise_or.Tensor __and__.Tensor __or__.Tensor "
    "isnan.default isinf.default sign.default floor.default ceil.default round.default "
    "floor_divide.default remainder.Scalar remainder.Tensor zeros_like.default ones_like.default "
    "full_like.default"
)

RULES: dict[str, Rule] = {
    **{f"aten.{name}": _NONLINEAR for name in _SAVES_INPUT.split()},
    **{f"aten.{name}": _FROM_OUTPUT for name in _SAVES_OUTPUT.split()},
    **{f"aten.{name}": _CONSTANT for name in _WITHOUT_GRADIENT.split()},
    "aten.add.Tensor": _ADDITIVE,
    "aten.sub.Tensor": _ADDITIVE,
    "aten.add.Scalar": _CONSTANT,
    "aten.sub.Scalar": _CONSTANT,
    "aten.rsub.Scalar": _CONSTANT,
    "aten.neg.default": _LINEAR,
    "aten.mul.Scalar": _LINEAR,
    "aten.div.Scalar": _LINEAR,
    "aten.mul.Tensor": Rule(_pointwise, partial=_bilinear, saves=_factors),
    "aten.div.Tensor": Rule(_pointwise, partial=(frozenset({0}),), saves=_quotient),
    "aten.maximum.default": Rule(_pointwise, saves=(0, 1)),
    "aten.minimum.default": Rule(_pointwise, saves=(0, 1)),
    "aten.where.self": Rule(_pointwise, partial=(frozenset({1, 2}),), saves=(0,)),
    "aten.where.ScalarOther": Rule(_pointwise, saves=(0,)),
    "aten.masked_fill.Scalar": Rule(_pointwise, saves=(1,)),
    "aten.to.dtype": Rule(_pointwise, partial=_widening),
    "aten.to.device": Rule(_pointwise, partial=_widening, program=_cast),
    "aten._to_copy.default": Rule(_pointwise, partial=_widening),
    "aten.clone.default": _LINEAR,
    "aten.detach.default": Rule(_pointwise, kind="free"),
    "aten.lerp.Scalar": Rule(_pointwise, partial=(frozenset({0, 1}),)),
}
