"""Examples of random ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.runtime.random import dropout_mask, integers, keep_mask, normal, uniform
from tests.strategies.examples.attention import (
    _attention,
    _causal_flags,
    _grouped,
    _heads,
    _parts_of_groups,
    _square,
)
from tests.strategies.examples.base import (
    EXAMPLES,
    Example,
    constant,
    real,
    whole,
)


def _dropped(x: Tensor, p: float = 0.5) -> Tensor:
    """The whole tensor's mask of the first random op, in the first step, of seed 0."""
    keep = dropout_mask(x, p, x.shape, (0,) * x.ndim, seed=0, key=0, step=0)
    return x * keep / (1.0 - p)


def _dropped_attention(
    p: float, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False
) -> Callable[..., Tensor]:
    """Attention as its documentation writes it out, with the keyed dropout."""

    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if enable_gqa:
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
            v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
        scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
        if is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
        elif mask is not None:
            scores = scores + mask
        return _dropped(torch._safe_softmax(scores, -1), p) @ v

    return fn


EXAMPLES += [
    Example("aten.dropout.default", "rows", lambda x: F.dropout(x, 0.5), (real(7, 4),), _dropped),
    Example("aten.dropout.default", "vector", lambda x: F.dropout(x, 0.5), (real(5),), _dropped),
]
for _name, _given, _tensors in (
    ("dropout", {}, _heads),
    ("dropout_causal", {"is_causal": True}, _square),
    ("dropout_scale", {"scale": 0.3}, _heads),
    ("dropout_flags", {}, (*_heads, _causal_flags)),
    ("dropout_masked_row", {}, (*_heads, _causal_flags & (torch.arange(5) != 2)[:, None])),
    ("dropout_bias", {}, (*_heads, real(2, 1, 1, 7))),
    ("dropout_grouped", {"enable_gqa": True}, _grouped),
    ("dropout_parts_of_groups", {"enable_gqa": True}, _parts_of_groups),
):
    EXAMPLES.append(
        Example(
            "aten.scaled_dot_product_attention.default",
            _name,
            _attention(dropout_p=0.4, **_given),
            _tensors,
            _dropped_attention(0.4, **_given),
        )
    )

# -- other numbers --------------------------------------------------------------------------

_FIRST = (0, 0, 0)  # seed, op, step


def _uniform(*shape: int) -> Tensor:
    return uniform(shape, shape, (0,) * len(shape), _FIRST, torch.float64, torch.device("cpu"))


def _normal(*shape: int) -> Tensor:
    return normal(shape, shape, (0,) * len(shape), _FIRST, torch.float64, torch.device("cpu"))


def _integers(low: int, high: int, *shape: int) -> Tensor:
    return integers(shape, shape, (0,) * len(shape), _FIRST, low, high, torch.device("cpu"))


def _kept(p: float, *shape: int) -> Tensor:
    return keep_mask(shape, p, shape, (0,) * len(shape), _FIRST, torch.device("cpu")).double()


def _alpha_dropped(x: Tensor, keep: Tensor, p: float = 0.4) -> Tensor:
    """Dropped elements take SELU's lowest value; then mean and variance are restored."""
    lowest = -1.7580993408473766
    scale = ((1 - p) * (1 + p * lowest**2)) ** -0.5
    return scale * (torch.where(keep.bool(), x, lowest) - p * lowest)


_probabilities = real(7, 4).sigmoid()
_features = real(5, 6, 3, 2)

for _op, _fn, _reference, _tensors in (
    ("rand_like.default", torch.rand_like, lambda x: _uniform(*x.shape), (real(7, 4),)),
    ("randn_like.default", torch.randn_like, lambda x: _normal(*x.shape), (real(7, 4),)),
    (
        "rand.default",
        lambda: torch.rand(7, 4, dtype=torch.float64),
        lambda: _uniform(7, 4),
        (),
    ),
    (
        "randn.default",
        lambda: torch.randn(7, 4, dtype=torch.float64),
        lambda: _normal(7, 4),
        (),
    ),
    ("randint.default", lambda: torch.randint(9, (7, 4)), lambda: _integers(0, 9, 7, 4), ()),
    ("randint.low", lambda: torch.randint(3, 9, (7, 4)), lambda: _integers(3, 9, 7, 4), ()),
    (
        "randint_like.default",
        lambda x: torch.randint_like(x, 9),
        lambda x: _integers(0, 9, 7, 4),
        (whole(0, 2, 7, 4),),
    ),
    (
        "randint_like.low_dtype",
        lambda x: torch.randint_like(x, 3, 9),
        lambda x: _integers(3, 9, 7, 4),
        (whole(0, 2, 7, 4),),
    ),
    (
        "uniform.default",
        lambda x: torch.ops.aten.uniform.default(x, -1.0, 2.0),
        lambda x: 3 * _uniform(*x.shape) - 1,
        (real(7, 4),),
    ),
    (
        "normal_functional.default",
        lambda x: torch.ops.aten.normal_functional.default(x, 1.0, 2.0),
        lambda x: 1 + 2 * _normal(*x.shape),
        (real(7, 4),),
    ),
    (
        "exponential.default",
        lambda x: torch.ops.aten.exponential.default(x, 2.0),
        lambda x: -torch.log1p(-_uniform(*x.shape)) / 2,
        (real(7, 4),),
    ),
    (
        "bernoulli.default",
        torch.bernoulli,
        lambda p: (_uniform(*p.shape) < p).double(),
        (constant(_probabilities),),
    ),
    (
        "bernoulli.p",
        lambda x: torch.ops.aten.bernoulli.p(x, 0.3),
        lambda x: _kept(0.7, *x.shape),
        (constant(real(7, 4)),),
    ),
    (
        "bernoulli.Tensor",
        torch.ops.aten.bernoulli.Tensor,
        lambda x, p: (_uniform(*p.shape) < p).double(),
        (constant(real(7, 4)), constant(_probabilities)),
    ),
    (
        "feature_dropout.default",
        lambda x: F.dropout2d(x, 0.4),
        lambda x: x * _kept(0.4, 5, 6, 1, 1) / 0.6,
        (_features,),
    ),
    (
        "alpha_dropout.default",
        lambda x: F.alpha_dropout(x, 0.4, training=True),
        lambda x: _alpha_dropped(x, _kept(0.4, *x.shape)),
        (real(7, 4),),
    ),
    (
        "feature_alpha_dropout.default",
        lambda x: F.feature_alpha_dropout(x, 0.4, training=True),
        lambda x: _alpha_dropped(x, _kept(0.4, 5, 6, 1, 1)),
        (_features,),
    ),
):
    EXAMPLES.append(Example(f"aten.{_op}", "keyed", _fn, tuple(_tensors), _reference))
