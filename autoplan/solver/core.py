"""The core solver: reduce, raise the dual bound, delete what it rules out, and again."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from autoplan.solver.dual import Dual, dual_ascent
from autoplan.solver.problem import Problem, restrict
from autoplan.solver.reduce import Reduced, reduce

_MAX_ROUNDS = 30
_FIRST_SWEEPS = 40
# What is ruled out must cost more than the best choices beyond the rounding of the sums.
_MARGIN = 1e-9


@dataclass(frozen=True, eq=False)
class Core:
    """What is known of a problem without limits, its constraints relaxed.

    `bound`, `objective`: seconds; `choices` of the problem given, the best that were met, with an
    `objective` of np.inf if all of those were forbidden. `rest`: what neither reduction nor dual
    bound could decide, for an ILP, after the `steps` that led there; None if nothing.
    """

    bound: float
    choices: tuple[int, ...]
    objective: float
    rest: Problem | None
    steps: tuple[Reduced, ...]

    @property
    def constant(self) -> float:
        """Seconds that the steps took out of the rest."""
        return sum(each.constant_cost for each in self.steps)

    def expand(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """Choices of the rest -> choices of the problem given."""
        return _expand(self.steps, choices)


def solve_core(problem: Problem, deadline: float) -> Core:
    """Bound and choices of `problem`; its limits are ignored. InfeasibleError if none is allowed.

    Candidates that the dual bound proves worse than choices already found are deleted, which lets
    reductions go on, until nothing is left, the bound is tight, or nothing changes.
    """
    steps = [reduce(problem.without_limits())]
    current = steps[0].problem
    constant = steps[0].constant_cost
    bound = -np.inf
    best: tuple[int, ...] | None = None
    objective = np.inf
    sweeps = _FIRST_SWEEPS
    for _ in range(_MAX_ROUNDS):
        if not current.variables:
            choices = _expand(steps, ())
            cost = problem.objective(choices)
            # With nothing left to decide the constant is the optimum.
            if best is None or cost < objective:
                best, objective = choices, cost
            return Core(min(objective, max(bound, constant)), best, objective, None, tuple(steps))
        dual = dual_ascent(current, deadline, objective - constant, sweeps)
        choices = _expand(steps, dual.choices)
        cost = problem.objective(choices)
        if best is None or cost < objective:
            best, objective = choices, cost
        bound = max(bound, dual.bound + constant)
        tight = objective < np.inf and (
            objective - bound <= 1e-12 * max(abs(objective), abs(bound))
        )
        if tight or time.perf_counter() > deadline:
            rest = None if tight else current
            return Core(min(bound, objective), best, objective, rest, tuple(steps))
        smaller = reduce(restrict(current, surviving(dual, objective - constant)))
        steps.append(smaller)
        constant += smaller.constant_cost
        before, after = _size(current), _size(smaller.problem)
        current = smaller.problem
        if after == before and dual.has_settled:
            break
        if after > 0.7 * before:
            sweeps *= 2
    assert best is not None
    return Core(min(bound, objective), best, objective, current, tuple(steps))


def surviving(
    dual: Dual, objective: float
) -> dict[int, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """bool[ku] for every u: candidates that choices of `objective` seconds or less may have."""
    most = objective - dual.bound
    margin = _MARGIN * max(abs(objective), abs(dual.bound))
    return {u: excess <= most + margin for u, excess in enumerate(dual.excess)}


def _size(problem: Problem) -> int:
    return sum(variable.num_candidates for variable in problem.variables)


def _expand(
    steps: list[Reduced] | tuple[Reduced, ...], choices: tuple[int, ...]
) -> tuple[int, ...]:
    for step in reversed(steps):
        choices = step.expand(choices)
    return choices
