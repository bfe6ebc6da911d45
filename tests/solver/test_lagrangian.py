"""Limits as prices, branching, mixtures and the least excess, held against every choice."""

from __future__ import annotations

import time

import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.solver import Problem, ProblemBuilder
from autoplan.solver.branch import branch_and_bound
from autoplan.solver.combine import combine
from autoplan.solver.core import solve_core
from autoplan.solver.lagrangian import (
    Relaxed,
    allowance,
    at_rising_prices,
    least_excess,
    priced,
    relax,
)
from tests.solver.problems import Enumeration, brute_force, enumerate_choices, random_problem


def far() -> float:
    return time.perf_counter() + 60.0


def limited(seed: int) -> Problem:
    """A random problem with at least one limit."""
    for attempt in range(20):
        problem = random_problem(seed + 10_000 * attempt)
        if problem.limits:
            return problem
    raise AssertionError(seed)


def assert_bounded(problem: Problem, relaxed: Relaxed) -> None:
    best = brute_force(problem)
    if best is not None:
        assert relaxed.bound <= best + 1e-9 * abs(best)
    if relaxed.choices is None:
        assert relaxed.objective == np.inf
    else:
        assert problem.is_feasible(relaxed.choices)
        assert relaxed.objective == problem.objective(relaxed.choices)
    if relaxed.over is not None:
        assert not problem.keeps_limits(relaxed.over)
        assert problem.objective(relaxed.over) < np.inf


@pytest.mark.parametrize("seed", range(200))
def test_any_prices_give_a_bound(seed: int) -> None:
    problem = limited(seed)
    best = brute_force(problem)
    rng = np.random.default_rng(seed)
    for scale in (0.0, 1.0, 100.0):
        prices = [scale * rng.random() / (limit.largest or 1.0) for limit in problem.limits]
        paid = priced(problem, prices)
        choices = [int(rng.integers(v.num_candidates)) for v in problem.variables]
        totals = [limit.total(choices) - limit.constant for limit in problem.limits]
        expected = problem.objective(choices) + np.dot(prices, totals)
        assert paid.objective(choices) == pytest.approx(expected, rel=1e-9, abs=1e-12 * scale)
        try:
            bound = solve_core(paid, far()).bound - allowance(problem, prices)
        except InfeasibleError:
            assert best is None
            continue
        if best is not None:
            assert bound <= best + 1e-9 * max(abs(best), scale)


@pytest.mark.parametrize("seed", range(150))
def test_a_relaxation_bounds_and_its_choices_fit(seed: int) -> None:
    problem = limited(seed)
    try:
        relaxed = relax(problem, far())
    except InfeasibleError:
        assert brute_force(problem) is None
        return
    assert_bounded(problem, relaxed)
    assert len(relaxed.prices) == len(problem.limits)
    # From prices and choices that are known it is as true.
    again = relax(problem, far(), start=relaxed.choices, prices=relaxed.prices)
    assert_bounded(problem, again)
    assert again.objective <= relaxed.objective


@pytest.mark.parametrize("gap", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(100))
def test_branching_bounds_and_its_choices_fit(seed: int, gap: float) -> None:
    problem = limited(seed)
    try:
        found = branch_and_bound(problem, far(), gap)
    except InfeasibleError:
        assert brute_force(problem) is None
        return
    assert_bounded(problem, found)
    assert found.bound <= found.objective
    late = branch_and_bound(problem, time.perf_counter() - 1.0, gap)
    assert_bounded(problem, late)


@pytest.mark.parametrize("seed", [1554, 1799, 1858, 2779])
def test_what_cannot_be_split_any_more_still_counts_for_the_bound(seed: int) -> None:
    problem = random_problem(seed)
    assert_bounded(problem, branch_and_bound(problem, far(), 0.0))


@pytest.mark.parametrize("seed", [7599, 11431, 12823])
def test_forbidden_choices_are_no_part_of_a_mixture_or_plane(seed: int) -> None:
    """At some prices of these, rounding the messages meets nothing that is allowed."""
    problem = random_problem(seed)
    assert_bounded(problem, branch_and_bound(problem, far(), 0.0))


def test_branching_closes_what_prices_cannot() -> None:
    """Two candidates, 8 or 0 of 7 bytes: prices mix them, and promise what no choice reaches."""
    builder = ProblemBuilder()
    builder.add_variable("large", [0.0, 10.0])
    builder.add_variable("small", [0.0, 1.0])
    builder.add_limit("memory", 7.0, {0: [8.0, 0.0], 1: [1.0, 0.0]})
    problem = builder.build()
    relaxed = relax(problem, far())
    found = branch_and_bound(problem, far(), 0.0)
    assert relaxed.bound < 10.0 - 1e-6
    assert (found.bound, found.objective, found.choices) == (10.0, 10.0, (1, 0))


def _fitting(every: Enumeration) -> np.ndarray:
    return every.choices[every.fits & (every.costs < np.inf)]


