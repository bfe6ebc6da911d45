"""Cut a chain into stages that have a group each: exact, by shortest paths under bounds.

A step takes sum_s t_s + (m-1) A + B, A the slowest stage's seconds and B the largest seconds paid
once. Under given limits on A and B the least sum is a shortest path (the dynamic programme of Zheng
et al., "Alpa", 2022, section 5.1). Instead of trying every limit, boxes of limits are halved, best
bound first: a box costs at least the least sum at its upper corner, and its lower corner's rest.
What recomputation adds to an interval starts as a bound and is worked out, by a knapsack, only for
intervals on a shortest path.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autoplan.solver.chain.intervals import Intervals, cheapest_path
from autoplan.solver.chain.problem import Chain, Pipeline
from autoplan.solver.chain.recompute import fit, stage_bytes
from autoplan.solver.problem import FloatArray

_EXACT = 1e-12


@dataclass(frozen=True)
class Search:
    """`first`: the best cut found, None if none is possible, and no cut costs less than `bound`."""

    first: tuple[int, ...] | None
    bound: float
    finished: bool


@dataclass(frozen=True)
class _Corner:
    """The least sum of seconds at a box's upper corner, and where its cut lies in the box."""

    sum_s: float
    slowest_s: float
    once_s: float


@dataclass(frozen=True)
class _Box:
    """Cuts with `low_s` <= slowest stage <= `high_s`, and so for what is paid once."""

    low_s: float
    high_s: float
    low_once_s: float
    high_once_s: float
    corner: _Corner


def search_boxes(
    chain: Chain,
    pipeline: Pipeline,
    intervals: Intervals,
    price: Callable[[tuple[int, ...]], float],
    deadline: float,
) -> Search:
    """The best cut of a pipeline whose stages have a group each.

    `price`: seconds of a step of a cut, np.inf if it does not fit. Ends at `deadline` (of
    time.perf_counter) with the best so far.
    """
    paths = _Paths(chain, pipeline, intervals)
    m, stages = pipeline.microbatches, pipeline.num_stages
    least_once = max(float(chain.once_s.max()), float(chain.once_s.sum()) / stages)
    number = itertools.count()
    best, best_first = np.inf, None
    boxes: list[tuple[float, int, _Box]] = []
    closed = np.inf

    def add(low_s: float, high_s: float, low_once_s: float, high_once_s: float) -> None:
        nonlocal best, best_first
        found = paths.least(high_s, high_once_s, deadline)
        if found is None:
            return
        corner, first = found
        objective = price(first)
        if objective < best:
            best, best_first = objective, first
        push(_Box(low_s, high_s, low_once_s, high_once_s, corner))

    def push(box: _Box) -> None:
        low_s = max(box.low_s, box.corner.sum_s / stages)
        bound = box.corner.sum_s + (m - 1) * low_s + box.low_once_s
        heapq.heappush(boxes, (bound, next(number), box))

    add(0.0, np.inf, least_once, np.inf)
    while boxes:
        bound, _, box = boxes[0]
        if bound >= best * (1.0 - _EXACT) or time.perf_counter() > deadline:
            break
        heapq.heappop(boxes)
        corner = box.corner
        low_s = max(box.low_s, corner.sum_s / stages)
        rest = (m - 1) * (corner.slowest_s - low_s)
        rest_once = corner.once_s - box.low_once_s
        if max(rest, rest_once) <= 0.1 * _EXACT * best:
            closed = min(closed, bound)
        elif rest >= rest_once:
            middle = 0.5 * (low_s + corner.slowest_s)
            push(_Box(middle, box.high_s, box.low_once_s, box.high_once_s, corner))
            add(low_s, middle, box.low_once_s, box.high_once_s)
        else:
            middle = 0.5 * (box.low_once_s + corner.once_s)
            push(_Box(low_s, box.high_s, middle, box.high_once_s, corner))
            add(low_s, box.high_s, box.low_once_s, middle)
    open_bound = boxes[0][0] if boxes else np.inf
    finished = not boxes or open_bound >= best * (1.0 - _EXACT)
    return Search(best_first, min(best, closed, open_bound), finished)


class _Paths:
    """Shortest paths over `intervals`, whose seconds are settled on the way."""

    def __init__(self, chain: Chain, pipeline: Pipeline, intervals: Intervals) -> None:
        self._chain, self._pipeline = chain, pipeline
        self._seconds = intervals.least_s.copy()
        self._settled = intervals.settled.copy()
        self._plain_s, self._once_s = intervals.seconds, intervals.once_s
        self._known: dict[tuple[bytes, ...], float] = {}

    def least(
        self, most_s: float, most_once_s: float, deadline: float
    ) -> tuple[_Corner, tuple[int, ...]] | None:
        """The least sum with no stage over `most_s` and `most_once_s`, and its cut.

        Past `deadline` the sum may be a lower bound of it.
        """
        allowed_once = self._once_s <= most_once_s
        while True:
            live = (self._seconds <= most_s) & allowed_once
            found = cheapest_path(np.where(live, self._seconds, np.inf))
            if found is None:
                return None
            total, first = found
            steps = list(zip(range(len(first) - 1), first, first[1:], strict=False))
            open_steps = [step for step in steps if not self._settled[step]]
            if not open_steps or time.perf_counter() > deadline:
                slowest = max(float(self._seconds[step]) for step in steps)
                once = max(float(self._once_s[i, j]) for _, i, j in steps)
                return _Corner(total, slowest, once), first
            for step in open_steps:
                self._seconds[step] = self._plain_s[step] + self._added_s(*step)
                self._settled[step] = True

    def _added_s(self, stage: int, first: int, end: int) -> float:
        """The least seconds of recomputation with which the interval fits as `stage`."""
        chain, pipeline = self._chain, self._pipeline
        part = slice(first, end)
        limit = float(pipeline.most_bytes[pipeline.group[stage]])
        saved: FloatArray = chain.saved_bytes[part] * pipeline.in_flight[stage]
        peaks = chain.transient_bytes[part] + chain.working_bytes[part]
        peak = float(chain.transient_bytes[part].max())
        over = stage_bytes(chain, pipeline, stage, first, end) - limit
        key = (
            chain.recompute_s[part].tobytes(),
            saved.tobytes(),
            peaks.tobytes(),
            np.array([peak, over]).tobytes(),
        )
        if key not in self._known:
            self._known[key] = fit(chain.recompute_s[part], saved, peaks, peak, over).bound
        return self._known[key]
