"""Ops that act on each element by itself: every dimension can be split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import pointwise, result_bytes, scaled
from autoplan.strategies.rule import OpCall, OpMemory, Rule, any_one

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


def _difference(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """The gradient passes to what is taken from; the other one's is its negative."""
    first = 1 if call.op.startswith("aten.rsub") else 0
    found = pointwise(passes=True)(call, context, plain)
    other = call.inputs[1 - first] if len(call.inputs) == 2 else None
    times = 0
    if other is not None and other.requires_grad:
        times = 1 if other.shape == call.outputs[0].shape else 2
    return replace(
        found,
        backward=times * result_bytes(call, context),
        passes=tuple(i for i in found.passes if i == first),
    )


def _quotient_memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """The divisor's gradient is `-g a / b / b`, step by step."""
    divides = len(call.inputs) == 2 and call.inputs[1].requires_grad
    return pointwise(2 if divides else 0)(call, context, plain)


def _same_type(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """A cast to the type that the tensor has returns it as it is."""
    same = call.inputs[0].dtype == call.outputs[0].dtype
    return replace(plain, passes=(0,) if same and call.inputs[0].requires_grad else ())


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


_CONSTANT = Rule(_pointwise)
_PASSING = Rule(_pointwise, memory=pointwise(passes=True))
_ADDITIVE = Rule(_pointwise, partial=_additive, memory=pointwise(passes=True))
_DIFFERENCE = Rule(_pointwise, partial=_additive, memory=_difference)
_LINEAR = Rule(_pointwise, partial=(frozenset({0}),), memory=pointwise())
_PRODUCT = Rule(_pointwise, partial=any_one, saves=_factors, memory=pointwise())
_QUOTIENT = Rule(_pointwise, partial=_unrounded, saves=_quotient, memory=_quotient_memory)

_SAVES_INPUTS = (
    "gelu.default silu.default relu6.default hardtanh.default hardswish.default mish.default "
    "hardsigmoid.default celu.default selu.default elu.default leaky_relu.default "
    "threshold.default hardshrink.default softshrink.default softplus.default "
    "pow.Tensor_Scalar float_power.Tensor_Scalar square.default "
    "abs.default log.default log1p.default log2.default log10.default logit.default "
    "sin.default cos.default sinh.default cosh.default asin.default acos.default atan.default "
    "asinh.default acosh.default atanh.default sinc.default erf.default erfc.default "
    "erfinv.default lgamma.default digamma.default polygamma.default mvlgamma.default "
    "i0.default "
    "special_entr.default "
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
_TEMPORARIES: dict[float, str] = {
    1: (
        "pow.Scalar float_power.Scalar copysign.Tensor copysign.Scalar exp2.default expm1.default "
        "abs.default sin.default sinh.default cosh.default i0.default polygamma.default "
        "xlogy.Scalar_Self log1p.default log2.default log10.default sqrt.default lgamma.default "
        "digamma.default maximum.default minimum.default max.other min.other fmax.default "
        "fmin.default"
    ),
    2: (
        "reciprocal.default square.default cos.default tan.default atan.default "
        "pow.Tensor_Scalar float_power.Tensor_Scalar rsqrt.default remainder.Tensor fmod.Tensor"
    ),
    3: (
        "asinh.default special_erfcx.default mvlgamma.default special_entr.default atanh.default "
        "acosh.default"
    ),
    4: (
        "erf.default erfc.default special_i0e.default asin.default erfinv.default "
        "special_ndtri.default special_i1.default pow.Tensor_Tensor float_power.Tensor_Tensor"
    ),
    5: "acos.default",
    6: "special_log_ndtr.default special_i1e.default",
    7: "sinc.default",
}
"""Tensors of the result's size that a gradient formula holds at once, beside its result."""

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

_BACKWARD = {name: held for held, names in _TEMPORARIES.items() for name in names.split()}


def _nonlinear(names: str, saves: Saves | Callable[[OpCall], Saves]) -> dict[str, Rule]:
    return {
        f"aten.{name}": Rule(_pointwise, saves=saves, memory=pointwise(_BACKWARD.get(name, 0.0)))
        for name in names.split()
    }


_NAMED: dict[str, Rule] = {
    **_nonlinear(_SAVES_INPUTS, _all_inputs),
    **_nonlinear(_SAVES_OUTPUT, ("output",)),
    **_nonlinear(_SAVES_BOTH, _inputs_and_output),
    **{f"aten.{name}": _CONSTANT for name in _WITHOUT_GRADIENT.split()},
    "aten.special_ndtr.default": Rule(_pointwise, memory=scaled(kept=1, forward=2, backward=5)),
    "aten.log_sigmoid.default": Rule(_pointwise, saves=(0,), memory=scaled(kept=1)),
    "aten.add.Tensor": _ADDITIVE,
    "aten.sub.Tensor": _DIFFERENCE,
    "aten.rsub.Tensor": _DIFFERENCE,
    "aten.add.Scalar": _PASSING,
    "aten.sub.Scalar": _PASSING,
    "aten.rsub.Scalar": _CONSTANT,
    "aten.neg.default": _LINEAR,
    "aten.positive.default": _LINEAR,
    "aten.deg2rad.default": _LINEAR,
    "aten.rad2deg.default": _LINEAR,
    "aten.mul.Scalar": _LINEAR,
    "aten.div.Scalar": _LINEAR,
    "aten.mul.Tensor": _PRODUCT,
    "aten.div.Tensor": Rule(
        _pointwise, partial=(frozenset({0}),), saves=_quotient, memory=_quotient_memory
    ),
    "aten.div.Tensor_mode": _QUOTIENT,
    "aten.addcmul.default": Rule(
        _pointwise, partial=(frozenset({0, 1}), frozenset({0, 2})), saves=(1, 2)
    ),
    "aten.addcdiv.default": Rule(_pointwise, partial=(frozenset({0, 1}),), saves=(1, 2)),
    "aten.where.self": Rule(
        _pointwise, partial=(frozenset({1, 2}),), saves=(0,), memory=pointwise()
    ),
    "aten.where.ScalarOther": Rule(_pointwise, partial=_unless_filled(2, "other"), saves=(0,)),
    "aten.where.ScalarSelf": Rule(_pointwise, partial=_unless_filled(1, "self"), saves=(0,)),
    "aten.masked_fill.Scalar": Rule(_pointwise, partial=_unless_filled(2, "value"), saves=(1,)),
    "aten.masked_fill.Tensor": Rule(
        _pointwise, partial=(frozenset({0, 2}),), saves=(1,), memory=pointwise()
    ),
    "aten.to.dtype": Rule(_pointwise, partial=_widening, memory=_same_type),
    "aten.to.device": Rule(_pointwise, partial=_widening, program=_cast, memory=_same_type),
    "aten._to_copy.default": Rule(_pointwise, partial=_widening, memory=_same_type),
    "aten.type_as.default": Rule(_type_as, partial=_widening),
    "aten.clone.default": Rule(
        _pointwise, partial=(frozenset({0}),), memory=pointwise(passes=True)
    ),
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
