"""Lagrangian relaxation of limits: every amount gets a price in seconds, and joins the costs.

Geoffrion, "Lagrangean relaxation for integer programming", Mathematical Programming Study 2, 1974.
The best prices are found by cutting planes (Kelley 1960): each set of choices met is one plane over
the prices, and a linear program of a few rows finds the prices to ask for next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pulp

from autoplan.solver.combine import combine
from autoplan.solver.core import solve_core
from autoplan.solver.ilp import WarmStartedHiGHS, solve_ilp
from autoplan.solver.local_search import descend
from autoplan.solver.problem import Edge, FloatArray, Limit, Problem, Variable

_MAX_PRICES = 60
_LEAST_PROGRESS = 1e-4
_MIXED = 4


@dataclass(frozen=True, eq=False)
class Relaxed:
    """What prices on the limits prove and find.

    `bound`: seconds; no feasible choices cost less. `prices`: seconds per amount of each limit,
    with which the bound is reached. `choices`: the best feasible ones met, None if none were.
    """

    bound: float
    prices: tuple[float, ...]
    choices: tuple[int, ...] | None
    objective: float
    over: tuple[int, ...] | None = None
    """Choices at the best prices that break a limit."""


def priced(problem: Problem, prices: Sequence[float]) -> Problem:
    """`problem` without limits, each amount paid for: costs less `sum(prices * most)` is a bound.

    Constants of limits are not priced.
    """
    costs = [variable.cost for variable in problem.variables]
    edges: dict[Edge, FloatArray] = dict(problem.edges)
    for limit, price in zip(problem.limits, prices, strict=True):
        if price == 0.0:
            continue
        for u, vector in limit.vectors.items():
            costs[u] = costs[u] + price * vector
        for edge, matrix in limit.matrices.items():
            edges[edge] = edges.get(edge, 0.0) + price * matrix
    variables = (Variable(v.name, c) for v, c in zip(problem.variables, costs, strict=True))
    return Problem(tuple(variables), edges)


def allowance(problem: Problem, prices: Sequence[float]) -> float:
    """Seconds that choices which use up every limit pay for amounts in `priced`."""
    pairs = zip(problem.limits, prices, strict=True)
    return sum(price * (limit.most - limit.constant) for limit, price in pairs)


def relax(
    problem: Problem,
    deadline: float,
    start: Sequence[int] | None = None,
    known: float = np.inf,
    prices: Sequence[float] | None = None,
) -> Relaxed:
    """The best bound that prices on the limits of `problem` prove, and feasible choices.

    `start`: feasible choices, if any are known. `known`: seconds that are of no interest any more:
    a bound that reaches them ends the search. `prices`: where to ask first. Raises
    InfeasibleError if nothing is allowed even without limits.
    """
    search = _Prices(problem, deadline)
    if start is not None:
        search.offer(tuple(start))
    if prices is not None and any(prices):
        search.ask(tuple(prices))
    if not search.is_done():
        search.ask((0.0,) * len(problem.limits))
    for _ in range(_MAX_PRICES):
        if search.is_done() or search.bound >= known or time.perf_counter() > deadline:
            break
        if not search.planes:
            break
        prices, promised = search.next_prices()
        if prices in search.asked:
            break
        before = search.bound
        search.ask(prices)
        slack = promised - search.bound
        if slack <= 1e-9 * abs(promised):
            break
        gained = search.bound - before
        if 0.0 < gained <= _LEAST_PROGRESS * slack and search.best is not None:
            break
    over = search.over[-1] if search.over else None
    return Relaxed(search.bound, search.prices, search.best, search.objective, over)


@dataclass
class _Prices:
    """The planes met so far, the best bound with its prices, and the best feasible choices."""

    problem: Problem
    deadline: float
    planes: list[tuple[float, tuple[float, ...]]] = field(default_factory=list)
    met: set[tuple[int, ...]] = field(default_factory=set)
    mixed: set[tuple[int, ...]] = field(default_factory=set)
    asked: set[tuple[float, ...]] = field(default_factory=set)
    bound: float = -np.inf
    prices: tuple[float, ...] = ()
    best: tuple[int, ...] | None = None
    objective: float = np.inf
    repeated: bool = False
    over: list[tuple[int, ...]] = field(default_factory=list)
    """Choices met that break a limit, in the order of meeting."""

    def ask(self, prices: Sequence[float]) -> None:
        """Solve at `prices`; what comes back is a plane, a bound, and maybe better choices."""
        self.asked.add(tuple(prices))
        core = solve_core(priced(self.problem, prices), self.deadline)
        bound = core.bound - allowance(self.problem, prices)
        if bound > self.bound or not self.prices:
            self.bound, self.prices = max(bound, self.bound), tuple(prices)
        self.repeated = core.choices in self.met
        self.offer(core.choices)

    def offer(self, choices: tuple[int, ...]) -> None:
        """A plane of `choices`, and better ones that they lead to; none if they are forbidden."""
        cost = self.problem.objective(choices)
        if choices in self.met or cost == np.inf:
            return
        self.met.add(choices)
        overs = tuple(limit.total(choices) - limit.most for limit in self.problem.limits)
        self.planes.append((cost, overs))
        if self.problem.keeps_limits(choices):
            self._improve(choices)
            for each in self.over[-_MIXED:]:
                self._mix(each)
        else:
            self.over.append(choices)
            self._mix(choices)

    def _improve(self, choices: tuple[int, ...]) -> None:
        """Take feasible choices, or what single changes make of them, where they are better."""
        for each in (choices, tuple(descend(self.problem, choices, keep_limits=True))):
            cost = self.problem.objective(each)
            if cost < self.objective and self.problem.keeps_limits(each):
                self.best, self.objective = each, cost

    def _mix(self, over: tuple[int, ...]) -> None:
        """Take what fits of choices that are over a limit."""
        if self.best is not None:
            mixed = combine(self.problem, self.best, over)
            if mixed not in self.mixed:
                self.mixed.add(mixed)
                self._improve(mixed)

    def is_done(self) -> bool:
        if self.best is None:
            return False
        tight = self.objective - self.bound <= 1e-12 * abs(self.objective)
        return tight or (self.repeated and len(self.planes) > 1)

    def next_prices(self) -> tuple[tuple[float, ...], float]:
        """The prices at which the planes leave most, and the bound that they promise.

        Amounts are counted in parts of their limit, seconds in parts of the planes' largest.
        """
        limits = self.problem.limits
        units = [_unit(limit) for limit in limits]
        unit_s = max(abs(cost) for cost, _ in self.planes) or 1.0
        model = pulp.LpProblem("prices", pulp.LpMaximize)
        theta = model.add_variable("bound", None, None)
        rates = [model.add_variable(f"p{i}", 0, _MOST_PRICE) for i in range(len(limits))]
        model += theta
        for cost, overs in self.planes:
            slopes = [over / unit for over, unit in zip(overs, units, strict=True)]
            model += theta <= cost / unit_s + pulp.lpDot(rates, slopes)
        model.solve(WarmStartedHiGHS(msg=False, threads=1, presolve="off"))
        if theta.varValue is None:  # HiGHS failed: no prices are better than those known
            return self.prices, self.bound
        prices = [
            max(0.0, r.varValue or 0.0) * unit_s / u for r, u in zip(rates, units, strict=True)
        ]
        return tuple(prices), float(theta.varValue) * unit_s


def at_rising_prices(
    problem: Problem, prices: Sequence[float], deadline: float
) -> tuple[int, ...] | None:
    """Choices that keep all limits, at prices that rise from `prices` until some do; or None.

    A limit without a price begins at a small part of what the choices cost. Between the last price
    that was too low and the first that was not, lower ones are tried while there is time.
    """
    free = solve_core(problem, deadline)
    least_s = _FIRST_PRICE * max(abs(free.bound), 1e-12)
    first = [
        max(price, least_s / _unit(limit))
        for price, limit in zip(prices, problem.limits, strict=True)
    ]
    best: tuple[int, ...] | None = None
    low, factor = 0.0, 1.0
    for _ in range(_MAX_RISES):
        choices = solve_core(priced(problem, [factor * price for price in first]), deadline).choices
        if problem.keeps_limits(choices) and problem.objective(choices) < np.inf:
            cost = problem.objective(choices)
            if best is None or cost < problem.objective(best):
                best = choices
            high = factor
        else:
            low = factor
        if best is None:
            factor *= _RISE
        elif low and time.perf_counter() < deadline:
            factor = math.sqrt(low * high)
        else:
            break
    return None if best is None else tuple(descend(problem, best, keep_limits=True))


_FIRST_PRICE = 0.02
"""Of a whole limit, in the cost of the choices that are best without it."""
_RISE = 4.0
_MAX_RISES = 10

_MOST_PRICE = 1e4
"""Of a whole limit, in the costs of the dearest choices met: beyond it nothing would fit."""


def least_excess(problem: Problem, deadline: float) -> tuple[float, tuple[int, ...]]:
    """A bound of the least, over all allowed choices, of the largest excess over a limit.

    Excess is total / most, so that 1.0 or less fits; where `most` is zero, negative, or next to
    nothing beside the amounts, 1.0 plus what is too much, in parts of the largest amount. Also the
    choices that came nearest. The same cutting planes, with shares of limits for prices. Costs are
    aside; what is forbidden stays so. Raises InfeasibleError if nothing is allowed.
    """
    limits = problem.limits
    free = Problem(
        tuple(
            Variable(v.name, np.where(np.isfinite(v.cost), 0.0, np.inf)) for v in problem.variables
        ),
        {edge: np.where(np.isfinite(m), 0.0, np.inf) for edge, m in problem.edges.items()},
        tuple(_as_shares(limit) for limit in limits),
    )
    shares = [1.0 / len(limits)] * len(limits)
    bound, planes = -np.inf, []
    nearest: tuple[float, tuple[int, ...]] | None = None
    for _ in range(_MAX_PRICES):
        core = solve_core(priced(free, shares), deadline)
        constants = sum(s * limit.constant for s, limit in zip(shares, free.limits, strict=True))
        bound = max(bound, core.bound + constants)
        if core.objective == np.inf:
            break
        totals = [limit.total(core.choices) for limit in free.limits]
        planes.append(totals)
        if nearest is None or max(totals) < nearest[0]:
            nearest = max(totals), core.choices
        if nearest[0] - bound <= 1e-9 or time.perf_counter() > deadline or len(limits) == 1:
            break
        before, (shares, promised) = shares, _next_shares(planes)
        if promised - bound <= 1e-6 or shares == before:
            break
    if nearest is None:  # an ILP finds what is allowed, or proves that nothing is
        left_s = max(0.0, deadline - time.perf_counter())
        return bound, solve_ilp(free.without_limits(), left_s).choices
    return bound, nearest[1]


def _as_shares(limit: Limit) -> Limit:
    unit = _unit(limit)

    def scaled(arrays: Mapping[object, FloatArray]) -> dict[object, FloatArray]:
        return {key: array / unit for key, array in arrays.items()}

    return Limit(
        limit.name,
        1.0,
        scaled(limit.vectors),  # type: ignore[arg-type]
        scaled(limit.matrices),  # type: ignore[arg-type]
        1.0 + (limit.constant - limit.most) / unit,
        limit.tolerance / unit,
    )


def _unit(limit: Limit) -> float:
    """The amount that counts as one: a whole limit, where that is no small part of its amounts."""
    whole = limit.most >= _LEAST_WHOLE * limit.largest > 0.0
    return limit.most if whole else limit.largest or 1.0


_LEAST_WHOLE = 1e-6


def _next_shares(planes: Sequence[Sequence[float]]) -> tuple[list[float], float]:
    model = pulp.LpProblem("shares", pulp.LpMaximize)
    theta = model.add_variable("bound", None, None)
    shares = [model.add_variable(f"s{i}", 0, 1) for i in range(len(planes[0]))]
    model += theta
    model += pulp.lpSum(shares) == 1
    for totals in planes:
        model += theta <= pulp.lpDot(shares, totals)
    model.solve(WarmStartedHiGHS(msg=False, threads=1, presolve="off"))
    if theta.varValue is None:  # HiGHS failed: -inf ends the search
        return [], -np.inf
    return [max(0.0, s.varValue or 0.0) for s in shares], float(theta.varValue)
