"""Solve: fold -> reduce -> ILP -> expand, with the certificate of the whole."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import replace

from autoplan.errors import InfeasibleError
from autoplan.solver.fold import fold
from autoplan.solver.ilp import explain_infeasible, solve_ilp
from autoplan.solver.problem import Folding, Problem, Solution, relative_gap
from autoplan.solver.reduce import reduce


def solve(
    problem: Problem,
    classes: Sequence[Hashable] | None = None,
    time_limit_s: float = 60.0,
    gap: float = 0.0,
) -> Solution:
    """The best choices of `problem`, one per variable, and how good they are.

    `classes[i]`: label of variable i; variables with one label choose alike, and the certificate
    is then that of the folded problem (`Certificate.folding`, `bound_of`). None: all are free.
    Stops at the relative `gap` or after `time_limit_s` seconds, see `solve_ilp`. Raises
    InfeasibleError, saying whether memory is the cause, and ValueError for classes that do not
    fit (`fold`).
    """
    start = time.perf_counter()
    folded = fold(problem, range(len(problem.variables)) if classes is None else classes)
    try:
        reduced = reduce(folded.problem)
        left_s = max(0.0, time_limit_s - (time.perf_counter() - start))
        core = solve_ilp(reduced.problem, left_s, gap)
    except InfeasibleError as error:
        # The reduced problem speaks of the limit that it has left, not of the user's.
        limited = folded.problem.memory_limit is not None
        cause = explain_infeasible(folded.problem, time_limit_s) if limited else error
        if classes is None:
            raise cause from None
        raise InfeasibleError(
            f"{cause}; this holds for variables of one class choosing alike: unfolded, there may "
            "be a plan"
        ) from None
    choices = folded.expand(reduced.expand(core.choices))
    objective = problem.objective(choices)
    bound = min(objective, core.certificate.bound + reduced.constant_cost)
    certificate = replace(
        core.certificate,
        objective=objective,
        bound=bound,
        gap=relative_gap(objective, bound),
        seconds=time.perf_counter() - start,
        num_variables=len(problem.variables),
        folding=None
        if classes is None
        else Folding(len(problem.variables), len(folded.problem.variables)),
    )
    return Solution(choices, certificate)
