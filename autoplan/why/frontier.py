"""The frontier of time and memory: the fastest plan within each of several memory limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autoplan.errors import ConfigError, InfeasibleError
from autoplan.memory.within_memory import leanest
from autoplan.plan import Plan
from autoplan.units import seconds, size
from autoplan.why.origin import Origin, known_origin
from autoplan.why.question import Answer, Question
from autoplan.why.tables import table


@dataclass(frozen=True)
class FrontierPoint:
    """The fastest plan within `memory_limit_bytes`; `gap` is 0.0 where that is proven.

    `is_plan`: it takes the time and the memory of the plan that was asked.
    """

    memory_limit_bytes: int
    step_time_s: float
    peak_memory_bytes: int
    gap: float
    is_plan: bool = False


@dataclass(frozen=True)
class Frontier:
    """Points from the fastest plan, whatever its memory, to the leanest that was found.

    Every point is slower and leaner than the one before.
    """

    mesh: str
    points: tuple[FrontierPoint, ...]

    def __str__(self) -> str:
        fastest = self.points[0].step_time_s
        rows = [
            (
                size(each.memory_limit_bytes),
                seconds(each.step_time_s),
                f"{each.step_time_s / fastest - 1:+.1%}" if fastest else "",
                size(each.peak_memory_bytes),
                "proven" if each.gap == 0.0 else f"{each.gap:.2%}",
                "<- this plan" if each.is_plan else "",
            )
            for each in self.points
        ]
        head = ("memory limit", "step time", "", "peak memory", "gap", "")
        return f"time and memory on mesh {self.mesh}\n{table(head, rows, right=(0, 1, 2, 3, 4))}"


def frontier(plan: Plan, origin: Origin | None, points: int = 8) -> Frontier:
    """The fastest plans on the plan's mesh, from no memory limit to the least that a plan needs.

    At most `points` limits are tried, equal factors apart, each with its share of the plan's time
    limit; those that gain nothing over others are left out. The leanest plan is the leanest that
    was found. Raises ConfigError for fewer than 2 points, and for a plan without its model.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ConfigError(f"a frontier has at least 2 points, got points={points!r}.")
    question, given = known_origin(origin, "frontier()").answer(plan, lean=True)
    fastest = question.within(_UNLIMITED).solve(start=given.choices)
    best = leanest_of(question, fastest)
    limits = _limits(best.peak_memory_bytes, fastest.peak_memory_bytes, points)
    moments: tuple[int, ...] = (int(question.timeline.totals(best.choices).argmax()),)
    rows = []
    for limit in limits:
        try:
            best = question.within(limit).solve(
                start=best.choices,  # what fits into less fits
                time_limit_s=question.request.time_limit_s / len(limits),
                moments=moments,
            )
        except InfeasibleError:
            continue
        moments = best.moments
        rows.append(FrontierPoint(limit, best.step_time_s, best.peak_memory_bytes, best.gap))
    rows.append(
        FrontierPoint(
            fastest.peak_memory_bytes, fastest.step_time_s, fastest.peak_memory_bytes, fastest.gap
        )
    )
    return Frontier(str(plan.mesh), tuple(_marked(each, given) for each in _undominated(rows)))


_UNLIMITED = 1 << 62
"""Bytes that no plan needs."""


def leanest_of(question: Question, fastest: Answer) -> Answer:
    """The plan of least peak memory that was found, and of those the fastest."""
    moment = int(question.timeline.totals(fastest.choices).argmax())
    most = 0.5 * fastest.peak_memory_bytes
    limited = replace(question.problem, limits=(question.timeline.limit(moment, most),))
    choices = leanest(limited, question.timeline, most)
    return question.price(choices)


def _limits(least: int, largest: int, points: int) -> list[int]:
    """Limits from `least` on, equal factors apart, up to but without `largest`."""
    ratio = (largest / least) ** (1 / (points - 1)) if least else 1.0
    return sorted({math.floor(least * ratio**i) for i in range(points - 1)} - {largest})


def _undominated(rows: list[FrontierPoint]) -> list[FrontierPoint]:
    """Those that no other point beats in time and in memory, the fastest first."""
    kept: list[FrontierPoint] = []
    for row in sorted(rows, key=lambda each: (each.step_time_s, each.peak_memory_bytes)):
        tie = kept and row.step_time_s <= kept[-1].step_time_s * (1 + 1e-9)
        if tie and row.peak_memory_bytes < kept[-1].peak_memory_bytes:
            kept[-1] = row  # as fast, but for rounding, and leaner
        elif not kept or row.peak_memory_bytes < kept[-1].peak_memory_bytes:
            kept.append(row)
    return kept


def _marked(point: FrontierPoint, given: Answer) -> FrontierPoint:
    same = math.isclose(point.step_time_s, given.step_time_s, rel_tol=1e-9)
    return replace(point, is_plan=same and point.peak_memory_bytes == given.peak_memory_bytes)
