"""Examples of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.strategies.examples.base import (
    add,
    drawn_apart,
    flags,
    real,
)


def _attention(**given: Any) -> Callable[..., Tensor]:
    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **given)

    return fn


_heads = (real(2, 4, 5, 3), real(2, 4, 7, 3), real(2, 4, 7, 2))
_grouped = (real(1, 8, 5, 3), real(1, 4, 7, 3), real(1, 4, 7, 2))
_few_key_heads = (real(1, 8, 5, 3), real(1, 2, 6, 3), real(1, 2, 6, 2))
_parts_of_groups = (real(1, 6, 5, 3), real(1, 2, 7, 3), real(1, 2, 7, 3))
_square = (real(2, 7, 4, 3), real(2, 7, 4, 3), real(2, 7, 4, 3))
_causal_flags = torch.ones(5, 7, dtype=torch.bool).tril(2)
add(
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
    few_key_heads=(_attention(enable_gqa=True), *_few_key_heads),
    few_key_heads_causal=(_attention(enable_gqa=True, is_causal=True), *_few_key_heads),
    few_key_heads_bias=(_attention(enable_gqa=True), *_few_key_heads, real(1, 8, 5, 6)),
    few_key_heads_flags=(_attention(enable_gqa=True), *_few_key_heads, flags(1, 1, 5, 6)),
    parts_of_groups=(_attention(enable_gqa=True), *_parts_of_groups),
    few_heads=(_attention(), real(1, 5, 4, 3), real(1, 5, 7, 3), real(1, 5, 7, 2)),
    few_heads_of_groups=(
        _attention(enable_gqa=True),
        real(10, 4, 3),
        real(5, 7, 3),
        real(5, 7, 2),
    ),
)

with drawn_apart(1):
    _ring = (real(1, 4, 8, 3), real(1, 4, 8, 3), real(1, 4, 8, 3))
    _ring_of_groups = (real(1, 4, 8, 3), real(1, 2, 8, 3), real(1, 2, 8, 3))
    _ring_of_widths = (real(1, 4, 8, 3), real(1, 2, 12, 3), real(1, 2, 12, 2))
    add(
        "scaled_dot_product_attention.default",
        ring_causal=(_attention(is_causal=True), *_ring),
        ring=(_attention(scale=0.3), *_ring),
        ring_of_groups=(_attention(enable_gqa=True, is_causal=True), *_ring_of_groups),
        ring_of_widths=(_attention(enable_gqa=True), *_ring_of_widths),
        ring_of_widths_causal=(
            _attention(is_causal=True),
            real(4, 16, 3),
            real(4, 16, 3),
            real(4, 16, 2),
        ),
        ring_of_one_head=(_attention(is_causal=True), real(16, 3), real(16, 3), real(16, 3)),
        ring_bias=(_attention(), *_ring, real(1, 4, 8, 8)),
        ring_bias_of_groups=(_attention(enable_gqa=True), *_ring_of_groups, real(4, 8, 8)),
        ring_bias_of_keys=(_attention(), *_ring, real(1, 1, 1, 8)),
        ring_flags=(_attention(), *_ring, torch.ones(8, 8, dtype=torch.bool).tril(-1)),
        ring_flags_of_groups=(_attention(enable_gqa=True), *_ring_of_widths, flags(1, 4, 8, 12)),
    )
