"""Local search for cuts whose stages share groups: where the ILP starts from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from autoplan.solver.chain.intervals import Intervals, cheapest_path
from autoplan.solver.chain.problem import BoolArray, Chain, IntArray, Pipeline
from autoplan.solver.problem import FloatArray

# Cuts [K, S + 1] -> what to lessen, the most important first: each [K].
Score: TypeAlias = Callable[[IntArray], tuple[FloatArray, ...]]

_NUM_WALKS, _MOST_STEPS = 256, 1000
_TEMPERATURES = (0.03, 0.0003)
_NUM_PRICED = 20
# Log seconds that a limit's worth of bytes in excess counts as.
_EXCESS_PRICE = 3.0
_SAME = 1e-12


def good_cut(
    chain: Chain,
    pipeline: Pipeline,
    intervals: Intervals,
    price: Callable[[tuple[int, ...]], float],
    deadline: float,
) -> tuple[int, ...] | None:
    """A good cut that fits into memory, or None if none was found.

    Anneals, then moves runs of cut positions by one piece as long as that helps. What recomputation
    costs is estimated at its least price; the best few cuts are taken at their true `price`.
    """
    start = _start(pipeline, intervals)
    if start is None:
        return None
    score = _score(chain, pipeline, intervals)
    deltas = _moves(pipeline.num_stages)
    allowed = np.isfinite(intervals.seconds)
    walked = _anneal(start, deltas, allowed, score, deadline) if len(deltas) else []
    ranked = sorted([start, *walked], key=lambda cut: _value(cut, score))[:_NUM_PRICED]
    seen = {cut: _value(cut, score) for cut in ranked}
    for cut in ranked:
        lower = _descend(cut, deltas, allowed, score, deadline)
        seen[lower] = _value(lower, score)
    priced = [(price(cut), cut) for cut in sorted(seen, key=lambda cut: seen[cut])[:_NUM_PRICED]]
    seconds, best = min(priced)
    while time.perf_counter() < deadline and not intervals.settled.all():
        near = _neighbours(np.array(best), deltas, allowed)
        nearby = [(price(cut), cut) for cut in map(tuple, near.tolist())]
        if not nearby or min(nearby)[0] >= seconds * (1.0 - _SAME):
            break
        seconds, best = min(nearby)
    return best if seconds < np.inf else None


def _anneal(
    first: tuple[int, ...], deltas: IntArray, allowed: BoolArray, score: Score, deadline: float
) -> list[tuple[int, ...]]:
    """The best cut that each of many walks meets: simulated annealing, all at once, seeded.

    A walk shifts a random run of positions, and keeps what is worse by d of its seconds, or by as
    much of its bytes, with probability exp(-d / temperature); temperatures fall geometrically.
    """
    random = np.random.default_rng(0)
    here = np.tile(np.array(first, dtype=np.intp), (_NUM_WALKS, 1))
    stages = np.arange(len(first) - 1)

    def energy(cuts: IntArray) -> FloatArray:
        excess, step, _ = score(cuts)
        return np.asarray(np.log(np.maximum(step, 1e-300)) + _EXCESS_PRICE * excess)

    value = energy(here)
    best, best_value = here.copy(), value.copy()
    # No more steps than there are cuts.
    num_cuts = math.comb(allowed.shape[1] - 2, len(first) - 2)
    num_steps = min(_MOST_STEPS, num_cuts)
    for temperature in np.geomspace(*_TEMPERATURES, num_steps).tolist():
        if time.perf_counter() > deadline:
            break
        there = here + deltas[random.integers(len(deltas), size=_NUM_WALKS)]
        valid = (np.diff(there, axis=1) > 0).all(axis=1)
        there[~valid] = here[~valid]
        at_home = np.asarray(allowed[stages, there[:, :-1], there[:, 1:]]).all(axis=1)
        there[~at_home] = here[~at_home]
        tried = energy(there)
        keeps = random.random(_NUM_WALKS) < np.exp(np.minimum((value - tried) / temperature, 0.0))
        here[keeps], value[keeps] = there[keeps], tried[keeps]
        better = value < best_value
        best[better], best_value[better] = here[better], value[better]
    return [tuple(cut) for cut in np.unique(best, axis=0).tolist()]


def smallest_excess(
    chain: Chain, pipeline: Pipeline, intervals: Intervals, first: tuple[int, ...]
) -> tuple[int, ...]:
    """A cut that exceeds the limits of memory little, from `first` by moves of one piece."""

    def score(cuts: IntArray) -> tuple[FloatArray, ...]:
        excess = _excess(pipeline, intervals, cuts)
        return excess.max(axis=1), np.square(np.maximum(excess, 0.0)).sum(axis=1)

    deltas = _moves(pipeline.num_stages)
    return _descend(first, deltas, intervals.places, score, np.inf)


def _start(pipeline: Pipeline, intervals: Intervals) -> tuple[int, ...] | None:
    """The cut with the least sum of squares of the stages' seconds: an even one."""
    found = cheapest_path(np.square(intervals.seconds))
    return None if found is None else found[1]


