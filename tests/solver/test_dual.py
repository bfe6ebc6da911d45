"""Dual bounds and the core solver, held against the cost of every choice."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.solver import Problem, ProblemBuilder, restrict
from autoplan.solver.core import solve_core, surviving
from autoplan.solver.dual import Dual, dual_ascent
from tests.solver.problems import Enumeration, enumerate_choices, random_problem


def far() -> float:
    return time.perf_counter() + 60.0


def graph(seed: int) -> Problem:
    """Every candidate is allowed and has an allowed partner, as `dual_ascent` asks for."""
    rng = np.random.default_rng(seed)
    scale = float(rng.choice([1.0, 1e-7, 1e4]))
    integers, forbidden = bool(rng.integers(2)), float(rng.choice([0.0, 0.2, 0.4]))
    sizes = rng.integers(2, 5, rng.integers(1, 6)).tolist()
    builder = ProblemBuilder()

    def costs(*shape: int) -> np.ndarray:
        return scale * (rng.integers(-2, 4, shape) if integers else rng.random(shape) - 0.3)

    for i, k in enumerate(sizes):
        builder.add_variable(f"v{i}", costs(k))
    density = rng.choice([0.4, 1.0])
    for u, v in combinations(range(len(sizes)), 2):
        if rng.random() < density:
            matrix = costs(sizes[u], sizes[v])
            out = rng.random(matrix.shape) < forbidden
            out[np.arange(sizes[u]), rng.integers(sizes[v], size=sizes[u])] = False
            out[rng.integers(sizes[u], size=sizes[v]), np.arange(sizes[v])] = False
            builder.add_edge(u, v, np.where(out, np.inf, matrix))
    return builder.build()


def least_with(every: Enumeration, u: int, candidate: int) -> float:
    return float(every.costs[every.choices[:, u] == candidate].min())


def scale_of(problem: Problem) -> float:
    arrays = [v.cost for v in problem.variables] + list(problem.edges.values())
    return sum(float(np.abs(a[np.isfinite(a)]).max()) for a in arrays)


def assert_a_bound_of_everything(problem: Problem, dual: Dual) -> None:
    every = enumerate_choices(problem)
    rounding = 1e-12 * scale_of(problem)
    assert dual.bound <= every.costs.min() + rounding
    assert problem.objective(dual.choices) == dual.objective
    for u, excess in enumerate(dual.excess):
        for candidate, above in enumerate(excess):
            assert dual.bound + above <= least_with(every, u, candidate) + rounding


@pytest.mark.parametrize("sweeps", [10, 600])
@pytest.mark.parametrize("seed", range(250))
def test_no_choice_costs_less_than_its_bound(seed: int, sweeps: int) -> None:
    problem = graph(seed)
    assert_a_bound_of_everything(problem, dual_ascent(problem, far(), max_sweeps=sweeps))


@pytest.mark.parametrize("seed", range(250))
def test_what_is_deleted_is_worse_than_what_is_known(seed: int) -> None:
    problem = graph(seed)
    dual = dual_ascent(problem, far())
    every = enumerate_choices(problem)
    if not np.isfinite(every.costs.min()):
        return
    for known in (dual.objective, every.costs.min()):
        masks = surviving(dual, known)
        optimal = every.choices[every.costs <= every.costs.min()]
        for choices in optimal:
            assert all(masks[u][c] for u, c in enumerate(choices))
        pruned = enumerate_choices(restrict(problem, masks))
        assert pruned.costs.min() == every.costs.min()


def test_the_bound_of_a_tree_is_tight() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        builder = ProblemBuilder()
        for i in range(6):
            builder.add_variable(f"v{i}", rng.random(3))
            if i:
                builder.add_edge(int(rng.integers(i)), i, rng.random((3, 3)))
        problem = builder.build()
        dual = dual_ascent(problem, far())
        every = enumerate_choices(problem)
        assert dual.bound == pytest.approx(every.costs.min(), rel=1e-12)
        assert dual.objective == pytest.approx(every.costs.min(), rel=1e-12)


def test_a_deadline_in_the_past_still_gives_a_bound() -> None:
    problem = graph(7)
    assert_a_bound_of_everything(problem, dual_ascent(problem, time.perf_counter() - 1.0))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", range(400))
def test_the_core_is_exact_or_bounded(seed: int, late: bool) -> None:
    problem = random_problem(seed).without_limits() if seed % 2 else graph(seed)
    best = enumerate_choices(problem).optimum
    try:
        core = solve_core(problem, time.perf_counter() - 1.0 if late else far())
    except InfeasibleError:
        assert best is None
        return
    rounding = 1e-12 * scale_of(problem)
    assert core.objective == problem.objective(core.choices)
    if core.rest is None:
        assert best is not None
        assert core.objective == pytest.approx(best, rel=1e-12, abs=rounding)
        assert core.bound == pytest.approx(best, rel=1e-9, abs=rounding)
        return
    left = enumerate_choices(core.rest).best
    if best is None:
        assert core.objective == np.inf
        assert left is None
        return
    assert core.bound <= best + rounding
    # What is best is left, or known already.
    found = core.objective
    if left is not None:
        full = core.expand(left)
        cost = core.rest.objective(left) + core.constant
        assert problem.objective(full) == pytest.approx(cost, rel=1e-12, abs=rounding)
        found = min(found, cost)
    assert found == pytest.approx(best, rel=1e-12, abs=rounding)


def test_forbidden_choices_are_never_called_a_solution() -> None:
    """Three colours of a graph that needs four: every choice is forbidden, and no sum finds out."""
    builder = ProblemBuilder()
    for i in range(4):
        builder.add_variable(f"v{i}", [0.0, 0.0, 0.0])
        for j in range(i):
            builder.add_edge(j, i, np.where(np.eye(3), np.inf, 1.0))
    core = solve_core(builder.build(), far())
    assert core.objective == np.inf
    assert core.rest is not None
