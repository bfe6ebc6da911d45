"""Examples of ops that act on each element by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from tests.strategies.examples.base import (
    EXAMPLES,
    Example,
    add,
    constant,
    eighths,
    flags,
    positive,
    real,
    whole,
)


def _overload(name: str) -> Callable[..., Any]:
    packet, overload = name.split(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return found


def _named(names: str, overload: str) -> dict[str, Callable[..., Any]]:
    """The ops themselves, by name."""
    return {f"{name}.{overload}": _overload(f"{name}.{overload}") for name in names.split()}


def _with_number(names: str, overload: str, number: float) -> dict[str, Callable[..., Any]]:
    """The ops with a number on the side where the overload takes one."""

    def call(op: Callable[..., Any]) -> Callable[..., Any]:
        left = overload == "Scalar_Tensor"
        return lambda x: op(number, x) if left else op(x, number)

    return {name: call(op) for name, op in _named(names, overload).items()}


# -- one tensor: of any numbers, of positive ones, of fractions, of whole ones ---------------

_UNARY: dict[str, Callable[..., Any]] = {
    "gelu.default": lambda x: F.gelu(x, approximate="tanh"),
    "hardtanh.default": lambda x: F.hardtanh(x, -0.5, 0.7),
    "leaky_relu.default": lambda x: F.leaky_relu(x, 0.1),
    "threshold.default": lambda x: F.threshold(x, 0.1, 0.2),
    "clamp.default": lambda x: x.clamp(-0.5, 0.5),
    "clip.default": lambda x: x.clip(-0.5, 0.5),
    "clamp_min.default": lambda x: torch.clamp_min(x, 0.1),
    "clamp_max.default": lambda x: torch.clamp_max(x, 0.1),
    "full_like.default": lambda x: torch.full_like(x, 3.0),
    "round.decimals": lambda x: torch.round(x, decimals=1),
    "div.Scalar_mode": lambda x: torch.ops.aten.div.Scalar_mode(x, 0.3, rounding_mode="floor"),
    "divide.Scalar_mode": lambda x: torch.ops.aten.divide.Scalar_mode(
        x, 0.3, rounding_mode="trunc"
    ),
    "pow.Scalar": lambda x: 2.0**x,
    "float_power.Scalar": lambda x: torch.float_power(2, x),
    "isin.Tensor_Scalar": lambda x: torch.isin(x, 0.0),
    "special_round.default": torch.special.round,
    **_with_number(
        "eq ne lt le gt ge not_equal less less_equal greater greater_equal add sub mul div "
        "subtract multiply divide true_divide rsub copysign fill remainder fmod",
        "Scalar",
        0.7,
    ),
    **_named(
        "silu relu6 hardswish hardsigmoid mish elu celu selu softplus log_sigmoid softshrink "
        "hardshrink relu tanh sigmoid exp exp2 expm1 reciprocal square abs sin cos tan sinh "
        "cosh atan asinh sinc erf erfc nan_to_num angle i0 special_i0e special_i1 special_i1e "
        "special_erfcx special_ndtr special_log_ndtr neg positive deg2rad rad2deg clone detach "
        "sign sgn floor ceil round trunc frac isnan isinf isfinite isposinf isneginf signbit "
        "zeros_like ones_like zero absolute arctan arcsinh fix negative special_erf "
        "special_erfc special_exp2 special_expit special_expm1 special_sinc",
        "default",
    ),
}
_POSITIVE: dict[str, Callable[..., Any]] = {
    "pow.Tensor_Scalar": lambda x: x**1.5,
    "float_power.Tensor_Scalar": lambda x: torch.float_power(x, 1.5),
    "polygamma.default": lambda x: torch.polygamma(1, x),
    "mvlgamma.default": lambda x: torch.mvlgamma(x, 2),
    "xlogy.Scalar_Self": lambda x: torch.xlogy(2.0, x),
    "xlogy.Scalar_Other": lambda x: torch.xlogy(x, 2.0),
    **_named(
        "log log1p log2 log10 rsqrt sqrt lgamma digamma special_entr special_gammaln "
        "special_log1p special_psi",
        "default",
    ),
}
_FRACTION = _named(
    "asin acos atanh logit erfinv special_ndtri arcsin arccos arctanh special_logit special_erfinv",
    "default",
)
_WHOLE = {
    **_with_number(
        "bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__ __lshift__ __rshift__ "
        "floor_divide",
        "Scalar",
        3,
    ),
    **_with_number("bitwise_left_shift bitwise_right_shift", "Tensor_Scalar", 3),
    **_with_number("bitwise_left_shift bitwise_right_shift remainder", "Scalar_Tensor", 5),
}
for _table, _tensor in (
    (_UNARY, real(7, 4)),
    (_POSITIVE, positive(7, 4)),
    (_FRACTION, real(7, 4).sigmoid()),
    (_named("acosh arccosh", "default"), positive(7, 4) + 1),
    (_WHOLE, whole(1, 9, 7, 4)),
):
    for _op, _fn in _table.items():
        add(_op, uneven=(_fn, _tensor))
add("gelu.default", exact=(F.gelu, real(5)), scalar=(F.gelu, real()))
add("pow.Tensor_Scalar", integers=(lambda x: x**2, whole(0, 9, 7, 5)))

# -- two tensors ---------------------------------------------------------------------------

_BINARY: dict[str, Callable[..., Any]] = {
    "add.Tensor": torch.add,
    "sub.Tensor": lambda x, y: torch.sub(x, y, alpha=3),
    "mul.Tensor": torch.mul,
    "div.Tensor": torch.div,
    "maximum.default": torch.maximum,
    "minimum.default": torch.minimum,
    "eq.Tensor": torch.eq,
    "ne.Tensor": torch.ne,
    "lt.Tensor": torch.lt,
    "le.Tensor": torch.le,
    "gt.Tensor": torch.gt,
    "ge.Tensor": torch.ge,
    "remainder.Tensor": lambda x, y: torch.remainder(x, y),
    "rsub.Tensor": lambda x, y: torch.rsub(x, y, alpha=3),
}
for _op, _fn in _BINARY.items():
    add(
        _op,
        same=(_fn, real(5, 4), real(5, 4)),
        row=(_fn, real(4, 7), real(7)),
        column=(_fn, real(7, 1), real(4, 1, 6)),
        scalar=(_fn, real(4, 7), real()),
        integers=(_fn, whole(1, 5, 7, 4), 2 ** whole(0, 3, 4)),
    )
_BINARY_MORE: dict[str, Callable[..., Any]] = {
    "div.Tensor_mode": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "divide.Tensor_mode": lambda x, y: torch.divide(x, y, rounding_mode="trunc"),
    "clamp.Tensor": lambda x, y: torch.clamp(x, max=y),
    "clip.Tensor": lambda x, y: torch.clip(x, min=y),
    "clamp_min.Tensor": torch.clamp_min,
    "clamp_max.Tensor": torch.clamp_max,
    "copysign.Tensor": torch.copysign,
    "fmod.Tensor": lambda x, y: torch.fmod(x, y),
    "pow.Tensor_Tensor": lambda x, y: x**y,
    "float_power.Tensor_Tensor": torch.float_power,
    "xlogy.Tensor": torch.xlogy,
    **_named(
        "fmax fmin atan2 arctan2 hypot logaddexp logaddexp2 special_xlogy special_xlog1py",
        "default",
    ),
    **_named(
        "subtract multiply divide true_divide not_equal less less_equal greater greater_equal",
        "Tensor",
    ),
    **_named("max min", "other"),
}
for _op, _fn in _BINARY_MORE.items():
    add(_op, row=(_fn, positive(4, 7), positive(7)), column=(_fn, positive(7, 1), positive(1, 4)))
for _op, _fn in _named("heaviside isclose", "default").items():
    add(_op, row=(_fn, constant(real(7, 4)), constant(real(4))))
add("ldexp.Tensor", row=(torch.ldexp, real(7, 4), whole(0, 4, 4)))
add("clamp.Tensor", both=(torch.clamp, real(7, 4), real(4) - 1, real(7, 1) + 1))
add("div.Tensor_mode", true=(lambda x, y: torch.div(x, y, rounding_mode=None), real(7, 4), real(4)))
add("floor_divide.default", row=(torch.floor_divide, whole(0, 9, 7, 4), whole(1, 5, 4)))
add("add.Tensor", number=(lambda x: x + 2.0, real(4, 5)), twice=(lambda x: x + x, real(4, 5)))
add("sub.Tensor", number=(lambda x: x - 2.0, real(4, 5)))
add("mul.Tensor", number=(lambda x: x * 3, real(4, 5)), twice=(lambda x: x * x, real(4, 5)))
add("mul.Tensor", mask=(torch.mul, real(4, 5), flags(4, 1)))
add("div.Tensor", number=(lambda x: x / 3, real(4, 5)), mixed=(torch.div, whole(0, 9, 4), real(4)))
add("div.Tensor", constant=(torch.div, real(4, 5), constant(positive(5))))

_LOGICAL = {
    **_named("logical_and logical_or logical_xor", "default"),
    **_named("bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__", "Tensor"),
}
_INTEGRAL = {
    **_named("gcd lcm", "default"),
    **_named("bitwise_left_shift bitwise_right_shift __lshift__ __rshift__", "Tensor"),
}
for _op, _fn in _LOGICAL.items():
    add(_op, row=(_fn, flags(7, 4), flags(4)))
for _op, _fn in _INTEGRAL.items():
    add(_op, row=(_fn, whole(1, 99, 7, 4), whole(1, 5, 4)))
add("logical_not.default", uneven=(torch.logical_not, flags(7, 4)))
add("bitwise_not.default", uneven=(torch.bitwise_not, flags(7, 4)))
add("isin.Tensor_Tensor", some=(torch.isin, whole(0, 9, 7, 4), whole(0, 9, 4)))

# -- three, and choices --------------------------------------------------------------------

add(
    "where.self",
    same=(torch.where, flags(5, 4), real(5, 4), real(5, 4)),
    broadcast=(torch.where, flags(7, 1), real(4), real(7, 4)),
)
add(
    "where.ScalarOther",
    uneven=(lambda c, x: torch.where(c, x, -1.0), flags(4), real(7, 4)),
    zero=(lambda c, x: torch.where(c, x, 0.0), flags(4), real(7, 4)),
)
add(
    "where.ScalarSelf",
    uneven=(lambda c, x: torch.where(c, -1.0, x), flags(4), real(7, 4)),
    zero=(lambda c, x: torch.where(c, 0, x), flags(7, 1), real(7, 4)),
)
add("where.Scalar", uneven=(lambda c: torch.where(c, 1.0, 2.0), flags(7, 4)))
add(
    "masked_fill.Scalar",
    same=(lambda x, m: x.masked_fill(m, -1.0), real(5, 4), flags(5, 4)),
    row=(lambda x, m: x.masked_fill(m, float("-inf")), real(7, 4), flags(4)),
    zero=(lambda x, m: x.masked_fill(m, 0.0), real(7, 4), flags(7, 1)),
)
add("masked_fill.Tensor", row=(torch.masked_fill, real(7, 4), flags(4), real()))
add(
    "lerp.Scalar",
    same=(lambda x, y: torch.lerp(x, y, 0.3), real(5, 4), real(5, 4)),
    row=(lambda x, y: torch.lerp(x, y, 0.3), real(7, 4), real(4)),
)
add("lerp.Tensor", row=(torch.lerp, real(7, 4), real(4), real(7, 1)))
for _op, _fn in {
    "addcmul.default": lambda x, y, z: torch.addcmul(x, y, z, value=0.3),
    "addcdiv.default": lambda x, y, z: torch.addcdiv(x, y, z, value=0.3),
}.items():
    add(_op, same=(_fn, real(5, 4), real(5, 4), positive(5, 4)))
    add(_op, row=(_fn, real(4), real(7, 1), positive(7, 4)))
add("glu.default", last=(F.glu, real(7, 4)), middle=(lambda x: F.glu(x, 1), real(5, 4, 3)))
add(
    "prelu.default",
    channel=(F.prelu, real(5, 4, 3), real(4)),
    one=(F.prelu, real(7, 4), real(1)),
    matrix=(F.prelu, real(7, 4), real(4)),
)
add("_prelu_kernel.default", row=(_overload("_prelu_kernel.default"), real(7, 4), real(1, 4)))

# -- casts ---------------------------------------------------------------------------------

EXAMPLES.append(
    Example(
        "aten.empty_like.default",
        "uneven",
        torch.empty_like,
        (real(7, 4),),
        reference=lambda x: torch.zeros_like(x),
    )
)
add(
    "type_as.default",
    same=(lambda x, y: x.type_as(y), eighths, real(7, 4)),
    row=(lambda x, y: x.type_as(y), whole(0, 9, 7, 4), real(4)),
    other=(lambda x, y: x.type_as(y), eighths, real(3, 5)),
    narrower=(lambda x, y: x.type_as(y), eighths, real(7, 4).bfloat16()),
)
for _op in ("to.dtype", "to.device", "_to_copy.default"):
    _cast: Callable[..., Any] = {
        "to.dtype": lambda x, dtype: x.to(dtype),
        "to.device": lambda x, dtype: x.to("cpu", dtype),
        "_to_copy.default": lambda x, dtype: torch.ops.aten._to_copy.default(x, dtype=dtype),
    }[_op]
    add(
        _op,
        wider=(lambda x, cast=_cast: cast(x, torch.float64), eighths),
        narrower=(lambda x, cast=_cast: cast(x, torch.bfloat16), eighths),
        integer=(lambda x, cast=_cast: cast(x, torch.int64), eighths),
        real=(lambda x, cast=_cast: cast(x, torch.float64), whole(0, 9, 7, 4)),
        flag=(lambda x, cast=_cast: cast(x, torch.float64), flags(7, 4)),
    )
