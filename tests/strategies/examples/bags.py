"""Examples of bags of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.strategies.examples.base import (
    add,
    real,
    whole,
)


def _bags(**options: Any) -> Callable[..., Tensor]:
    return lambda table, ids, *offsets: F.embedding_bag(ids, table, *offsets, **options)


def _weighted(**options: Any) -> Callable[..., Tensor]:
    return lambda table, ids, weights, *offsets: F.embedding_bag(
        ids, table, *offsets, per_sample_weights=weights, mode="sum", **options
    )


_offsets = torch.tensor([0, 2, 2, 5])

add(
    "embedding_bag.padding_idx",
    sums=(_bags(mode="sum"), real(5, 4), whole(0, 5, 7, 3)),
    means=(_bags(), real(7, 4), whole(0, 7, 5, 3)),
    largest=(_bags(mode="max"), real(7, 4), whole(0, 7, 5, 3)),
    padded_means=(_bags(padding_idx=1), real(5, 4), whole(0, 5, 7, 3)),
    padded_sums=(_bags(mode="sum", padding_idx=-1), real(5, 4), whole(3, 5, 7, 3)),
    uneven_sums=(_bags(mode="sum"), real(5, 4), whole(0, 5, 7), _offsets),
    uneven_means=(_bags(padding_idx=0), real(5, 4), whole(0, 3, 7), _offsets),
    with_ends=(
        _bags(include_last_offset=True),
        real(8, 5),
        whole(0, 8, 7),
        torch.tensor([0, 3, 7]),
    ),
    weighted=(_weighted(), real(5, 4), whole(0, 5, 7, 3), real(7, 3)),
    weighted_uneven=(_weighted(padding_idx=2), real(5, 4), whole(0, 5, 7), real(7), _offsets),
)
add(
    "embedding_bag.default",
    sums=(
        lambda table, ids, offsets: torch.ops.aten.embedding_bag.default(table, ids, offsets)[0],
        real(5, 4),
        whole(0, 5, 7),
        _offsets,
    ),
)
