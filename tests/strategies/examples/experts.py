"""Examples of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers.integrations.moe  # noqa: F401  (registers grouped_mm_fallback)
from torch import Tensor

from tests.strategies.examples.base import EXAMPLES, Example, constant, real, whole


def _ends(*counts: int) -> Tensor:
    """Where the rows of each expert end."""
    return torch.tensor(counts).cumsum(0).to(torch.int32)


def _add(
    op: str,
    fn: Callable[..., Any],
    rows: Callable[[int], Tensor],
    experts: Callable[[int], Tensor],
    *names: str,
) -> None:
    variants: dict[str, tuple[Tensor, ...]] = {
        "even": (rows(8), experts(4), _ends(2, 2, 2, 2)),
        "uneven": (rows(9), experts(4), _ends(1, 5, 0, 3)),
        "one_busy_expert": (rows(8), experts(4), _ends(0, 0, 8, 0)),
        "idle_ranks": (rows(6), experts(5), _ends(0, 2, 1, 0, 3)),
        "few_rows": (rows(3), experts(6), _ends(0, 1, 0, 2, 0, 0)),
        "frozen_rows": (constant(rows(8)), experts(4), _ends(3, 1, 1, 3)),
        "one_expert": (rows(6), experts(1), _ends(6)),
    }
    for name in names:
        EXAMPLES.append(Example(op, name, fn, variants[name]))


def _signs(*shape: int) -> Tensor:
    """Mostly zeros: bfloat16, which torch's kernel wants, then holds sums of products exactly."""
    return whole(-1, 2, *shape).bfloat16() * (whole(0, 8, *shape) == 0)


_add(
    "transformers.grouped_mm_fallback.default",
    torch.ops.transformers.grouped_mm_fallback.default,
    lambda rows: real(rows, 3),
    lambda experts: real(experts, 3, 5),
    "even",
    "uneven",
    "one_busy_expert",
    "idle_ranks",
    "few_rows",
    "frozen_rows",
    "one_expert",
)
_add(
    "aten._grouped_mm.default",
    lambda x, weight, offs: torch.nn.functional.grouped_mm(x, weight, offs=offs),
    lambda rows: _signs(rows, 32),
    lambda experts: _signs(experts, 32, 32),
    "uneven",
    "one_busy_expert",
    "idle_ranks",
)
EXAMPLES.append(
    Example(
        "transformers.grouped_mm_fallback.default",
        "spare_rows",
        torch.ops.transformers.grouped_mm_fallback.default,
        (real(9, 3), real(4, 3, 2), _ends(2, 1, 0, 4)),
    )
)