def _score(chain: Chain, pipeline: Pipeline, intervals: Intervals) -> Score:
    """Bytes in excess, as part of the limit, then seconds of a step, then unevenness."""
    saved = chain.saved_bytes
    prices = (chain.recompute_s[saved > 0.0] / saved[saved > 0.0]).min(initial=np.inf)
    members = _members(pipeline)
    flight = np.array([pipeline.in_flight[m > 0].max() for m in members.T])
    m = pipeline.microbatches

    def score(cuts: IntArray) -> tuple[FloatArray, ...]:
        seconds = _look_up(intervals.seconds, cuts) @ members
        once = intervals.once_s[cuts[:, :-1], cuts[:, 1:]] @ members
        without = _look_up(intervals.bytes_without, cuts) @ members
        over = np.maximum(without + _peaks(pipeline, intervals, cuts) - pipeline.most_bytes, 0.0)
        if prices < np.inf:
            seconds = seconds + over * prices / flight
            excess = np.maximum(_excess(pipeline, intervals, cuts), 0.0).sum(axis=1)
        else:
            excess = over.sum(axis=1)
        step = seconds.sum(axis=1) + (m - 1) * seconds.max(axis=1) + once.max(axis=1)
        return excess / float(pipeline.memory_bytes.min()), step, np.square(seconds).sum(axis=1)

    return score


def _excess(pipeline: Pipeline, intervals: Intervals, cuts: IntArray) -> FloatArray:
    """Bytes of each group above its limit if all is recomputed that helps, about: [K, G]."""
    stage = intervals.least_bytes - intervals.transient_bytes
    total = _look_up(stage, cuts) @ _members(pipeline)
    over: FloatArray = total + _peaks(pipeline, intervals, cuts) - pipeline.memory_bytes
    # Limits may be infinite; their differences must not.
    return np.maximum(over, -1e30)


def _peaks(pipeline: Pipeline, intervals: Intervals, cuts: IntArray) -> FloatArray:
    peaks = intervals.transient_bytes[cuts[:, :-1], cuts[:, 1:]]
    stages = [list(pipeline.stages_of(g)) for g in range(pipeline.num_groups)]
    return np.stack([peaks[:, s].max(axis=1) for s in stages], axis=1)


def _members(pipeline: Pipeline) -> FloatArray:
    """1.0 where the stage is of the group: [S, G]."""
    return np.eye(pipeline.num_groups)[list(pipeline.group)]


def _look_up(table: FloatArray, cuts: IntArray) -> FloatArray:
    """Rows of `table` [S, n+1, n+1] for each cut: [K, S]."""
    return np.asarray(table[np.arange(cuts.shape[1] - 1), cuts[:, :-1], cuts[:, 1:]])


def _moves(stages: int) -> IntArray:
    """Shifts of the positions a .. b by one, up or down: [K, S + 1]."""
    rows = []
    for a in range(1, stages):
        for b in range(a, stages):
            row = np.zeros(stages + 1, dtype=np.intp)
            row[a : b + 1] = 1
            rows += [row, -row]
    return np.array(rows, dtype=np.intp).reshape(-1, stages + 1)


def _neighbours(first: IntArray, deltas: IntArray, allowed: BoolArray) -> IntArray:
    cuts = first + deltas
    cuts = cuts[(np.diff(cuts, axis=1) > 0).all(axis=1)]
    return cuts[np.asarray(allowed[np.arange(len(first) - 1), cuts[:, :-1], cuts[:, 1:]]).all(1)]


def _value(first: tuple[int, ...], score: Score) -> tuple[float, ...]:
    return tuple(float(part[0]) for part in score(np.array([first], dtype=np.intp)))


def _less(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether a is less than b, first part first, by more than rounding."""
    for x, y in zip(a, b, strict=True):
        if abs(x - y) > _SAME * max(abs(x), abs(y)):
            return x < y
    return False


def _descend(
    first: tuple[int, ...], deltas: IntArray, allowed: BoolArray, score: Score, deadline: float
) -> tuple[int, ...]:
    value = _value(first, score)
    while time.perf_counter() < deadline:
        cuts = _neighbours(np.array(first), deltas, allowed)
        if not len(cuts):
            break
        parts = score(cuts)
        top = int(np.lexsort(parts[::-1])[0])
        tried = tuple(float(part[top]) for part in parts)
        if not _less(tried, value):
            break
        first, value = tuple(cuts[top].tolist()), tried
    return first
