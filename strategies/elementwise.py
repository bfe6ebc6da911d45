"""Ops that act on each element by itself: every dimension can be split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, Rule, any_one

Saves = tuple[int | str, ...]


def _pointwise(call: OpCall) -> str:
    """`*b` for every tensor; dimensions of size one broadcast."""
    return ", ".join(["*b"] * len(call.inputs)) + " -> " + ", ".join(["*b"] * len(call.outputs))


def _additive(call: OpCall) -> tuple[frozenset[int], ...]:
    """P passes where every addend is a tensor; a number would be added once a rank."""
    return (frozenset({0, 1}),) if len(call.inputs) == 2 else ()


def _unless_filled(position: int, name: str) -> Callable[[OpCall], tuple[frozenset[int], ...]]:
    """P passes the elements that stay where the number put for the others is zero."""

    def partial(call: OpCall) -> tuple[frozenset[int], ...]:
        tensor = 0 if call.op.startswith("aten.masked_fill") else 1
        return (frozenset({tensor}),) if call.argument(position, name) == 0 else ()

    return partial


def _unrounded(call: OpCall) -> tuple[frozenset[int], ...]:
    return (frozenset({0}),) if call.argument(2, "rounding_mode") is None else ()


def _factors(call: OpCall) -> Saves:
    """A factor is kept for the gradient of the other one."""
    if len(call.inputs) < 2:
        return ()
    first, second = call.inputs
    return (*((0,) if second.requires_grad else ()), *((1,) if first.requires_grad else ()))


def _quotient(call: OpCall) -> Saves:
    """The divisor, and the dividend for the gradient of the divisor."""
    if len(call.inputs) < 2:
        return ()
    return (0, 1) if call.inputs[1].requires_grad else (1,)


def _all_inputs(call: OpCall) -> Saves:
    return tuple(range(len(call.inputs)))


def _inputs_and_output(call: OpCall) -> Saves:
    return (*range(len(call.inputs)), "output")


def _widening(call: OpCall) -> tuple[frozenset[int], ...]:
    """A cast is linear where it does not round addends before they are summed."""
    source, target = call.inputs[0].dtype, call.outputs[0].dtype
    both_float = source.is_floating_point and target.is_floating_point
    return (frozenset({0}),) if both_float and target.itemsize >= source.itemsize else ()


def _cast(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The type only: the captured device is where the model was, not where the program runs."""
    return torch.ops.aten.to.dtype(x, context.call.outputs[0].dtype)


def _zeros(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """What lies in memory by chance would lie there otherwise on every rank."""
    return torch.ops.aten.zeros_like.default(x, dtype=context.call.outputs[0].dtype)


def _type_as(call: OpCall) -> str:
    """The second tensor gives its type alone; it is split too where the shapes are alike."""
    shape, other = call.input_shapes
    alike = all(a in (1, b) or b == 1 for a, b in zip(shape[::-1], other[::-1], strict=False))
    return "*b, *b -> *b" if alike else "*b, *c -> *b"


def _glu(call: OpCall) -> str:
    """The halves of one dimension lie apart, so it is whole."""
    names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
    dim = call.dim(1)
    before, after = ([*names[:dim], f"[{each}]", *names[dim + 1 :]] for each in ("both", "half"))
    return f"{' '.join(before)} -> {' '.join(after)}"


def _prelu(call: OpCall) -> str:
    """One slope for all, or one a channel, which is dimension 1."""
    if call.inputs[1].numel == 1:
        return "*b, *w -> *b"
    return "n c *d, c -> n c *d"


_NONLINEAR = Rule(_pointwise, saves=_all_inputs)
_FROM_OUTPUT = Rule(_pointwise, saves=("output",))
_POWER = Rule(_pointwise, saves=_inputs_and_output)
_CONSTANT = Rule(_pointwise)
_ADDITIVE = Rule(_pointwise, partial=_additive)
_LINEAR = Rule(_pointwise, partial=(frozenset({0}),))
_PRODUCT = Rule(_pointwise, partial=any_one, saves=_factors)
_QUOTIENT = Rule(_pointwise, partial=_unrounded, saves=_quotient)

_SAVES_INPUTS = (
    "gelu.default silu.default relu6.default hardtanh.default hardswish.default mish.default "
    "hardsigmoid.default celu.default selu.default elu.default leaky_relu.default "
    "threshold.default hardshrink.default softshrink.default softplus.default "
    "log_sigmoid.default pow.Tensor_Scalar float_power.Tensor_Scalar square.default "
    "abs.default log.default log1p.default log2.default log10.default logit.default "
    "sin.default cos.default sinh.default cosh.default asin.default acos.default atan.default "
    "asinh.default acosh.default atanh.default sinc.default erf.default erfc.default "
    "erfinv.default lgamma.default digamma.default polygamma.default mvlgamma.default "
    "i0.default "
    "special_entr.default special_ndtr.default "
    "nan_to_num.default angle.default "
    "clamp.default clamp.Tensor clamp_min.default clamp_min.Tensor clamp_max.default "
    "clamp_max.Tensor maximum.default minimum.default "
    "max.other min.other fmax.default fmin.default atan2.default "
    "fmod.Tensor remainder.Tensor xlogy.Tensor "
    "xlogy.Scalar_Other xlogy.Scalar_Self special_xlogy.default special_xlog1py.default "
    "logaddexp.default logaddexp2.default ldexp.Tensor"
)
_SAVES_OUTPUT = (
    "relu.default tanh.default sigmoid.default exp.default exp2.default expm1.default "
    "tan.default rsqrt.default sqrt.default reciprocal.default special_ndtri.default"
)
_SAVES_BOTH = (
    "pow.Tensor_Tensor pow.Scalar float_power.Tensor_Tensor float_power.Scalar hypot.default "
    "sgn.default special_i0e.default special_i1.default special_i1e.default "
    "special_erfcx.default special_log_ndtr.default"
)
_WITHOUT_GRADIENT = (
    "eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor "
    "gt.Scalar ge.Tensor ge.Scalar isnan.default isinf.default isfinite.default "
    "isposinf.default isneginf.default isclose.default signbit.default "
    "logical_not.default logical_and.default logical_or.default logical_xor.default "
    "bitwise_not.default bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor "
    "bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar bitwise_left_shift.Tensor "
    "bitwise_left_shift.Tensor_Scalar bitwise_left_shift.Scalar_Tensor "
    "bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar "
    "bitwise_right_shift.Scalar_Tensor __and__.Tensor __and__.Scalar __or__.Tensor "
    "__or__.Scalar __xor__.Tensor __xor__.Scalar __lshift__.Tensor __lshift__.Scalar "
    "__rshift__.Tensor __rshift__.Scalar gcd.default lcm.default heaviside.default "
    "sign.default floor.default ceil.default round.default round.decimals "
    "trunc.default frac.default floor_divide.default floor_divide.Scalar remainder.Scalar "
    "remainder.Scalar_Tensor fmod.Scalar div.Scalar_mode zeros_like.default ones_like.default "
    "full_like.default fill.Scalar zero.default where.Scalar"
)
"""Ops whose gradient is zero, itself, or none: nothing is kept for it."""

_ALIASES = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctanh": "atanh",
    "arctan2": "atan2",
    "clip": "clamp",
    "divide": "div",
    "fix": "trunc",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_erfinv": "erfinv",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_gammaln": "lgamma",
    "special_log1p": "log1p",
    "special_logit": "logit",
    "special_psi": "digamma",
    "special_round": "round",
    "special_sinc": "sinc",
    "subtract": "sub",
    "true_divide": "div",
}
"""Other names of ops, which the captured graph keeps as the model called them."""

