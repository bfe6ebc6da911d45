"""Rows of a plan as tables show them: those of repeated blocks together; and what a step moves."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from autoplan.plan import Collective, Plan, TensorRow
from autoplan.report_pipeline import located_collectives, located_tensors

Row = TypeVar("Row", Collective, TensorRow)


@dataclass(frozen=True)
class Repeated(Generic[Row]):
    """Rows that are equal but for their blocks; `stages`: of a pipeline, that of each row."""

    rows: tuple[Row, ...]
    stages: tuple[int, ...]

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def times(self) -> int:
        """Paths: a tensor that several stages hold is one."""
        return len({row.path for row in self.rows})

    @property
    def path(self) -> str:
        """A star stands for any block where there are several paths."""
        return template(self.first.path) if self.times > 1 else self.first.path


@dataclass(frozen=True)
class Moved:
    """Collectives together; bytes as those of one times their count, time in seconds."""

    count: int
    bytes: float
    time_s: float

    @classmethod
    def by(cls, rows: Iterable[Collective]) -> Moved:
        """The sum of these."""
        rows = list(rows)
        return cls(
            sum(row.count for row in rows),
            sum(row.bytes * row.count for row in rows),
            sum(row.time_s for row in rows),
        )


def moved_in_a_step(plan: Plan) -> Moved:
    """Without collectives of outputs, which only calls that return them run."""
    return Moved.by(row for row in plan.collectives if row.phase != "outputs")


def repeated_collectives(plan: Plan) -> list[Repeated[Collective]]:
    """All collectives."""
    return _together(
        located_collectives(plan),
        lambda row: (row.phase, row.direction, row.kind, row.axis, row.bytes, template(row.path)),
    )


def repeated_tensors(plan: Plan, kinds: Iterable[str] | None = None) -> list[Repeated[TensorRow]]:
    """All tensors, or those of some kinds."""
    wanted = None if kinds is None else set(kinds)
    return _together(
        (each for each in located_tensors(plan) if wanted is None or each[0].kind in wanted),
        lambda row: (template(row.path), row.kind, row.shape, row.layout, row.use, row.policy),
    )


def _together(
    located: Iterable[tuple[Row, int]], key: Callable[[Row], Hashable]
) -> list[Repeated[Row]]:
    groups: dict[Hashable, list[tuple[Row, int]]] = {}
    for row, stage in located:
        groups.setdefault(key(row), []).append((row, stage))
    return [Repeated(*zip(*members, strict=True)) for members in groups.values()]


def is_tied(plan: Plan, row: TensorRow, stage: int = 0) -> bool:
    """Whether a parameter is another one under a second name, which counts its bytes."""
    held = plan.stages[stage] if plan.stages else plan
    return row.kind == "parameter" and f"parameter {row.path}" not in held.choices


def kind_of(plan: Plan, row: TensorRow, stage: int = 0) -> str:
    """The kind of a row as tables say it."""
    return "tied" if is_tied(plan, row, stage) else row.kind


def read_otherwise(row: TensorRow) -> bool:
    """Whether a step reads a parameter in another layout than it is stored in."""
    return bool(row.use) and row.layout not in (row.use, row.use.replace("B/P", "B"))


def template(path: str) -> str:
    """A path with its block numbers taken out."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", path)
