"""Examples of table look-ups and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.strategies.examples.base import (
    add,
    constant,
    flags,
    positive,
    real,
    whole,
)

add(
    "embedding.default",
    matrix=(lambda w, ids: F.embedding(ids, w), real(7, 4), whole(0, 7, 5, 2)),
    even=(lambda w, ids: F.embedding(ids, w), real(8, 3), whole(0, 8, 4)),
    padding=(lambda w, ids: F.embedding(ids, w, 5), real(7, 4), whole(3, 7, 5, 2)),
    padding_first=(lambda w, ids: F.embedding(ids, w, 0), real(7, 4), whole(0, 3, 8)),
    padding_last=(lambda w, ids: F.embedding(ids, w, -1), real(7, 4), whole(4, 7, 8)),
    few_rows=(lambda w, ids: F.embedding(ids, w), real(5, 4), whole(0, 5, 7)),
    few_rows_padding=(lambda w, ids: F.embedding(ids, w, -1), real(5, 4), whole(0, 5, 7)),
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
_probabilities = torch.softmax(real(7, 6), -1)
_pixel_probabilities = torch.softmax(real(4, 5, 2, 3), 1)
_all_ignored = torch.full((7,), -100)
add(
    "cross_entropy_loss.default",
    mean=(_loss(), _logits, _target),
    sum=(_loss(reduction="sum"), _logits, _target),
    none=(_loss(reduction="none"), _logits, _target),
    ignored=(_loss(), _logits, _some_ignored),
    ignored_sum=(_loss(reduction="sum"), _logits, _some_ignored),
    ignored_none=(_loss(reduction="none"), _logits, _some_ignored),
    ignored_class=(_loss(ignore_index=2), _logits, _target),
    all_ignored=(_loss(), _logits, _all_ignored),
    all_ignored_weight=(_loss(label_smoothing=0.1), _logits, _all_ignored, _class_weight),
    weight=(_loss(), _logits, _some_ignored, _class_weight),
    weight_sum=(_loss(reduction="sum"), _logits, _some_ignored, _class_weight),
    smooth=(_loss(label_smoothing=0.1), _logits, _some_ignored),
    smooth_none=(_loss(label_smoothing=0.1, reduction="none"), _logits, _some_ignored),
    smooth_weight=(_loss(label_smoothing=0.1), _logits, _some_ignored, _class_weight),
    pixels=(_loss(), _pixels, _pixel_target),
    pixels_none=(_loss(reduction="none"), _pixels, _pixel_target),
    pixels_weight=(_loss(ignore_index=1), _pixels, _pixel_target, constant(positive(5))),
    pixels_smooth_weight=(
        _loss(ignore_index=1, label_smoothing=0.2),
        _pixels,
        _pixel_target,
        constant(positive(5)),
    ),
    many_classes=(_loss(), real(2, 8), whole(0, 8, 2)),
    large=(_loss(), real(5, 7) * 1000, whole(0, 7, 5)),
    forbidden=(
        _loss(),
        torch.where(torch.arange(6) % 2 == 0, _logits, float("-inf")),
        whole(0, 3, 7) * 2,
    ),
    one_row=(_loss(), real(6), torch.tensor(3)),
    one_row_ignored=(_loss(ignore_index=3), real(6), torch.tensor(3)),
    one_row_weight=(_loss(reduction="sum"), real(6), torch.tensor(3), _class_weight),
    one_row_none=(_loss(reduction="none", label_smoothing=0.1), real(6), torch.tensor(3)),
    one_row_probabilities=(_loss(), real(6), torch.softmax(real(6), 0)),
    probabilities=(_loss(), _logits, _probabilities),
    probabilities_none=(_loss(reduction="none"), _logits, _probabilities),
    probabilities_weight=(_loss(), _logits, _probabilities, _class_weight),
    probabilities_smooth=(_loss(label_smoothing=0.1), _logits, constant(_probabilities)),
    probabilities_smooth_weight=(
        _loss(label_smoothing=0.1, reduction="sum"),
        _logits,
        _probabilities,
        _class_weight,
    ),
    pixels_probabilities=(
        _loss(label_smoothing=0.2),
        _pixels,
        _pixel_probabilities,
        constant(positive(5)),
    ),
)


def _nll(**given: Any) -> Callable[..., Tensor]:
    def fn(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.nll_loss(x, target, weight, **given)

    return fn


add(
    "nll_loss_nd.default",
    mean=(_nll(), _logits, _target),
    sum=(_nll(reduction="sum"), _logits, _target),
    none=(_nll(reduction="none"), _logits, _target),
    ignored=(_nll(), _logits, _some_ignored),
    all_ignored=(_nll(), _logits, _all_ignored),
    weight=(_nll(), _logits, _some_ignored, _class_weight),
    weight_none=(_nll(reduction="none"), _logits, _some_ignored, _class_weight),
    pixels=(_nll(ignore_index=1), _pixels, _pixel_target, constant(positive(5))),
    pixels_none=(_nll(reduction="none"), _pixels, _pixel_target),
    one_row=(_nll(), real(6), torch.tensor(3)),
    one_row_none=(_nll(reduction="none"), real(6), torch.tensor(3), _class_weight),
)

_x, _y, _share = real(7, 4), real(7, 4), real(7, 4).sigmoid()
_sign = constant(torch.where(flags(7, 4), 1.0, -1.0).double())
_row_sign = constant(torch.where(flags(7), 1.0, -1.0).double())
_REDUCTIONS = ("none", "mean", "sum")


def _divergence(reduction: str, log_target: bool) -> Callable[..., Tensor]:
    """The op itself: `F.kl_div` warns of what its mean is."""
    number = _REDUCTIONS.index(reduction)
    return lambda x, y: torch.ops.aten.kl_div.default(x, y, number, log_target=log_target)


for _reduction in _REDUCTIONS:

    def _by(
        fn: Callable[..., Any], *given: Any, reduction: str = _reduction, **named: Any
    ) -> Callable[..., Any]:
        return lambda *tensors: fn(*tensors, *given, reduction=reduction, **named)

    _examples: dict[str, dict[str, tuple[Any, ...]]] = {
        "mse_loss.default": {"": (_by(F.mse_loss), _x, _y)},
        "l1_loss.default": {"": (_by(F.l1_loss), _x, _y)},
        "smooth_l1_loss.default": {"": (_by(F.smooth_l1_loss, beta=0.5), _x, _y)},
        "huber_loss.default": {"": (_by(F.huber_loss, delta=0.5), _x, _y)},
        "soft_margin_loss.default": {"": (_by(F.soft_margin_loss), _x, _sign)},
        "kl_div.default": {
            "": (_divergence(_reduction, log_target=False), _x, _share),
            "_of_logarithms": (_divergence(_reduction, log_target=True), _x, _y),
        },
        "binary_cross_entropy.default": {
            "": (_by(F.binary_cross_entropy), _share, constant(_share.flip(0))),
            "_weight": (
                lambda x, y, w, r=_reduction: F.binary_cross_entropy(x, y, w, reduction=r),
                _share,
                constant(_share.flip(0)),
                constant(positive(7, 4)),
            ),
        },
        "binary_cross_entropy_with_logits.default": {
            "": (_by(F.binary_cross_entropy_with_logits), _x, _share),
            "_weight": (
                _by(F.binary_cross_entropy_with_logits),
                _x,
                _share,
                constant(positive(7, 1)),
            ),
            "_of_classes": (
                lambda x, y, w, r=_reduction: F.binary_cross_entropy_with_logits(
                    x, y, pos_weight=w, reduction=r
                ),
                _x,
                _share,
                constant(positive(4)),
            ),
        },
        "poisson_nll_loss.default": {
            "": (_by(F.poisson_nll_loss), _x, _share),
            "_full": (_by(F.poisson_nll_loss, full=True), _x, constant(positive(7, 4) * 2)),
        },
        "hinge_embedding_loss.default": {"": (_by(F.hinge_embedding_loss, margin=0.5), _x, _sign)},
        "margin_ranking_loss.default": {
            "": (_by(F.margin_ranking_loss, margin=0.5), _x, _y, _sign)
        },
        "cosine_embedding_loss.default": {
            "": (_by(F.cosine_embedding_loss, margin=0.1), _x, _y, _row_sign)
        },
        "triplet_margin_loss.default": {
            "": (_by(F.triplet_margin_loss), _x, _y, _share),
            "_swap": (_by(F.triplet_margin_loss, swap=True, p=1.5), _x, _y, _share),
            "_shared": (_by(F.triplet_margin_loss), _x, _y, _share[:1]),
        },
        "multi_margin_loss.default": {
            "": (_by(F.multi_margin_loss, p=2, margin=0.5), _x, whole(0, 4, 7)),
            "_weight": (
                lambda x, y, w, r=_reduction: F.multi_margin_loss(x, y, weight=w, reduction=r),
                _x,
                whole(0, 4, 7),
                constant(positive(4)),
            ),
        },
        "multilabel_margin_loss.default": {
            "": (
                _by(F.multilabel_margin_loss),
                _x,
                torch.tensor([[1, 3, -1, 0], [2, -1, 0, 0]]).repeat(4, 1)[:7],
            )
        },
    }
    for _op, _variants in _examples.items():
        for _suffix, _call in _variants.items():
            add(_op, **{f"{_reduction}{_suffix}": _call})


def _ctc(**given: Any) -> Callable[..., Tensor]:
    return lambda x, *others: F.ctc_loss(x, *others, **given)


_frames = (real(9, 5, 4).log_softmax(-1), whole(1, 4, 5, 3))
_lengths = (torch.tensor([9, 7, 9, 8, 6]), torch.tensor([3, 2, 1, 3, 0]))
add(
    "ctc_loss.Tensor",
    mean=(_ctc(), *_frames, *_lengths),
    sum=(_ctc(reduction="sum"), *_frames, *_lengths),
    none=(_ctc(reduction="none"), *_frames, *_lengths),
    impossible=(
        _ctc(zero_infinity=True, blank=3),
        real(4, 6, 4).log_softmax(-1),
        whole(0, 3, 6, 3),
        torch.tensor([4, 1, 2, 4, 4, 4]),
        torch.tensor([3, 3, 3, 1, 2, 3]),
    ),
)
