"""Solve the ILP in PuLP by HiGHS, with a certificate that is checked against the arrays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
import pulp

from autoplan.errors import AutoplanError, InfeasibleError
from autoplan.solver.formulation import Formulation, formulate, normal_form
from autoplan.solver.local_search import local_search
from autoplan.solver.problem import (
    Certificate,
    Problem,
    Solution,
    UndecidedError,
    relative_gap,
)

_TOLERANCE = 1e-9
_MAX_REPAIRS = 20
_INFEASIBLE = (
    highspy.HighsModelStatus.kInfeasible,
    highspy.HighsModelStatus.kUnboundedOrInfeasible,
)
# HiGHS 1.15.1's presolve is off: on small problems of this form it loops for ever, where no time
# limit is seen, or says infeasible of what is not (tests/solver/test_presolve.py). Reductions and
# dual bounds here have done its work.
_LEAST_TIME_S = 0.01


def solve_ilp(
    problem: Problem,
    time_limit_s: float = 60.0,
    gap: float = 0.0,
    incumbent: Sequence[int] | None = None,
) -> Solution:
    """The best choices of `problem` as an ILP, with HiGHS' bound.

    Starts from `incumbent`, feasible choices, or from a local search. Stops at the relative `gap`,
    or after `time_limit_s` seconds with the best choices so far, their gap, and the status "time
    limit". Deterministic but for the time limit: one thread, a fixed seed. Objective and limits are
    evaluated from the arrays, not taken from HiGHS. Raises InfeasibleError if no choice is allowed
    and keeps the limits, UndecidedError if none was found in time, AutoplanError if HiGHS fails.
    """
    start = time.perf_counter()
    normal = normal_form(problem)
    if normal is None:
        raise _conflict(problem)
    if incumbent is None:
        incumbent = local_search(problem)
    if incumbent is not None:
        incumbent = tuple(incumbent)
        objective = problem.objective(incumbent)
        if relative_gap(objective, normal.constant) <= gap:
            bound = min(objective, normal.constant)
            return _solution(problem, incumbent, bound, start, finished=True)

    formulation = formulate(normal, incumbent)
    outcome = _run(problem, formulation, incumbent, start + time_limit_s, gap)
    found = [c for c in (outcome.choices, incumbent) if c is not None]
    if not found:
        if outcome.finished:
            raise _conflict(problem)
        raise UndecidedError(
            f"no plan was found in {time_limit_s} s, and none was ruled out; raise the time limit"
        )
    best = min(found, key=problem.objective)
    # What was ruled out costs more than the incumbent, hence than the best.
    bound = min(problem.objective(best), max(outcome.bound, normal.constant))
    return _solution(problem, best, bound, start, outcome.finished, formulation.num_binaries)


def _conflict(problem: Problem) -> InfeasibleError:
    limited = ", or breaks a limit" if problem.limits else ""
    return InfeasibleError(
        "constraints conflict: every choice of candidates has a forbidden one or a forbidden "
        f"pair{limited}; drop a constraint"
    )


@dataclass(frozen=True)
class _Outcome:
    """`finished`: HiGHS proved its result, `choices` None then meaning that there are none."""

    choices: tuple[int, ...] | None
    bound: float
    finished: bool


def _run(
    problem: Problem,
    formulation: Formulation,
    incumbent: Sequence[int] | None,
    deadline: float,
    gap: float,
) -> _Outcome:
    """Runs HiGHS; choices that break a constraint within its tolerance are cut off, again."""
    counted = sorted(
        {u for limit in problem.limits for u in limit.vectors}
        | {u for limit in problem.limits for edge in limit.matrices for u in edge}
    )
    bound = -np.inf
    for _ in range(_MAX_REPAIRS):
        if incumbent is not None:
            formulation.start_from(incumbent)
        solver = _solver(formulation, incumbent is not None, deadline, gap)
        formulation.model.solve(solver)
        highs = formulation.model.solverModel
        status = highs.getModelStatus()
        if status in _INFEASIBLE:
            # With an incumbent that is HiGHS' rounding, and proves nothing.
            return _Outcome(None, bound, finished=incumbent is None)
        if status not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit):
            raise AutoplanError(
                f"HiGHS ended with {highs.modelStatusToString(status)!r}; expected 'Optimal' or "
                "'Time limit reached'; run it with nothing else that uses HiGHS in this process"
            )
        dual = float(highs.getInfo().mip_dual_bound)
        bound = max(bound, formulation.constant + formulation.unit_s * dual)
        finished = status == highspy.HighsModelStatus.kOptimal
        if not highs.getSolution().value_valid:
            return _Outcome(None, bound, finished=False)
        choices = formulation.choices()
        if problem.is_feasible(choices):
            return _Outcome(choices, bound, finished)
        if not finished:
            return _Outcome(None, bound, finished=False)
        oversized = not problem.keeps_limits(choices)
        formulation.forbid(choices, counted if oversized else range(len(choices)))
    return _Outcome(None, bound, finished=False)


class WarmStartedHiGHS(pulp.HiGHS):  # type: ignore[misc]
    """PuLP's HiGHS: starts from the variables' values if `warmStart`, may end without any."""

    warmStart = False  # noqa: N815 (PuLP's name)

    def callSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802 (PuLP's name)
        if self.warmStart:
            start = highspy.HighsSolution()
            start.col_value = [x.varValue for x in lp.variables()]
            lp.solverModel.setSolution(start)
        super().callSolver(lp)

    def findSolutionValues(self, lp: pulp.LpProblem) -> tuple[int, int]:  # noqa: N802
        if not lp.solverModel.getSolution().value_valid:
            return pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound
        status: tuple[int, int] = super().findSolutionValues(lp)
        return status


def _solver(formulation: Formulation, warm: bool, deadline: float, gap: float) -> pulp.HiGHS:
    # HiGHS sees the objective without the constant: its share of the gap is an absolute one.
    constant = formulation.constant
    solver = WarmStartedHiGHS(
        msg=False,
        threads=1,
        timeLimit=max(_LEAST_TIME_S, deadline - time.perf_counter()),
        gapRel=gap if constant >= 0.0 else 0.0,
        gapAbs=gap * max(constant, 0.0) / formulation.unit_s,
        random_seed=0,
        parallel="off",
        presolve="off",
        primal_feasibility_tolerance=_TOLERANCE,
        dual_feasibility_tolerance=_TOLERANCE,
        mip_feasibility_tolerance=_TOLERANCE,
    )
    solver.warmStart = warm
    return solver


def _solution(
    problem: Problem,
    choices: tuple[int, ...],
    bound: float,
    start: float,
    finished: bool,
    num_binaries: int = 0,
) -> Solution:
    objective = problem.objective(choices)
    certificate = Certificate(
        objective=objective,
        bound=bound,
        gap=relative_gap(objective, bound),
        seconds=time.perf_counter() - start,
        status="optimal" if finished else "time limit",
        num_variables=len(problem.variables),
        num_binaries=num_binaries,
        num_variables_after_reduction=len(problem.variables),
    )
    return Solution(choices, certificate)
