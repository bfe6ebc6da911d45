"""Tried: what a search knows of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoplan.found import Found
from autoplan.plan import ShapeRow
from autoplan.space.bounds import pipeline_floor_s
from autoplan.space.shapes import Shape


@dataclass
class Tried:
    """`floor_s`: seconds that no plan of the shape takes less than; `estimate_s`: by the chain of
    the short model, None before it was asked or where nothing fits; `found`: solved in full.

    status: "open", "estimated", "too little memory", "solved", "no plan", "ruled out".
    """

    shape: Shape
    floor_s: float = 0.0
    estimate_s: float | None = None
    found: Found | Any | None = None
    """A Found, or the Piped of a pipeline."""
    cut: tuple[int, ...] | None = None
    """The stage of every piece by the estimate."""
    status: str = "open"

    def raise_floor(self, work_s: float, once: bool = False) -> None:
        """Take notice that the microbatches take `work_s` at least on the ranks of one stage.

        `once`: what is paid once a step is among it.
        """
        self.floor_s = max(self.floor_s, pipeline_floor_s(work_s, self.shape, once))

    @property
    def step_time_s(self) -> float | None:
        """Seconds of a step where the shape was solved."""
        return None if self.found is None else time_of(self.found)

    def rank(self) -> tuple[int, float]:
        """Solved shapes first, by time; then by estimate, then by floor."""
        if self.step_time_s is not None:
            return 0, self.step_time_s
        if self.estimate_s is not None:
            return 1, self.estimate_s
        return 2 + (self.status != "open"), self.floor_s


def rows_of(tried: Sequence[Tried]) -> tuple[ShapeRow, ...]:
    """The best of the shapes, as a plan keeps them."""
    return tuple(
        ShapeRow(
            str(each.shape),
            each.status,
            each.floor_s,
            each.estimate_s or 0.0,
            each.step_time_s or 0.0,
        )
        for each in sorted(tried, key=Tried.rank)[:_ROWS]
    )


_ROWS = 12


def time_of(found: Any) -> float:
    """Seconds of a step, the penalties of broken wishes included."""
    if isinstance(found, Found):
        return float(found.solution.certificate.objective)
    return float(found.step_time_s)
