"""Lower bounds of cuts whose stages share groups, and what they leave out of the ILP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoplan.solver.chain.intervals import Intervals
from autoplan.solver.chain.problem import Chain, Pipeline
from autoplan.solver.problem import FloatArray

# Sums that a group's stages can have, beyond which they are not listed.
_MOST_SUMS = 2_000_000
# Sums are listed in units of this part of the largest.
_UNIT = 1e-11
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Bounds:
    """No cut goes below: `slowest_s`, the slowest group's seconds per microbatch; `once_s`, the
    largest paid once; `objective`, seconds of a step. No group of a better cut than the one known
    exceeds `most_s` per microbatch."""

    slowest_s: float
    once_s: float
    objective: float
    most_s: float


def bounds_of(
    chain: Chain, pipeline: Pipeline, intervals: Intervals, sum_s: float, best: float
) -> Bounds:
    """Bounds, if stages take at least `sum_s` together and a cut of `best` seconds is known."""
    groups, m = pipeline.num_groups, pipeline.microbatches
    total_once = float(chain.once_s.sum())
    slowest_s = sum_s / groups
    once_s = max(float(chain.once_s.max()), total_once / groups)
    most_s = np.inf
    if best < np.inf and total_once:
        most_once = (best - sum_s - (m - 1) * slowest_s) * (1.0 + _TOLERANCE)
        paid = np.where(np.isfinite(intervals.seconds), intervals.once_s, np.inf)
        once_s = max(once_s, _least_largest(pipeline, paid, total_once, most_once))
    if best < np.inf and m > 1:
        most_s = (best - sum_s - once_s) / (m - 1) * (1.0 + _TOLERANCE)
        if not any(group_binds(pipeline, intervals, g, most_s) for g in range(groups)):
            slowest_s = max(slowest_s, _least_largest(pipeline, intervals.seconds, sum_s, most_s))
    return Bounds(slowest_s, once_s, sum_s + (m - 1) * slowest_s + once_s, most_s)


def group_binds(pipeline: Pipeline, intervals: Intervals, group: int, most_s: float) -> bool:
    """Whether a group that takes at most `most_s` could exceed its memory, nothing recomputed.

    Adds up, stage by stage, the most bytes that each number of seconds can have.
    """
    seconds, held, peak = np.zeros(1), np.zeros(1), 0.0
    for s in pipeline.stages_of(group):
        live = np.isfinite(intervals.seconds[s]) & (intervals.seconds[s] <= most_s)
        peak = max(peak, float(intervals.transient_bytes[live].max(initial=0.0)))
        own = _frontier(intervals.seconds[s][live], intervals.bytes_without[s][live])
        if seconds.size * own[0].size > _MOST_SUMS:
            return True
        both = [np.add.outer(a, b).ravel() for a, b in zip((seconds, held), own, strict=True)]
        seconds, held = _frontier(both[0], both[1])
        within = seconds <= most_s
        seconds, held = seconds[within], held[within]
    return float(held.max(initial=0.0)) + peak > float(pipeline.memory_bytes[group])


def _frontier(seconds: FloatArray, held: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The pairs of which no other has as many bytes in as few seconds, by seconds."""
    order = np.lexsort((-held, seconds))
    most = np.maximum.accumulate(np.r_[-1.0, held[order]])
    order = order[held[order] > most[:-1]]
    return seconds[order], held[order]


def _least_largest(pipeline: Pipeline, table: FloatArray, total: float, most: float) -> float:
    """A bound of the largest group: with less, the groups could not hold `total` together.

    Lists the sums of `table` [S, n+1, n+1] that each group's stages can have, up to `most`: with
    equal layers there are few. 0.0 if they are too many.
    """
    if most <= 0.0:
        return 0.0
    unit, slack = most * _UNIT, float(pipeline.num_stages)
    sums = []
    for g in range(pipeline.num_groups):
        reach = np.zeros(1)
        for s in pipeline.stages_of(g):
            steps = np.unique(np.rint(table[s][table[s] <= most] / unit))
            if reach.size * steps.size > _MOST_SUMS:
                return 0.0
            both = np.unique(np.add.outer(reach, steps))
            reach = both[both <= most / unit + slack]
            if not reach.size:
                return most
        sums.append(reach)
    candidates = np.unique(np.concatenate(sums))
    # Each group's largest sum up to each candidate; none at all below its least.
    largest = np.zeros(candidates.size)
    for reach in sums:
        place = np.searchsorted(reach, candidates, side="right") - 1
        largest += np.where(place >= 0, reach[place], -np.inf)
    enough = largest + slack >= total / unit
    return float(candidates[enough.argmax()] - slack) * unit if enough.any() else most
