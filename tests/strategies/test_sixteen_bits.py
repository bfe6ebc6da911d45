"""Cross-entropy of 16-bit logits: sums over ranks lose no more than torch's own rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from autoplan.mesh import Mesh
from autoplan.proof import prove
from tests.strategies.examples import constant, real, whole

_ROUNDING = 2.0**-7
"""Two roundings of a bfloat16, relative to the largest element."""

_TARGET = whole(0, 64, 60)
_SURE = F.one_hot(_TARGET, 64) * 9.0
"""Where a row's target is likely, its loss is the logarithm of nearly one."""

_LOGITS = (real(60, 64) / 4 + _SURE).bfloat16()
_WEIGHT = constant(real(64).abs().bfloat16())
_CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "plain": (F.cross_entropy, (_LOGITS, _TARGET)),
    "weight": (
        lambda x, y, w, **r: F.cross_entropy(x, y, w, label_smoothing=0.1, **r),
        (_LOGITS, _TARGET, _WEIGHT),
    ),
    "probabilities": (
        F.cross_entropy,
        (_LOGITS, constant((real(60, 64) + 2 * _SURE).softmax(1).bfloat16())),
    ),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", _CALLS)
def test_split_classes_are_right_but_for_rounding(name: str, reduction: str) -> None:
    fn, tensors = _CALLS[name]

    def call(*given: Any) -> Tensor:
        return fn(*given, reduction=reduction)

    def exact(*given: Any) -> Tensor:
        wide = (each.double() if each.is_floating_point() else each for each in given)
        return call(*wide).bfloat16()

    proofs = prove(call, *tensors, mesh=Mesh.of(d=4), reference=exact)
    error = {proof.labels[0]: proof.error for proof in proofs}
    assert error["c"] <= _ROUNDING
    assert error["n"] <= max(_ROUNDING, 2 * error["B"])