_NAMED: dict[str, Rule] = {
    **{f"aten.{name}": _NONLINEAR for name in _SAVES_INPUTS.split()},
    **{f"aten.{name}": _FROM_OUTPUT for name in _SAVES_OUTPUT.split()},
    **{f"aten.{name}": _POWER for name in _SAVES_BOTH.split()},
    **{f"aten.{name}": _CONSTANT for name in _WITHOUT_GRADIENT.split()},
    "aten.add.Tensor": _ADDITIVE,
    "aten.sub.Tensor": _ADDITIVE,
    "aten.rsub.Tensor": _ADDITIVE,
    "aten.add.Scalar": _CONSTANT,
    "aten.sub.Scalar": _CONSTANT,
    "aten.rsub.Scalar": _CONSTANT,
    "aten.neg.default": _LINEAR,
    "aten.positive.default": _LINEAR,
    "aten.deg2rad.default": _LINEAR,
    "aten.rad2deg.default": _LINEAR,
    "aten.mul.Scalar": _LINEAR,
    "aten.div.Scalar": _LINEAR,
    "aten.mul.Tensor": _PRODUCT,
    "aten.div.Tensor": Rule(_pointwise, partial=(frozenset({0}),), saves=_quotient),
    "aten.div.Tensor_mode": _QUOTIENT,
    "aten.addcmul.default": Rule(
        _pointwise, partial=(frozenset({0, 1}), frozenset({0, 2})), saves=(1, 2)
    ),
    "aten.addcdiv.default": Rule(_pointwise, partial=(frozenset({0, 1}),), saves=(1, 2)),
    "aten.where.self": Rule(_pointwise, partial=(frozenset({1, 2}),), saves=(0,)),
    "aten.where.ScalarOther": Rule(_pointwise, partial=_unless_filled(2, "other"), saves=(0,)),
    "aten.where.ScalarSelf": Rule(_pointwise, partial=_unless_filled(1, "self"), saves=(0,)),
    "aten.masked_fill.Scalar": Rule(_pointwise, partial=_unless_filled(2, "value"), saves=(1,)),
    "aten.masked_fill.Tensor": Rule(_pointwise, partial=(frozenset({0, 2}),), saves=(1,)),
    "aten.to.dtype": Rule(_pointwise, partial=_widening),
    "aten.to.device": Rule(_pointwise, partial=_widening, program=_cast),
    "aten._to_copy.default": Rule(_pointwise, partial=_widening),
    "aten.type_as.default": Rule(_type_as, partial=_widening),
    "aten.clone.default": _LINEAR,
    "aten.detach.default": Rule(_pointwise, kind="free"),
    "aten.empty_like.default": Rule(_pointwise, program=_zeros),
    "aten.copysign.Tensor": Rule(_pointwise, saves=(0, "output")),
    "aten.copysign.Scalar": Rule(_pointwise, saves=(0, "output")),
    "aten.lerp.Scalar": Rule(_pointwise, partial=(frozenset({0, 1}),)),
    "aten.lerp.Tensor": Rule(_pointwise, partial=(frozenset({0, 1}),), saves=_all_inputs),
    "aten.isin.Tensor_Tensor": Rule("*b, *k -> *b"),
    "aten.isin.Tensor_Scalar": _CONSTANT,
    "aten.glu.default": Rule(_glu, saves=(0,)),
    "aten.prelu.default": Rule(_prelu, saves=(0, 1)),
    "aten._prelu_kernel.default": Rule(_pointwise, saves=(0, 1)),
}

RULES: dict[str, Rule] = {
    **_NAMED,
    **{
        f"aten.{alias}.{overload}": _NAMED[f"aten.{name}.{overload}"]
        for alias, name in _ALIASES.items()
        for overload in getattr(torch.ops.aten, alias).overloads()
        if f"aten.{name}.{overload}" in _NAMED
    },
}
