"""Cut a chain into stages as an ILP in PuLP, solved by HiGHS: for stages that share groups.

One binary per stage and interval; a cut is a path through positions 0 .. n, so that the relaxation
without shared limits is integral. One binary per piece and stage where it may be recomputed; one
number for the slowest group, one for what is paid once, one for the transients of each group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import highspy
import numpy as np
import pulp

from autoplan.errors import AutoplanError
from autoplan.solver.chain.bounds import Bounds, bounds_of, group_binds
from autoplan.solver.chain.dp import Search
from autoplan.solver.chain.intervals import Intervals, cheapest_path
from autoplan.solver.chain.local import good_cut
from autoplan.solver.chain.problem import BoolArray, Chain, Pipeline
from autoplan.solver.chain.recompute import evaluate
from autoplan.solver.ilp import WarmStartedHiGHS
from autoplan.solver.problem import relative_gap

Step: TypeAlias = tuple[int, int, int]
Terms: TypeAlias = list[tuple[pulp.LpVariable, float]]

_EXACT = 1e-12
_TOLERANCE = 1e-9
# HiGHS' tolerances are absolute: seconds and bytes are scaled to reach up to this.
_SCALE = 1e3
_MAX_REPAIRS = 20
_LEAST_TIME_S = 0.01
# The part of the time that the search for a start may take.
_START_SHARE = 0.2


def search_ilp(
    chain: Chain,
    pipeline: Pipeline,
    intervals: Intervals,
    price: Callable[[tuple[int, ...]], float],
    deadline: float,
) -> Search:
    """The best cut, whatever stages share groups.

    `price`: seconds of a step of a cut, np.inf if it does not fit. Ends at `deadline` (of
    time.perf_counter) with the best so far. Deterministic but for the time limit. Raises
    AutoplanError if HiGHS fails.
    """
    shortest = cheapest_path(intervals.seconds)
    if shortest is None:
        return Search(None, np.inf, finished=True)
    now = time.perf_counter()
    first = good_cut(chain, pipeline, intervals, price, now + _START_SHARE * (deadline - now))
    best = np.inf if first is None else price(first)
    bounds = bounds_of(chain, pipeline, intervals, shortest[0], best)
    if first is not None and relative_gap(best, bounds.objective) == 0.0:
        return Search(first, min(best, bounds.objective), finished=True)

    ilp = _formulate(chain, pipeline, intervals, bounds, best)
    bound = bounds.objective
    for _ in range(_MAX_REPAIRS):
        if first is not None:
            ilp.start_from(first, evaluate(chain, pipeline, first).recomputed)
        status, dual = _run(ilp.model, first is not None, deadline)
        if status == highspy.HighsModelStatus.kInfeasible:
            # With a start that is HiGHS' rounding, and proves nothing.
            return Search(first, min(bound, best), finished=first is None)
        bound = max(bound, ilp.unit_s * dual)
        finished = status == highspy.HighsModelStatus.kOptimal
        found = ilp.cut() if ilp.model.solverModel.getSolution().value_valid else None
        if found is None:
            return Search(first, min(bound, best), finished=False)
        objective = price(found)
        if objective <= best:
            best, first = objective, found
        if objective < np.inf or not finished:
            finished = finished or (best < np.inf and relative_gap(best, bound) == 0.0)
            return Search(first, min(bound, best), finished)
        ilp.forbid(found)
    return Search(first, min(bound, best), finished=False)


@dataclass(frozen=True, eq=False)
class _Ilp:
    """Seconds = `unit_s` * the ILP's objective. `steps[s, i, j]`: stage s is i .. j-1.

    `recomputed[k, s]`: piece k is, as part of stage s. `values` gives every other variable its
    value, from the path and the recomputed pieces.
    """

    model: pulp.LpProblem
    unit_s: float
    steps: dict[Step, pulp.LpVariable]
    recomputed: dict[tuple[int, int], pulp.LpVariable]
    maxima: tuple[tuple[pulp.LpVariable, float, tuple[Terms, ...]], ...]

    def start_from(self, first: Sequence[int], recomputed: BoolArray) -> None:
        """Gives every variable its value under a cut."""
        taken = set(zip(range(len(first) - 1), first, first[1:], strict=False))
        for step, x in self.steps.items():
            x.varValue = float(step in taken)
        for (k, s), r in self.recomputed.items():
            r.varValue = float(recomputed[k] and first[s] <= k < first[s + 1])
        for top, least, rows in self.maxima:
            sums = (sum(x.varValue * weight for x, weight in row) for row in rows)
            top.varValue = max(least, *sums)

    def cut(self) -> tuple[int, ...]:
        """The positions of the solution."""
        taken = sorted(step for step, x in self.steps.items() if (x.varValue or 0.0) > 0.5)
        return (*(i for _, i, _ in taken), taken[-1][2])

    def forbid(self, first: Sequence[int]) -> None:
        """Cuts off a cut."""
        taken = zip(range(len(first) - 1), first, first[1:], strict=False)
        self.model.addConstraint(_sum([(self.steps[t], 1.0) for t in taken]) <= len(first) - 2)


def _formulate(
    chain: Chain, pipeline: Pipeline, intervals: Intervals, bounds: Bounds, best: float
) -> _Ilp:
    m = pipeline.microbatches
    unit_s = (best if best < np.inf else bounds.objective) / _SCALE or 1.0
    model = pulp.LpProblem("stages", pulp.LpMinimize)
    objective: Terms = []

    def variable(name: str, category: str, seconds: float, least: float = 0.0) -> pulp.LpVariable:
        x = model.add_variable(name, least, None, category)
        objective.append((x, seconds / unit_s))
        return x

    live = intervals.seconds <= bounds.most_s
    live &= np.isfinite(intervals.seconds)
    steps: dict[Step, pulp.LpVariable] = {
        (s, i, j): variable(f"x_{s}_{i}_{j}", pulp.LpBinary, float(intervals.seconds[s, i, j]))
        for s, i, j in np.argwhere(live).tolist()
    }
    starts: dict[tuple[int, int], list[pulp.LpVariable]] = {}
    ends: dict[tuple[int, int], list[pulp.LpVariable]] = {}
    for (s, i, j), x in steps.items():
        starts.setdefault((s, i), []).append(x)
        ends.setdefault((s + 1, j), []).append(x)
    model += pulp.lpSum(starts.get((0, 0), [])) == 1
    model += pulp.lpSum(ends.get((pipeline.num_stages, chain.num_pieces), [])) == 1
    for node in dict.fromkeys((*starts, *ends)):
        if 0 < node[0] < pipeline.num_stages:
            model += pulp.lpSum(ends.get(node, [])) - pulp.lpSum(starts.get(node, [])) == 0

    maxima: list[tuple[pulp.LpVariable, float, tuple[Terms, ...]]] = []
    recomputed: dict[tuple[int, int], pulp.LpVariable] = {}
    load: list[Terms] = [[] for _ in range(pipeline.num_groups)]
    once: list[Terms] = [[] for _ in range(pipeline.num_groups)]
    for (s, i, j), x in steps.items():
        load[pipeline.group[s]].append((x, float(intervals.seconds[s, i, j]) / unit_s))
        once[pipeline.group[s]].append((x, float(intervals.once_s[i, j]) / unit_s))

    for g in range(pipeline.num_groups):
        if not group_binds(pipeline, intervals, g, bounds.most_s):
            continue
        unit = float(pipeline.memory_bytes[g]) / _SCALE
        own = {step: x for step, x in steps.items() if pipeline.group[step[0]] == g}
        held: Terms = [(x, intervals.bytes_without[t] / unit) for t, x in own.items()]
        peaks: list[Terms] = []
        for s in pipeline.stages_of(g):
            mine = [(t, x) for t, x in own.items() if t[0] == s]
            peaks.append([(x, intervals.transient_bytes[t[1:]] / unit) for t, x in mine])
            for k in np.flatnonzero(chain.saved_bytes > 0.0).tolist():
                over = [x for (_, i, j), x in mine if i <= k < j]
                if not over:
                    continue
                seconds = float(chain.recompute_s[k])
                r = variable(f"r_{k}_{s}", pulp.LpBinary, seconds)
                recomputed[k, s] = r
                model += r - pulp.lpSum(over) <= 0
                load[g].append((r, seconds / unit_s))
                held.append((r, -chain.saved_bytes[k] * pipeline.in_flight[s] / unit))
                peaks.append([(r, (chain.transient_bytes[k] + chain.working_bytes[k]) / unit)])
        if any(weight for row in peaks for _, weight in row):
            top = variable(f"transient_{g}", pulp.LpContinuous, 0.0)
            maxima.append((top, 0.0, tuple(peaks)))
            held.append((top, 1.0))
        model += _sum(held) <= _SCALE

    if m > 1:
        least = bounds.slowest_s / unit_s * (1.0 - _EXACT)
        slowest = variable("slowest", pulp.LpContinuous, (m - 1) * unit_s, least)
        maxima.append((slowest, least, tuple(load)))
    if chain.once_s.any():
        least = bounds.once_s / unit_s * (1.0 - _EXACT)
        paid = variable("once", pulp.LpContinuous, unit_s, least)
        maxima.append((paid, least, tuple(once)))
    for top, _, rows in maxima:
        for row in rows:
            model += _sum(row) - top <= 0
    model += _sum(objective)
    return _Ilp(model, unit_s, steps, recomputed, tuple(maxima))


def _sum(terms: Terms) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression([(x, float(weight)) for x, weight in terms])


def _run(
    model: pulp.LpProblem, warm: bool, deadline: float
) -> tuple[highspy.HighsModelStatus, float]:
    """HiGHS' status and dual bound; presolve is off as in ilp.py, where it was found unsound."""
    solver = WarmStartedHiGHS(
        msg=False,
        threads=1,
        timeLimit=max(_LEAST_TIME_S, deadline - time.perf_counter()),
        gapRel=0.0,
        gapAbs=0.0,
        random_seed=0,
        parallel="off",
        presolve="off",
        primal_feasibility_tolerance=_TOLERANCE,
        dual_feasibility_tolerance=_TOLERANCE,
        mip_feasibility_tolerance=_TOLERANCE,
    )
    solver.warmStart = warm
    model.solve(solver)
    highs = model.solverModel
    status = highs.getModelStatus()
    known = highspy.HighsModelStatus
    if status == known.kUnboundedOrInfeasible:
        status = known.kInfeasible
    if status not in (known.kOptimal, known.kTimeLimit, known.kInfeasible):
        raise AutoplanError(
            f"HiGHS ended with {highs.modelStatusToString(status)!r}; expected 'Optimal' or 'Time "
            "limit reached'; run it with nothing else that uses HiGHS in this process"
        )
    return status, float(highs.getInfo().mip_dual_bound)