@pytest.mark.parametrize("seed", range(200))
def test_a_mixture_fits_and_is_never_worse(seed: int) -> None:
    problem = limited(seed)
    every = enumerate_choices(problem)
    allowed = every.choices[every.costs < np.inf]
    fitting = _fitting(every)
    if not len(fitting):
        return
    rng = np.random.default_rng(seed)
    for _ in range(3):
        one = tuple(map(int, rng.choice(fitting)))
        other = tuple(map(int, rng.choice(allowed)))
        mixed = combine(problem, one, other)
        assert problem.is_feasible(mixed)
        assert problem.objective(mixed) <= problem.objective(one)
        assert all(c in pair for c, *pair in zip(mixed, one, other, strict=True))


def test_a_mixture_that_is_over_a_limit_by_a_tolerance_is_none() -> None:
    builder = ProblemBuilder()
    builder.add_variable("a", [1.0, 0.0])
    builder.add_limit("memory", 1e9, {0: [0.0, 1e9 + 1.0]})
    assert combine(builder.build(), (0,), (1,)) == (0,)


def test_a_mixture_is_the_best_there_is() -> None:
    """Without edges every variable is a part: the mixture is the knapsack's optimum."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        builder = ProblemBuilder()
        for i in range(8):
            builder.add_variable(f"v{i}", [1.0 + rng.random(), rng.random()])
        builder.add_limit("memory", 2.0, {i: [0.0, rng.random()] for i in range(8)})
        problem = builder.build()
        mixed = combine(problem, (0,) * 8, (1,) * 8)
        assert problem.objective(mixed) == pytest.approx(brute_force(problem), rel=1e-9)


def excesses(every: Enumeration) -> np.ndarray:
    """The largest excess over a limit, of every choice, as `least_excess` defines it."""
    result = np.full(len(every.choices), -np.inf)
    for limit, totals in zip(every.problem.limits, every.totals, strict=True):
        whole = limit.most >= 1e-6 * limit.largest and limit.most > 0
        unit = limit.most if whole else limit.largest or 1.0
        result = np.maximum(result, 1.0 + (totals - limit.most) / unit)
    return np.where(every.costs < np.inf, result, np.inf)


@pytest.mark.parametrize("seed", range(200))
def test_the_least_excess_is_bounded_and_its_choices_are_allowed(seed: int) -> None:
    problem = limited(seed)
    every = enumerate_choices(problem)
    of_all = excesses(every)
    try:
        bound, choices = least_excess(problem, far())
    except InfeasibleError:
        assert not np.isfinite(every.costs).any()
        return
    assert problem.objective(choices) < np.inf
    assert bound <= of_all.min() + 1e-9
    if bound > 1.0 + 1e-9:
        assert brute_force(problem) is None
    reached = of_all[(every.choices == choices).all(axis=1)]
    assert of_all.min() - 1e-12 <= reached.min()


def test_the_least_excess_of_two_limits_by_hand() -> None:
    """6 and 3 of 4, or 3 and 5 of 4: shares of 0.4 and 0.6 prove that 1.05 times is the least."""
    builder = ProblemBuilder()
    builder.add_variable("a", [0.0, 0.0, 1.0])
    builder.add_limit("one", 4.0, {0: [6.0, 3.0, 7.0]})
    builder.add_limit("other", 4.0, {0: [3.0, 5.0, 7.0]})
    bound, choices = least_excess(builder.build(), far())
    assert choices == (1,)
    assert bound == pytest.approx(1.05)


def test_the_least_excess_of_one_limit_is_exact_without_pairs() -> None:
    rng = np.random.default_rng(0)
    for most in (10.0, 1e9, 0.0, -2.0):
        builder = ProblemBuilder()
        amounts = {i: rng.random(3) * (abs(most) or 1.0) for i in range(5)}
        for i in range(5):
            builder.add_variable(f"v{i}", rng.random(3))
        builder.add_limit("memory", most, amounts)
        problem = builder.build()
        bound, choices = least_excess(problem, far())
        assert choices == tuple(int(a.argmin()) for a in amounts.values())
        assert bound == pytest.approx(excesses(enumerate_choices(problem)).min(), rel=1e-12)


@pytest.mark.parametrize("seeds", [range(60), range(60, 120)], ids=str)
def test_rising_prices_nearly_always_find_what_fits(seeds: range) -> None:
    """Feasible or None, None where nothing fits; rarely None, and rarely dear, where something."""
    fitting, ratios = 0, []
    for seed in seeds:
        problem = limited(seed)
        best = brute_force(problem)
        try:
            found = at_rising_prices(problem, [0.0] * len(problem.limits), far())
        except InfeasibleError:
            assert best is None
            continue
        fitting += best is not None
        if found is not None:
            assert problem.is_feasible(found)
            assert best is not None
            ratios.append(problem.objective(found) / best if best else 1.0)
    assert len(ratios) >= 0.9 * fitting > 10
    assert float(np.mean(ratios)) < 1.02
