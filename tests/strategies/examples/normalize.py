"""Examples of softmax and of norms over the last dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.strategies.examples.base import (
    add,
    real,
)

_inf = float("inf")
_masked_row = real(7, 5).masked_fill(torch.arange(7)[:, None] == 2, -_inf)
_masked_row[3, :4] = -_inf
for _op, _fn in {
    "softmax.int": torch.softmax,
    "log_softmax.int": torch.log_softmax,
    "_softmax.default": lambda x, dim: torch.ops.aten._softmax.default(x, dim, False),
    "_log_softmax.default": lambda x, dim: torch.ops.aten._log_softmax.default(x, dim, False),
    "_safe_softmax.default": torch._safe_softmax,
}.items():
    add(
        _op,
        last=(lambda x, fn=_fn: fn(x, -1), real(5, 4, 3)),
        middle=(lambda x, fn=_fn: fn(x, 1), real(7, 3, 2)),
        large=(lambda x, fn=_fn: fn(x, 0), real(5, 2) + 1000),
        masked=(lambda x, fn=_fn: fn(x, -1), _masked_row),
        scalar=(lambda x, fn=_fn: fn(x, 0), real()),
    )
add("softmax.int", typed=(lambda x: torch.softmax(x, -1, dtype=torch.float64), real(7, 4)))
add(
    "softmax.int", infinite=(lambda x: torch.softmax(x, 0), torch.tensor([1.0, _inf, 2.0]).double())
)
add(
    "layer_norm.default",
    affine=(lambda x, w, b: F.layer_norm(x, (4,), w, b), real(7, 4), real(4), real(4)),
    no_bias=(lambda x, w: F.layer_norm(x, (4,), w), real(5, 4), real(4)),
    plain=(lambda x: F.layer_norm(x, (4,)), real(2, 5, 4)),
    two=(lambda x, w, b: F.layer_norm(x, (4, 3), w, b), real(7, 4, 3), real(4, 3), real(4, 3)),
    vector=(lambda x, w: F.layer_norm(x, (4,), w), real(4), real(4)),
    uneven=(lambda x, w, b: F.layer_norm(x, (5,), w, b, 0.1), real(3, 5), real(5), real(5)),
    far=(lambda x: F.layer_norm(x, (6,)), real(3, 6) + 100),
)
add(
    "rms_norm.default",
    weight=(lambda x, w: F.rms_norm(x, (4,), w, 1e-6), real(2, 7, 4), real(4)),
    plain=(lambda x: F.rms_norm(x, (4,)), real(5, 4)),
    two=(lambda x, w: F.rms_norm(x, (4, 5), w), real(3, 4, 5), real(4, 5)),
    tiny=(lambda x, w: F.rms_norm(x, (5,), w), real(3, 5) * 1e-8, real(5)),
)
add(
    "cosine_similarity.default",
    rows=(F.cosine_similarity, real(7, 4), real(7, 4)),
    crossed=(lambda x, y: F.cosine_similarity(x, y, -1), real(7, 1, 4), real(1, 5, 4)),
    fewer=(lambda x, y: F.cosine_similarity(x, y, -1), real(7, 4), real(4)),
)
add(
    "_weight_norm.default",
    rows=(torch._weight_norm, real(7, 4, 3), real(7, 1, 1)),
    few=(torch._weight_norm, real(5, 4), real(5, 1)),
    last=(lambda v, g: torch._weight_norm(v, g, 2), real(4, 3, 5), real(1, 1, 5)),
)
