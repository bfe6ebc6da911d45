"""Examples of products and distances of vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.strategies.examples.base import (
    add,
    real,
)

add(
    "kron.default",
    matrices=(torch.kron, real(4, 5), real(2, 3)),
    left_vector=(torch.kron, real(4), real(5, 2)),
    right_vector=(torch.kron, real(4, 8), real(3)),
)
add(
    "cross.default",
    given=(lambda x, y: torch.cross(x, y, dim=1), real(5, 3), real(5, 3)),
    found=(torch.cross, real(6, 3), real(6, 3)),
)
add("linalg_cross.default", row=(torch.linalg.cross, real(5, 4, 3), real(1, 4, 3)))
add(
    "cdist.default",
    euclidean=(torch.cdist, real(5, 4), real(7, 4)),
    batch=(lambda x, y: torch.cdist(x, y, p=1.0), real(3, 5, 4), real(3, 4, 4)),
)
add(
    "pairwise_distance.default",
    rows=(F.pairwise_distance, real(5, 4), real(5, 4)),
    kept=(lambda x, y: F.pairwise_distance(x, y, p=1.0, keepdim=True), real(5, 4), real(4)),
)
