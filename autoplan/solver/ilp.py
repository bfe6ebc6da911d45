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
from autoplan.solver.problem import Certificate, Problem, Solution, Variable, relative_gap
from autoplan.solver.reduce import reduce

_TOLERANCE = 1e-9
_MAX_REPAIRS = 20
_INFEASIBLE = (
    highspy.HighsModelStatus.kInfeasible,
    highspy.HighsModelStatus.kUnboundedOrInfeasible,
)
# HiGHS 1.15.1 can loop for ever in this presolve rule, where no time limit is seen
# (tests/solver/test_presolve.py); the other rules stay.
_DOUBLETON_EQUATIONS = 1 << 9

_LEAST_TIME_S = 0.01
_LEAST_MEMORY_TIME_S = 10.0


def solve_ilp(problem: Problem, time_limit_s: float = 60.0, gap: float = 0.0) -> Solution:
    """The best choices of `problem` as an ILP, with HiGHS' bound.

    Starts from a local search. Stops at the relative `gap`, or after `time_limit_s` seconds with
    the best choices so far, their gap, and the status "time limit". Deterministic but for the
    time limit: one thread, a fixed seed. Objective and memory are evaluated from the arrays, not
    taken from HiGHS. Raises InfeasibleError if no choice is allowed and fits, or if none was found
    in time; the message says which, and the least memory found if memory is the cause.
    AutoplanError if HiGHS fails.
    """
    start = time.perf_counter()
    normal = normal_form(problem)
    if normal is None:
        raise explain_infeasible(problem, time_limit_s)
    incumbent = local_search(problem)
    if incumbent is not None:
        objective = problem.objective(incumbent)
        if relative_gap(objective, normal.constant) <= gap:
            bound = min(objective, normal.constant)
            return _solution(problem, incumbent, bound, start, finished=True)

    formulation = formulate(normal, incumbent)
    outcome = _run(problem, formulation, incumbent, start + time_limit_s, gap)
    found = [c for c in (outcome.choices, incumbent) if c is not None]
    if not found and not outcome.finished and problem.memory_limit is not None:
        found = [c for c in (_least_memory(problem, time_limit_s),) if problem.is_feasible(c)]
    if not found:
        if outcome.finished:
            raise explain_infeasible(problem, time_limit_s)
        raise InfeasibleError(
            f"no plan was found in {time_limit_s} s, and none was ruled out; raise the time limit"
        )
    best = min(found, key=problem.objective)
    # What was ruled out costs more than the incumbent, hence than the best.
    bound = min(problem.objective(best), max(outcome.bound, normal.constant))
    return _solution(problem, best, bound, start, outcome.finished, formulation.num_binaries)


def explain_infeasible(problem: Problem, time_limit_s: float = 60.0) -> InfeasibleError:
    """Why `problem` has no solution: its memory limit and the least memory found, or a conflict.

    Minimises memory, ignoring cost, for up to `time_limit_s` seconds, and 10 at most.
    """
    conflict = InfeasibleError(
        "constraints conflict: every choice of candidates has a forbidden one or a forbidden "
        "pair; drop a constraint"
    )
    if problem.memory_limit is None:
        return conflict
    try:
        least = problem.memory(_least_memory(problem, time_limit_s))
    except InfeasibleError as error:
        return error
    if problem.fits(least):
        return InfeasibleError(
            f"no plan was found in {time_limit_s} s, but one of {least:.0f} bytes exists; raise "
            "the time limit"
        )
    return InfeasibleError(
        f"memory limit of {problem.memory_limit:.0f} bytes ({problem.memory_limit / 2**30:.3g} "
        f"GiB) cannot be met: the least memory found possible is {least:.0f} bytes "
        f"({least / 2**30:.3g} GiB); raise the limit or allow more ways to shard"
    )


def _least_memory(problem: Problem, time_limit_s: float) -> tuple[int, ...]:
    """Allowed choices of the least memory found; InfeasibleError if none is allowed."""
    variables = tuple(
        Variable(v.name, np.where(np.isinf(v.cost), np.inf, v.memory), np.zeros_like(v.memory))
        for v in problem.variables
    )
    edges = {edge: np.where(np.isinf(m), np.inf, 0.0) for edge, m in problem.edges.items()}
    reduced = reduce(Problem(variables, edges))
    core = solve_ilp(reduced.problem, min(time_limit_s, _LEAST_MEMORY_TIME_S))
    return reduced.expand(core.choices)


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
    carriers = [i for i, v in enumerate(problem.variables) if v.memory.max() > v.memory.min()]
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
        oversized = not problem.fits(problem.memory(choices))
        formulation.forbid(choices, carriers if oversized else range(len(choices)))
    return _Outcome(None, bound, finished=False)


class _WarmStartedHiGHS(pulp.HiGHS):  # type: ignore[misc]
    """PuLP's HiGHS, which starts from the variables' values and may end without any."""

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
    solver = _WarmStartedHiGHS(
        msg=False,
        threads=1,
        timeLimit=max(_LEAST_TIME_S, deadline - time.perf_counter()),
        gapRel=gap if constant >= 0.0 else 0.0,
        gapAbs=gap * max(constant, 0.0) / formulation.unit_s,
        random_seed=0,
        parallel="off",
        presolve_rule_off=_DOUBLETON_EQUATIONS,
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
