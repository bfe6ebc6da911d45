"""Random ops: every element's number comes from its logical position, so plans do not change it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import result_bytes
from autoplan.strategies.notation import Bound
from autoplan.strategies.rule import OpCall, OpMemory, Program, Rule

aten = torch.ops.aten

DRAWN_TOGETHER = 2**16
"""Elements of a block, as in `autoplan.runtime.random`, whose users rules must not import."""


def _dropout(context: LocalContext, x: Any, p: float, train: bool) -> Any:
    """Dropout with a mask keyed by (seed, op, step, logical position)."""
    shape = context.call.inputs[0].shape
    starts = tuple(start for start, _ in context.input_ranges(0))
    return context.comm.dropout(x, p, shape, starts, context.random_key)


def _flags(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """A flag an element, of one byte; it is drawn as two integers of eight, by blocks."""
    numel = context.output_meta().numel
    return replace(plain, kept=numel, forward=16 * min(numel, DRAWN_TOGETHER))


def _factors(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """A factor an element, or a feature map, of the tensor's type."""
    shape = context.output_meta().shape
    maps = math.prod(shape[2:]) if "feature" in call.op else 1
    size = result_bytes(call, context)
    return replace(plain, kept=size // max(maps, 1), forward=2 * size if "alpha" in call.op else 0)


def _kept(context: LocalContext, p: float, by_feature: bool) -> Any:
    """One or zero for every element, or for every feature map: later dimensions share it."""
    meta, ranges = context.call.inputs[0], list(context.input_ranges(0))
    shape = list(meta.shape)
    if by_feature:
        shape[2:] = [1] * len(shape[2:])
        ranges[2:] = [(0, 1)] * len(ranges[2:])
    starts, local = [low for low, _ in ranges], [high - low for low, high in ranges]
    keep = context.comm.keep(local, p, shape, starts, context.random_key)
    return aten.to.dtype(keep, meta.dtype)


def _feature_dropout(context: LocalContext, x: Any, p: float, train: bool) -> Any:
    """Whole feature maps fall out (Tompson et al. 2015)."""
    return torch.mul(x, torch.div(_kept(context, p, True), 1.0 - p if p < 1.0 else 1.0))


def _alpha_dropout(by_feature: bool) -> Program:
    """Dropout that keeps mean and variance of a SELU network (Klambauer et al. 2017, section 3)."""

    def program(context: LocalContext, x: Any, p: float, train: bool) -> Any:
        if p == 1.0:
            return torch.mul(x, 0.0)
        alpha = 1.7580993408473766
        scale = ((alpha * alpha * p + 1.0) * (1.0 - p)) ** -0.5
        keep = _kept(context, p, by_feature)
        shift = torch.add(torch.mul(torch.sub(keep, 1.0), alpha * scale), alpha * scale * p)
        return torch.add(torch.mul(x, torch.mul(keep, scale)), shift)

    return program


SMALLEST_EXPONENTIAL = 2.0**-24
"""A logarithm of it is finite, in half precision too."""


def _drawn(context: LocalContext, method: str, *bounds: Any) -> Any:
    """This rank's part of the op's result, from a method of the communicator."""
    meta, ranges = context.call.outputs[0], context.output_ranges()
    starts, local = [low for low, _ in ranges], [high - low for low, high in ranges]
    draw = getattr(context.comm, method)
    return draw(local, meta.shape, starts, context.random_key, *bounds, dtype=meta.dtype)


def _uniform(context: LocalContext, *args: Any, **kwargs: Any) -> Any:
    return _drawn(context, "uniform")


def _uniform_between(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    low, high = context.call.argument(1, "from", 0.0), context.call.argument(2, "to", 1.0)
    return torch.add(torch.mul(_drawn(context, "uniform"), high - low), low)


def _normal(context: LocalContext, *args: Any, **kwargs: Any) -> Any:
    return _drawn(context, "normal")


def _normal_around(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    mean, deviation = context.call.argument(1, "mean", 0.0), context.call.argument(2, "std", 1.0)
    return torch.add(torch.mul(_drawn(context, "normal"), deviation), mean)


def _integers(context: LocalContext, *args: Any, **kwargs: Any) -> Any:
    """`randint(high, size)`, `randint(low, high, size)` and their `_like` forms."""
    bounds = [each for each in context.call.args if isinstance(each, int)]
    low, high = bounds if len(bounds) == 2 else (0, *bounds)
    return _drawn(context, "integers", low, high)


def _exponential(context: LocalContext, x: Any, rate: float = 1.0, **kwargs: Any) -> Any:
    """Minus the logarithm of a uniform number, over the rate; never zero, as torch's."""
    unit = torch.neg(torch.log1p(torch.neg(_drawn(context, "uniform"))))
    return torch.div(torch.clamp_min(unit, SMALLEST_EXPONENTIAL), rate)


def _bernoulli(context: LocalContext, p: Any, *args: Any, **kwargs: Any) -> Any:
    """One with the probability that stands at its place."""
    ones = torch.lt(_drawn(context, "uniform"), p)
    return aten.to.dtype(ones, context.call.outputs[0].dtype)


def _bernoulli_like(context: LocalContext, x: Any, p: Any = 0.5, **kwargs: Any) -> Any:
    if len(context.call.inputs) == 2:
        return _bernoulli(context, p)
    return _kept(context, 1.0 - p, False)


def _pointwise(call: OpCall) -> str | Bound:
    """Every dimension; a tensor made of nothing has them in its result alone."""
    if not call.inputs:
        shape = call.outputs[0].shape
        names = tuple(f"b{at}" if size > 1 else None for at, size in enumerate(shape))
        sizes = {name: size for name, size in zip(names, shape, strict=True) if name}
        return Bound((), (names,), sizes)
    return ", ".join(["*b"] * len(call.inputs)) + " -> *b"


_LINEAR = (frozenset({0}),)
_FEATURES = "n c *s -> n c *s"

_DROPOUTS = {
    "aten.dropout.default": Rule("*b -> *b", partial=_LINEAR, memory=_flags, program=_dropout),
    "aten.feature_dropout.default": Rule(
        _FEATURES, partial=_LINEAR, memory=_factors, program=_feature_dropout
    ),
    "aten.alpha_dropout.default": Rule(
        "*b -> *b", memory=_factors, program=_alpha_dropout(by_feature=False)
    ),
    "aten.feature_alpha_dropout.default": Rule(
        _FEATURES, memory=_factors, program=_alpha_dropout(by_feature=True)
    ),
}
_NUMBERS: dict[str, Program] = {
    "aten.rand.default": _uniform,
    "aten.rand_like.default": _uniform,
    "aten.uniform.default": _uniform_between,
    "aten.randn.default": _normal,
    "aten.randn_like.default": _normal,
    "aten.normal_functional.default": _normal_around,
    "aten.randint.default": _integers,
    "aten.randint.low": _integers,
    "aten.randint_like.default": _integers,
    "aten.randint_like.low_dtype": _integers,
    "aten.exponential.default": _exponential,
    "aten.bernoulli.default": _bernoulli,
    "aten.bernoulli.p": _bernoulli_like,
    "aten.bernoulli.Tensor": _bernoulli_like,
}

RANDOM_OPS: frozenset[str] = frozenset(
    {*_DROPOUTS, *_NUMBERS, "aten.scaled_dot_product_attention.default"}
)
"""Ops that draw random numbers, in the order of the captured graph; these are keyed."""

RULES: dict[str, Rule] = {
    **_DROPOUTS,
    **{name: Rule(_pointwise, program=program) for name, program in _NUMBERS.items()},
}


def is_random(call: OpCall) -> bool:
    """Whether this call draws numbers: dropout only where it is on."""
    if call.op in _DROPOUTS:
        return bool(call.argument(1, "p")) and bool(call.argument(2, "train"))
    if call.op == "aten.scaled_dot_product_attention.default":
        return bool(call.argument(4, "dropout_p", 0.0))
    return call.op in _NUMBERS
