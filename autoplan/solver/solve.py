"""Solve: fold -> reduce -> dual bounds -> ILP -> expand, with the certificate of the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from autoplan.errors import InfeasibleError
from autoplan.solver.branch import branch_and_bound
from autoplan.solver.core import solve_core, surviving
from autoplan.solver.dual import dual_ascent
from autoplan.solver.fold import fold
from autoplan.solver.ilp import solve_ilp
from autoplan.solver.lagrangian import allowance, at_rising_prices, least_excess, priced
from autoplan.solver.problem import (
    Certificate,
    Folding,
    Problem,
    Solution,
    UndecidedError,
    relative_gap,
    restrict,
)
from autoplan.solver.reduce import reduce

_BRANCHED_GAP = 5e-3
"""Branching goes on to this gap; what is left of it an ILP closes faster."""

_MOST_PAIRS_AT_ONCE = 3000
"""Pairs of candidates up to which an ILP of a limited problem is faster than branching."""

_Expand = Callable[[tuple[int, ...]], tuple[int, ...]]
"""From choices of a smaller problem to those of the whole."""


def solve(
    problem: Problem,
    classes: Sequence[Hashable] | None = None,
    time_limit_s: float = 60.0,
    gap: float = 0.0,
    start: Sequence[int] | None = None,
) -> Solution:
    """The best choices of `problem`, one per variable, and how good they are.

    `classes[i]`: label of variable i. Variables with one label are first held to one choice; then
    a bound of the problem as it is shows whether that lost anything, and if it may have, the
    problem is solved as it is (`Certificate.folding`). None: no labels. Stops at the relative `gap`
    or after `time_limit_s` seconds, with the best choices so far and their gap. `start`: choices to
    begin with, if some are known. Deterministic but for the time limit. Raises InfeasibleError,
    saying whether a limit is the cause, and ValueError for classes that do not fit (`fold`).
    """
    began = time.perf_counter()
    search = _Search(problem, began + time_limit_s, gap)
    if start is not None:
        search.offer(start)
    if classes is None:
        search.run()
        return search.solution(began, None)
    folded = fold(problem, classes)
    alike = _Search(folded.problem, search.deadline, gap)
    try:
        alike.run()
    except InfeasibleError:
        pass  # of blocks that are all alike; what follows lets them differ
    else:
        assert alike.choices is not None
        search.offer(folded.expand(alike.choices))
        search.prices = alike.prices
    search.run()
    if alike.choices is None:
        return search.solution(began, None)
    lost_s = 0.0
    if relative_gap(alike.objective, search.least) > 0.0:
        lost_s = alike.objective - (search.objective if search.is_closed() else search.least)
    folding = Folding(len(problem.variables), len(folded.problem.variables), lost_s)
    return search.solution(began, folding)


class _Search:
    """The best choices of one problem so far, and the bound of all choices."""

    def __init__(self, problem: Problem, deadline: float, gap: float) -> None:
        self.problem = problem
        self.deadline = deadline
        self.gap = gap
        self.choices: tuple[int, ...] | None = None
        self.objective = np.inf
        self.bound = -np.inf
        self.prices: dict[str, float] = {}
        """Seconds per amount of each limit, by name: where to start to look for the best ones."""
        self.num_left = 0
        self.num_binaries = 0

    @property
    def least(self) -> float:
        """Seconds that no choices cost less than."""
        return min(self.bound, self.objective)

    @property
    def _halfway(self) -> float:
        """Where branching stops, so that an ILP has as much time."""
        now = time.perf_counter()
        return now + max(0.0, self.deadline - now) / 2

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline - time.perf_counter())

    def offer(self, choices: Sequence[int]) -> None:
        """Take `choices` where they are feasible and better."""
        cost = self.problem.objective(choices)
        if cost < self.objective and self.problem.keeps_limits(choices):
            self.choices, self.objective = tuple(choices), cost

    def is_closed(self) -> bool:
        """Whether the best choices are as good as was asked for."""
        return self.choices is not None and relative_gap(self.objective, self.least) <= self.gap

    def run(self) -> None:
        """Bound and choices, as good as `gap` and `deadline` allow; or InfeasibleError."""
        reduced = reduce(self.problem)
        small, constant = reduced.problem, reduced.constant_cost
        if not small.limits:
            self._run_unlimited(small, constant, reduced.expand)
            return
        guess = [self.prices.get(limit.name, 0.0) for limit in small.limits]
        branched = max(self.gap, _BRANCHED_GAP)
        if _num_pairs(small) <= _MOST_PAIRS_AT_ONCE and self._decided_at_once(
            small, constant, reduced.expand
        ):
            return
        relaxed = branch_and_bound(small, self._halfway, branched, prices=guess)
        names = (limit.name for limit in small.limits)
        self.prices = dict(zip(names, relaxed.prices, strict=True))
        self.bound = max(self.bound, relaxed.bound + constant)
        if relaxed.choices is not None:
            self.offer(reduced.expand(relaxed.choices))
        if self.choices is None:
            found = at_rising_prices(small, relaxed.prices, self.deadline)
            if found is not None:
                self.offer(reduced.expand(found))
        if self.choices is None:
            least, nearest = least_excess(small, self.deadline)
            if least > 1.0 + 1e-9:
                raise _over_limit(small, least)
            self.offer(reduced.expand(nearest))
        if self.is_closed() or (self.choices is not None and not self.left_s):
            return
        self._decide(
            _pruned(small, relaxed.prices, self.objective - constant, self.deadline),
            constant,
            reduced.expand,
        )

    def _decided_at_once(self, small: Problem, constant: float, expand: _Expand) -> bool:
        """Whether an ILP found choices of a small problem; or InfeasibleError."""
        try:
            self._decide(small, constant, expand)
        except UndecidedError:
            return False
        except InfeasibleError:
            least, _ = least_excess(small, self.deadline)
            if least > 1.0 + 1e-9:
                raise _over_limit(small, least) from None
            raise
        return self.choices is not None

    def _run_unlimited(self, small: Problem, constant: float, expand: _Expand) -> None:
        core = solve_core(small, self.deadline)
        self.bound = max(self.bound, core.bound + constant)
        self.offer(expand(core.choices))
        if core.rest is None or self.is_closed() or (self.choices and not self.left_s):
            return
        self._decide(core.rest, constant + core.constant, lambda c: expand(core.expand(c)))

    def _decide(self, left: Problem, constant: float, expand: _Expand) -> None:
        """An ILP over what is left: nothing that was left out is better than the best choices."""
        try:
            rest = reduce(left)
            found = solve_ilp(rest.problem, self.left_s, self.gap)
        except InfeasibleError as error:
            if self.choices is None:
                raise
            if not isinstance(error, UndecidedError):  # nothing is left that would be better
                self.bound = self.objective
            return
        self.num_left = len(rest.problem.variables)
        self.num_binaries = found.certificate.num_binaries
        self.offer(expand(rest.expand(found.choices)))
        proven = found.certificate.bound + rest.constant_cost + constant
        self.bound = max(self.bound, min(proven, self.objective))

    def solution(self, began: float, folding: Folding | None) -> Solution:
        assert self.choices is not None
        certificate = Certificate(
            objective=self.objective,
            bound=self.least,
            gap=relative_gap(self.objective, self.least),
            seconds=time.perf_counter() - began,
            status="optimal" if self.is_closed() else "time limit",
            num_variables=len(self.problem.variables),
            num_binaries=self.num_binaries,
            num_variables_after_reduction=self.num_left,
            folding=folding,
        )
        return Solution(self.choices, certificate)


def _pruned(
    problem: Problem, prices: Sequence[float], objective: float, deadline: float
) -> Problem:
    """`problem` without candidates that, at these prices, cost more than `objective` seconds."""
    if objective == np.inf:
        return problem
    dual = dual_ascent(priced(problem, prices), deadline)
    return restrict(problem, surviving(dual, objective + allowance(problem, prices)))


def _num_pairs(problem: Problem) -> int:
    """Candidates and pairs of candidates that cost or add something."""
    joined = {edge: m.size for limit in problem.limits for edge, m in limit.matrices.items()}
    joined |= {edge: matrix.size for edge, matrix in problem.edges.items()}
    return sum(v.num_candidates for v in problem.variables) + sum(joined.values())


def _over_limit(problem: Problem, least: float) -> InfeasibleError:
    names = ", ".join(repr(limit.name) for limit in problem.limits)
    return InfeasibleError(
        f"limits cannot be kept: {names}; even the choices that need least reach {least:.4g} times "
        "what is allowed; raise the limit"
    )
