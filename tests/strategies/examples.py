"""Calls of every op that has a rule, small enough to prove each on several meshes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.runtime.random import dropout_mask

_GENERATOR = torch.Generator().manual_seed(7)


@dataclass(frozen=True)
class Example:
    """One call of `op`. `reference` stands for `fn` where the op draws random numbers."""

    op: str
    variant: str
    fn: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    reference: Callable[..., Any] | None = None

    def __str__(self) -> str:
        return f"{self.op.removeprefix('aten.')}-{self.variant}"


def real(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_GENERATOR, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    return real(*shape).abs() + 0.5


def whole(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=_GENERATOR)


def flags(*shape: int) -> Tensor:
    return real(*shape) > 0


def constant(tensor: Tensor) -> Tensor:
    """A float tensor through which no gradient flows."""
    return nn.Buffer(tensor)


EXAMPLES: list[Example] = []


def _add(op: str, **variants: tuple[Any, ...]) -> None:
    """`name=(fn, *tensors)`, each a variant of `op`."""
    for name, (fn, *tensors) in variants.items():
        EXAMPLES.append(Example(f"aten.{op}", name, fn, tuple(tensors)))


# -- elementwise ----------------------------------------------------------------------------

_POSITIVE: dict[str, Callable[..., Any]] = {
    "log.default": torch.log,
    "log1p.default": torch.log1p,
    "rsqrt.default": torch.rsqrt,
    "sqrt.default": torch.sqrt,
    "pow.Tensor_Scalar": lambda x: x**1.5,
}
_UNARY: dict[str, Callable[..., Any]] = {
    "gelu.default": lambda x: F.gelu(x, approximate="tanh"),
    "silu.default": F.silu,
    "relu6.default": F.relu6,
    "hardtanh.default": lambda x: F.hardtanh(x, -0.5, 0.7),
    "hardswish.default": F.hardswish,
    "mish.default": F.mish,
    "square.default": torch.square,
    "cos.default": torch.cos,
    "sin.default": torch.sin,
    "erf.default": torch.erf,
    "abs.default": torch.abs,
    "leaky_relu.default": lambda x: F.leaky_relu(x, 0.1),
    "elu.default": F.elu,
    "softplus.default": F.softplus,
    "log_sigmoid.default": F.logsigmoid,
    "clamp.default": lambda x: x.clamp(-0.5, 0.5),
    "clamp_min.default": lambda x: torch.clamp_min(x, 0.1),
    "clamp_max.default": lambda x: torch.clamp_max(x, 0.1),
    "relu.default": F.relu,
    "tanh.default": torch.tanh,
    "sigmoid.default": torch.sigmoid,
    "exp.default": torch.exp,
    "reciprocal.default": torch.reciprocal,
    "neg.default": torch.neg,
    "clone.default": torch.clone,
    "detach.default": torch.detach,
    "sign.default": torch.sign,
    "floor.default": torch.floor,
    "ceil.default": torch.ceil,
    "round.default": torch.round,
    "isnan.default": torch.isnan,
    "isinf.default": torch.isinf,
    "zeros_like.default": torch.zeros_like,
    "ones_like.default": torch.ones_like,
    "full_like.default": lambda x: torch.full_like(x, 3.0),
    "remainder.Scalar": lambda x: torch.remainder(x, 0.7),
    "eq.Scalar": lambda x: x == 0.0,
    "ne.Scalar": lambda x: x != 0.0,
    "lt.Scalar": lambda x: x < 0.1,
    "le.Scalar": lambda x: x <= 0.1,
    "gt.Scalar": lambda x: x > 0.1,
    "ge.Scalar": lambda x: x >= 0.1,
    "add.Scalar": lambda x: torch.ops.aten.add.Scalar(x, 2.0),
    "sub.Scalar": lambda x: torch.ops.aten.sub.Scalar(x, 2.0),
    "mul.Scalar": lambda x: torch.ops.aten.mul.Scalar(x, 2.0),
    "div.Scalar": lambda x: torch.ops.aten.div.Scalar(x, 2.0),
    "rsub.Scalar": lambda x: torch.rsub(x, 2.0),
}
for _op, _fn in _UNARY.items():
    _add(_op, uneven=(_fn, real(7, 4)))
for _op, _fn in _POSITIVE.items():
    _add(_op, uneven=(_fn, positive(7, 4)))
_add("gelu.default", exact=(F.gelu, real(5)), scalar=(F.gelu, real()))
_add("pow.Tensor_Scalar", integers=(lambda x: x**2, whole(0, 9, 7, 5)))

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
}
for _op, _fn in _BINARY.items():
    _add(
        _op,
        same=(_fn, real(5, 4), real(5, 4)),
        row=(_fn, real(4, 7), real(7)),
        column=(_fn, real(7, 1), real(4, 1, 6)),
        scalar=(_fn, real(4, 7), real()),
        integers=(_fn, whole(1, 5, 7, 4), 2 ** whole(0, 3, 4)),
    )
_add("floor_divide.default", row=(torch.floor_divide, whole(0, 9, 7, 4), whole(1, 5, 4)))
_add("add.Tensor", number=(lambda x: x + 2.0, real(4, 5)), twice=(lambda x: x + x, real(4, 5)))
_add("sub.Tensor", number=(lambda x: x - 2.0, real(4, 5)))
_add("mul.Tensor", number=(lambda x: x * 3, real(4, 5)), twice=(lambda x: x * x, real(4, 5)))
_add("mul.Tensor", mask=(torch.mul, real(4, 5), flags(4, 1)))
_add("div.Tensor", number=(lambda x: x / 3, real(4, 5)), mixed=(torch.div, whole(0, 9, 4), real(4)))

_LOGICAL: dict[str, Callable[..., Any]] = {
    "logical_and.default": torch.logical_and,
    "logical_or.default": torch.logical_or,
    "bitwise_and.Tensor": torch.bitwise_and,
    "bitwise_or.Tensor": torch.bitwise_or,
    "__and__.Tensor": lambda x, y: x & y,
    "__or__.Tensor": lambda x, y: x | y,
}
for _op, _fn in _LOGICAL.items():
    _add(_op, row=(_fn, flags(7, 4), flags(4)))
_add("logical_not.default", uneven=(torch.logical_not, flags(7, 4)))
_add("bitwise_not.default", uneven=(torch.bitwise_not, flags(7, 4)))

_add(
    "where.self",
    same=(torch.where, flags(5, 4), real(5, 4), real(5, 4)),
    broadcast=(torch.where, flags(7, 1), real(4), real(7, 4)),
)
_add("where.ScalarOther", uneven=(lambda c, x: torch.where(c, x, -1.0), flags(4), real(7, 4)))
_add(
    "masked_fill.Scalar",
    same=(lambda x, m: x.masked_fill(m, -1.0), real(5, 4), flags(5, 4)),
    row=(lambda x, m: x.masked_fill(m, float("-inf")), real(7, 4), flags(4)),
)
_add(
    "lerp.Scalar",
    same=(lambda x, y: torch.lerp(x, y, 0.3), real(5, 4), real(5, 4)),
    row=(lambda x, y: torch.lerp(x, y, 0.3), real(7, 4), real(4)),
)
_eighths = whole(-9, 9, 7, 4).float() / 8  # exact in every type that they are cast to
for _op in ("to.dtype", "to.device", "_to_copy.default"):
    _cast: Callable[..., Any] = {
        "to.dtype": lambda x, dtype: x.to(dtype),
        "to.device": lambda x, dtype: x.to("cpu", dtype),
        "_to_copy.default": lambda x, dtype: torch.ops.aten._to_copy.default(x, dtype=dtype),
    }[_op]
    _add(
        _op,
        wider=(lambda x, cast=_cast: cast(x, torch.float64), _eighths),
        narrower=(lambda x, cast=_cast: cast(x, torch.bfloat16), _eighths),
        integer=(lambda x, cast=_cast: cast(x, torch.int64), _eighths),
        real=(lambda x, cast=_cast: cast(x, torch.float64), whole(0, 9, 7, 4)),
        flag=(lambda x, cast=_cast: cast(x, torch.float64), flags(7, 4)),
    )

# -- contractions ---------------------------------------------------------------------------

_add(
    "linear.default",
    bias=(F.linear, real(5, 4), real(7, 4), real(7)),
    plain=(F.linear, real(2, 4, 7), real(4, 7)),
    vector=(F.linear, real(4), real(7, 4), real(7)),
)
_add(
    "matmul.default",
    vectors=(torch.matmul, real(7), real(7)),
    left_vector=(torch.matmul, real(7), real(3, 7, 4)),
    right_vector=(torch.matmul, real(3, 4, 7), real(7)),
    matrices=(torch.matmul, real(5, 4), real(4, 7)),
    batch=(torch.matmul, real(4, 3, 5), real(4, 5, 2)),
    broadcast=(torch.matmul, real(4, 1, 3, 5), real(7, 5, 2)),
    batch_of_left=(torch.matmul, real(4, 3, 5), real(5, 7)),
)
_add("mm.default", uneven=(torch.mm, real(5, 4), real(4, 7)))
_add("bmm.default", uneven=(torch.bmm, real(4, 3, 5), real(4, 5, 2)))
_add(
    "addmm.default",
    row=(torch.addmm, real(7), real(5, 4), real(4, 7)),
    matrix=(torch.addmm, real(5, 7), real(5, 4), real(4, 7)),
    one_row=(torch.addmm, real(1, 7), real(5, 4), real(4, 7)),
    scalar=(torch.addmm, real(), real(5, 4), real(4, 7)),
    scaled=(
        lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=3.0),
        real(7),
        real(5, 4),
        real(4, 7),
    ),
)
_add(
    "baddbmm.default",
    same=(torch.baddbmm, real(4, 3, 2), real(4, 3, 5), real(4, 5, 2)),
    broadcast=(torch.baddbmm, real(1, 3, 1), real(4, 3, 5), real(4, 5, 2)),
    row=(torch.baddbmm, real(2), real(4, 3, 5), real(4, 5, 2)),
)

# -- shapes ---------------------------------------------------------------------------------

for _op in ("view.default", "reshape.default", "_unsafe_view.default"):
    _view: Callable[..., Any] = {
        "view.default": lambda x, *shape: x.view(*shape),
        "reshape.default": lambda x, *shape: x.reshape(*shape),
        "_unsafe_view.default": lambda x, *shape: torch.ops.aten._unsafe_view.default(x, shape),
    }[_op]
    _add(
        _op,
        split_heads=(lambda x, view=_view: view(x, 2, 7, 4, 3), real(2, 7, 12)),
        merge_heads=(lambda x, view=_view: view(x, 2, 7, 12), real(2, 7, 4, 3)),
        regroup=(lambda x, view=_view: view(x, 4, 6), real(8, 3)),
        ones=(lambda x, view=_view: view(x, 1, 7, 1, 4, 1), real(7, 4)),
        flat=(lambda x, view=_view: view(x, -1), real(4, 7)),
        scalar=(lambda x, view=_view: view(x, 1, 1), real()),
    )
_add("view.default", of_integers=(lambda x: x.view(20), whole(0, 9, 4, 5)))
_add(
    "flatten.using_ints",
    all=(lambda x: x.flatten(), real(4, 5)),
    middle=(lambda x: x.flatten(1, 2), real(3, 4, 2, 7)),
)
_add("unflatten.int", last=(lambda x: x.unflatten(-1, (3, 4)), real(5, 12)))
_add("unflatten.int", first=(lambda x: x.unflatten(0, (4, 2)), real(8, 3)))
_add("unsqueeze.default", first=(lambda x: x.unsqueeze(0), real(5, 4)))
_add("unsqueeze.default", last=(lambda x: x.unsqueeze(-1), real(5, 4)))
_add("squeeze.dim", middle=(lambda x: x.squeeze(1), real(5, 1, 4)))
_add("squeeze.dims", two=(lambda x: x.squeeze((0, 2)), real(1, 5, 1, 4)))
_add("squeeze.default", all=(lambda x: x.squeeze(), real(1, 5, 1, 2)))
_add(
    "transpose.int",
    matrix=(lambda x: x.transpose(0, 1), real(5, 4)),
    heads=(lambda x: x.transpose(1, -2), real(2, 5, 4, 3)),
)
_add("t.default", matrix=(torch.t, real(5, 4)), vector=(torch.t, real(5)))
_add("numpy_T.default", matrix=(lambda x: x.T, real(5, 4)))
_add("permute.default", cycle=(lambda x: x.permute(2, 0, -2), real(5, 4, 3)))
_add(
    "expand.default",
    middle=(lambda x: x.expand(5, 4, 3), real(5, 1, 3)),
    left=(lambda x: x.expand(4, -1, 7), real(5, 7)),
    scalar=(lambda x: x.expand(5), real()),
)
_add(
    "broadcast_tensors.default",
    row=(torch.broadcast_tensors, real(7, 4), real(4)),
    crossed=(torch.broadcast_tensors, real(5, 1), real(1, 4), real(3, 1, 1)),
)
_add(
    "slice.Tensor",
    rows=(lambda x: x[1:4], real(7, 4)),
    columns=(lambda x: x[:, ::2], real(5, 7)),
)
_add(
    "split.Tensor",
    rows=(lambda x: x.split(2), real(5, 4)),
    columns=(lambda x: x.split(3, -1), real(4, 7)),
)
_add("split_with_sizes.default", columns=(lambda x: x.split([3, 4], -1), real(4, 7)))
_add(
    "chunk.default",
    rows=(lambda x: x.chunk(3), real(7, 4)),
    columns=(lambda x: x.chunk(2, dim=-1), real(5, 4)),
)
_add("select.int", row=(lambda x: x[2], real(5, 4)), column=(lambda x: x.select(-1, 0), real(5, 4)))
_add(
    "cat.default",
    rows=(lambda x, y: torch.cat([x, y]), real(3, 4), real(4, 4)),
    columns=(lambda x, y, z: torch.cat([x, y, z], -1), real(5, 4), real(5, 1), real(5, 2)),
    itself=(lambda x: torch.cat([x, x], dim=1), real(5, 4)),
    nothing=(lambda x, y: torch.cat([x, y], dim=1), real(0), real(5, 4)),
)
_add(
    "stack.default",
    first=(lambda x, y: torch.stack([x, y]), real(5, 4), real(5, 4)),
    last=(lambda x, y: torch.stack([x, y], -1), real(5, 4), real(5, 4)),
)
_add(
    "pad.default",
    zeros=(lambda x: F.pad(x, (1, 2)), real(5, 4)),
    ones=(lambda x: F.pad(x, (1, 2), value=1.0), real(7, 4)),
    two=(lambda x: F.pad(x, (1, 0, 0, 2)), real(4, 5, 3)),
    reflect=(lambda x: F.pad(x, (1, 2), mode="reflect"), real(4, 5, 4)),
    replicate=(lambda x: F.pad(x, (1, 2), mode="replicate"), real(4, 5, 4)),
)

# -- reductions and norms -------------------------------------------------------------------

_add("sum.default", all=(torch.sum, real(5, 4)), integers=(torch.sum, whole(0, 9, 4, 5)))
_add("sum.default", scalar=(torch.sum, real()), flags=(torch.sum, flags(4, 5)))
_add("mean.default", all=(torch.mean, real(5, 4)), scalar=(torch.mean, real()))
for _op, _fn in {"sum.dim_IntList": torch.sum, "mean.dim": torch.mean}.items():
    _add(
        _op,
        rows=(lambda x, fn=_fn: fn(x, 0), real(5, 4)),
        keep=(lambda x, fn=_fn: fn(x, -1, keepdim=True), real(4, 7)),
        two=(lambda x, fn=_fn: fn(x, dim=(0, 2)), real(5, 4, 3)),
        two_kept=(lambda x, fn=_fn: fn(x, (1, 2), True), real(5, 4, 3)),
        scalar=(lambda x, fn=_fn: fn(x, -1), real()),
        cast=(lambda x, fn=_fn: fn(x, 0, dtype=torch.float64), _eighths),
    )
for _op, _fn in {"any.dim": torch.any, "all.dim": torch.all}.items():
    _add(
        _op,
        rows=(lambda x, fn=_fn: fn(x, 0), flags(5, 4)),
        keep=(lambda x, fn=_fn: fn(x, -1, keepdim=True), flags(7, 4)),
    )
for _op, _fn in {
    "softmax.int": torch.softmax,
    "log_softmax.int": torch.log_softmax,
    "_softmax.default": lambda x, dim: torch.ops.aten._softmax.default(x, dim, False),
    "cumsum.default": torch.cumsum,
}.items():
    _add(
        _op,
        last=(lambda x, fn=_fn: fn(x, -1), real(5, 4, 3)),
        middle=(lambda x, fn=_fn: fn(x, 1), real(7, 3, 2)),
        scalar=(lambda x, fn=_fn: fn(x, 0), real()),
    )
_add("softmax.int", typed=(lambda x: torch.softmax(x, -1, dtype=torch.float64), real(7, 4)))
_add(
    "layer_norm.default",
    affine=(lambda x, w, b: F.layer_norm(x, (4,), w, b), real(7, 4), real(4), real(4)),
    no_bias=(lambda x, w: F.layer_norm(x, (4,), w), real(5, 4), real(4)),
    plain=(lambda x: F.layer_norm(x, (4,)), real(2, 5, 4)),
    two=(lambda x, w, b: F.layer_norm(x, (4, 3), w, b), real(7, 4, 3), real(4, 3), real(4, 3)),
    vector=(lambda x, w: F.layer_norm(x, (4,), w), real(4), real(4)),
)
_add(
    "rms_norm.default",
    weight=(lambda x, w: F.rms_norm(x, (4,), w, 1e-6), real(2, 7, 4), real(4)),
    plain=(lambda x: F.rms_norm(x, (4,)), real(5, 4)),
)

# -- attention ------------------------------------------------------------------------------


def _attention(**given: Any) -> Callable[..., Tensor]:
    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **given)

    return fn


_heads = (real(2, 4, 5, 3), real(2, 4, 7, 3), real(2, 4, 7, 2))
_grouped = (real(1, 8, 5, 3), real(1, 4, 7, 3), real(1, 4, 7, 2))
_square = (real(2, 7, 4, 3), real(2, 7, 4, 3), real(2, 7, 4, 3))
_causal_flags = torch.ones(5, 7, dtype=torch.bool).tril(2)
_add(
    "scaled_dot_product_attention.default",
    plain=(_attention(), *_heads),
    causal=(_attention(is_causal=True), *_square),
    scale=(_attention(scale=0.3), *_heads),
    three_dimensions=(_attention(), real(4, 5, 3), real(4, 7, 3), real(4, 7, 3)),
    two_dimensions=(_attention(), real(5, 3), real(7, 3), real(7, 3)),
    flags=(_attention(), *_heads, _causal_flags),
    flags_of_batch=(_attention(), *_heads, _causal_flags.expand(2, 1, 5, 7).clone()),
    bias_of_heads=(_attention(), *_heads, real(4, 5, 7)),
    bias_of_keys=(_attention(), *_heads, real(2, 1, 1, 7)),
    grouped=(_attention(enable_gqa=True), *_grouped),
    grouped_causal=(_attention(enable_gqa=True, is_causal=True), *_grouped),
    grouped_bias=(_attention(enable_gqa=True), *_grouped, real(1, 8, 5, 7)),
    grouped_flags=(_attention(enable_gqa=True), *_grouped, _causal_flags[None, None]),
    one_key_head=(
        _attention(enable_gqa=True),
        real(2, 4, 5, 3),
        real(2, 1, 7, 3),
        real(2, 1, 7, 3),
    ),
)

# -- tables and losses ----------------------------------------------------------------------

_add(
    "embedding.default",
    matrix=(lambda w, ids: F.embedding(ids, w), real(7, 4), whole(0, 7, 5, 2)),
    even=(lambda w, ids: F.embedding(ids, w), real(8, 3), whole(0, 8, 4)),
    padding=(lambda w, ids: F.embedding(ids, w, 5), real(7, 4), whole(3, 7, 5, 2)),
    padding_first=(lambda w, ids: F.embedding(ids, w, 0), real(7, 4), whole(0, 3, 8)),
    padding_last=(lambda w, ids: F.embedding(ids, w, -1), real(7, 4), whole(4, 7, 8)),
    scalar=(lambda w, ids: F.embedding(ids, w), real(7, 4), torch.tensor(3)),
    by_frequency=(
        lambda w, ids: F.embedding(ids, w, scale_grad_by_freq=True),
        real(7, 4),
        whole(0, 7, 9),
    ),
)


def _loss(**given: Any) -> Callable[..., Tensor]:
    def fn(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.cross_entropy(logits, target, weight, **given)

    return fn


_logits, _target = real(7, 6), whole(0, 6, 7)
_some_ignored = torch.where(_target < 3, -100, _target)
_pixels, _pixel_target = real(4, 5, 2, 3), whole(0, 5, 4, 2, 3)
_class_weight = constant(positive(6))
_add(
    "cross_entropy_loss.default",
    mean=(_loss(), _logits, _target),
    sum=(_loss(reduction="sum"), _logits, _target),
    none=(_loss(reduction="none"), _logits, _target),
    ignored=(_loss(), _logits, _some_ignored),
    ignored_sum=(_loss(reduction="sum"), _logits, _some_ignored),
    ignored_none=(_loss(reduction="none"), _logits, _some_ignored),
    ignored_class=(_loss(ignore_index=2), _logits, _target),
    all_ignored=(_loss(), _logits, torch.full((7,), -100)),
    weight=(_loss(), _logits, _some_ignored, _class_weight),
    weight_sum=(_loss(reduction="sum"), _logits, _some_ignored, _class_weight),
    smooth=(_loss(label_smoothing=0.1), _logits, _some_ignored),
    smooth_weight=(_loss(label_smoothing=0.1), _logits, _some_ignored, _class_weight),
    pixels=(_loss(), _pixels, _pixel_target),
    pixels_none=(_loss(reduction="none"), _pixels, _pixel_target),
    pixels_weight=(_loss(ignore_index=1), _pixels, _pixel_target, constant(positive(5))),
    many_classes=(_loss(), real(2, 8), whole(0, 8, 2)),
    large=(_loss(), real(5, 7) * 1000, whole(0, 7, 5)),
    one_row=(_loss(), real(6), torch.tensor(3)),
    probabilities=(_loss(), _logits, torch.softmax(real(7, 6), -1)),
)
_ELEMENTWISE_LOSSES: dict[str, Callable[..., Any]] = {
    "mse_loss.default": torch.ops.aten.mse_loss.default,
    "l1_loss.default": torch.ops.aten.l1_loss.default,
    "smooth_l1_loss.default": lambda x, y, r: torch.ops.aten.smooth_l1_loss.default(x, y, r, 0.5),
}
for _op, _fn in _ELEMENTWISE_LOSSES.items():
    _add(
        _op,
        none=(lambda x, y, fn=_fn: fn(x, y, 0), real(7, 4), real(7, 4)),
        mean=(lambda x, y, fn=_fn: fn(x, y, 1), real(7, 4), real(7, 4)),
        sum=(lambda x, y, fn=_fn: fn(x, y, 2), real(7, 4), real(7, 4)),
    )

# -- random ops -----------------------------------------------------------------------------


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
        return _dropped(scores.softmax(-1), p) @ v

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
    ("dropout_bias", {}, (*_heads, real(2, 1, 1, 7))),
    ("dropout_grouped", {"enable_gqa": True}, _grouped),
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
