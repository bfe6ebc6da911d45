"""The rules of every op that autoplan can split, and the presets that name known schemes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from autoplan.strategies import (
    attention,
    elementwise,
    embedding,
    loss,
    matmul,
    random,
    reductions,
    shape,
)
from autoplan.strategies.rule import Rule

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **elementwise.RULES,
        **matmul.RULES,
        **shape.RULES,
        **reductions.RULES,
        **attention.RULES,
        **embedding.RULES,
        **loss.RULES,
        **random.RULES,
    }
)
"""Rule of each ATen op, by the name that the captured graph shows, e.g. `aten.linear.default`."""
