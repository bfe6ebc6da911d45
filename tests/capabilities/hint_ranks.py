"""What the ranks of the rows on hints run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoplan import B, Layout, S
from autoplan.hints.inside import hint
from tests.capabilities.ranks import Held, hold, verified
from tests.models import Example

GRID = {"mesh": {"a": 2, "b": 2}}

WRITTEN: dict[str, dict[str, Any]] = {
    "text": {"up.weight": "(S(0), B)", "up": "(B, S(1))", "down.weight": "a=B, b=S(1)"},
    "objects": {
        "up.weight": (S(0), B),
        "up": Layout((B, S(1))),
        "down.weight": {"a": B, "b": S(1)},
    },
}
"""Row 3: one set of n-d layouts, as text and as objects."""


class Mlp(nn.Module):
    """12 -> 32 -> 12; where `layout` is given, the value between lies so."""

    def __init__(self, layout: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(12, 32, dtype=torch.float64)
        self.act = nn.ReLU()
        self.down = nn.Linear(32, 12, dtype=torch.float64)
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.up(x))
        if self.layout is not None:
            y = hint(y, self.layout)
        result: Tensor = self.down(y)
        return result


def batch() -> Example:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(8, 12, dtype=torch.float64, generator=generator),), {}


def written(devices: int, way: str) -> list[Held]:
    """Row 3: hints from outside."""
    return hold(Mlp(), batch(), devices=devices, parallel=GRID, hints=WRITTEN[way])


def inside(devices: int, layout: Any) -> list[Held]:
    """Row 3: a hint inside forward."""
    return hold(Mlp(layout), batch(), devices=devices, parallel=GRID)


def on_four(rank: int) -> dict[str, Any]:
    """The rows on hints that need four ranks, on real ones."""
    found: dict[str, Any] = {way: written(4, way)[0] for way in WRITTEN}
    found["inside"] = inside(4, (S(1), "S(0)"))[0]
    found["verified"] = verified(Mlp("!S(1) & !P"), batch(), devices=4, parallel=GRID)
    return found
