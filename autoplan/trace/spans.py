"""Spans: what a rank does, from when to when, in tracks; the plain data of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """Something that takes time on a track; `start_s` counts from the start of the step.

    Spans of one track lie beside or inside of each other.
    """

    track: str
    name: str
    category: str
    start_s: float
    time_s: float
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        return self.start_s + self.time_s


@dataclass(frozen=True, slots=True)
class Level:
    """Bytes alive from `start_s` on, by kind, until the next level of the same `counter`."""

    counter: str
    start_s: float
    kinds: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Group:
    """One side of a trace, predicted or measured: `tracks` in the order in which they are shown."""

    name: str
    tracks: tuple[str, ...]
    spans: tuple[Span, ...]
    levels: tuple[Level, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        """When the last span ends."""
        return max((span.end_s for span in self.spans), default=0.0)


def rank_name(rank: int, axes: Mapping[str, int]) -> str:
    """`rank 3 (data 1, tensor 1)`."""
    at = ", ".join(f"{axis} {coordinate}" for axis, coordinate in axes.items())
    return f"rank {rank} ({at})" if at else f"rank {rank}"
