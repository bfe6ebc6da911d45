import time

import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.solver import Problem, ProblemBuilder, reduce
from autoplan.solver.array_cache import ArrayCache
from autoplan.solver.reduce import Reduced
from tests.solver.problems import (
    brute_force,
    chain_of_blocks,
    copied,
    enumerate_choices,
    random_problem,
)


def assert_the_optimum_stays(problem: Problem) -> None:
    best = brute_force(problem)
    try:
        reduced = reduce(problem)
    except InfeasibleError:
        assert best is None
        return
    choices = enumerate_choices(reduced.problem).best
    if best is None:
        assert choices is None
        return
    assert choices is not None
    full = reduced.expand(choices)
    assert problem.is_feasible(full)
    assert problem.objective(full) == pytest.approx(best, rel=1e-12, abs=0)
    cost = reduced.problem.objective(choices) + reduced.constant_cost
    assert cost == pytest.approx(best, rel=1e-12, abs=1e-24)


def assert_choices_are_worth_what_their_expansions_are(problem: Problem, seed: int) -> None:
    try:
        reduced = reduce(problem)
    except InfeasibleError:
        return
    left = {limit.name: limit for limit in reduced.problem.limits}
    rng = np.random.default_rng(seed)
    for _ in range(3):
        choices = [int(rng.integers(v.num_candidates)) for v in reduced.problem.variables]
        full = reduced.expand(choices)
        cost = reduced.problem.objective(choices) + reduced.constant_cost
        if cost < np.inf:
            assert problem.objective(full) == pytest.approx(cost, rel=1e-12, abs=1e-24)
        for limit in problem.limits:
            total = limit.total(full)
            if limit.name in left:
                small = left[limit.name]
                rounding = 1e-12 * limit.largest
                assert small.total(choices) == pytest.approx(total, rel=1e-12, abs=rounding)
                assert small.holds(small.total(choices)) == limit.holds(total)
            else:
                assert limit.holds(total)


@pytest.mark.parametrize("seed", range(500))
def test_reduction_keeps_the_optimum_and_finds_its_way_back(seed: int) -> None:
    assert_the_optimum_stays(random_problem(seed))


@pytest.mark.parametrize("seed", range(500))
def test_every_reduced_choice_costs_and_adds_what_its_expansion_does(seed: int) -> None:
    assert_choices_are_worth_what_their_expansions_are(random_problem(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(500, 10_000, 500))
def test_both_of_thousands(start: int) -> None:
    for seed in range(start, start + 500):
        problem = random_problem(seed)
        assert_the_optimum_stays(problem)
        assert_choices_are_worth_what_their_expansions_are(problem, seed)


def test_a_tree_without_limits_vanishes() -> None:
    rng = np.random.default_rng(0)
    builder = ProblemBuilder()
    for i in range(200):
        builder.add_variable(f"v{i}", rng.random(5))
        if i:
            builder.add_edge(int(rng.integers(i)), i, rng.random((5, 5)))
    assert reduce(builder.build()).problem.variables == ()


def test_a_series_parallel_graph_vanishes_when_the_limit_cannot_bind() -> None:
    rng = np.random.default_rng(0)
    builder = ProblemBuilder()
    amounts = {}
    for i in range(200):
        builder.add_variable(f"v{i}", rng.random(5))
        amounts[i] = rng.random(5)
        for j in (i - 1, i - 2):
            if j >= 0:
                builder.add_edge(j, i, rng.random((5, 5)))
    problem = builder.build()
    builder.add_limit("memory", 200.0, amounts)
    assert reduce(builder.build()).problem.variables == ()
    builder.add_limit("less memory", 80.0, amounts)
    reduced = reduce(builder.build()).problem
    assert len(reduced.variables) > 100
    assert [limit.name for limit in reduced.limits] == ["less memory"]
    assert reduce(problem).problem.variables == ()


def test_a_decided_variable_leaves_the_pairs_of_a_limit() -> None:
    """A pair of which one side is decided is a matter of the other side alone."""
    builder = ProblemBuilder()
    builder.add_variable("decided", [0.0, np.inf])
    builder.add_variable("one", [0.0, 1.0])
    builder.add_variable("other", [0.0, 1.0])
    pairs = {(0, 1): [[5.0, 1.0], [0.0, 0.0]], (1, 2): [[2.0, 0.0], [0.0, 3.0]]}
    builder.add_limit("memory", 6.0, {}, pairs)
    reduced = reduce(builder.build())
    assert [v.name for v in reduced.problem.variables] == ["one", "other"]
    (limit,) = reduced.problem.limits
    np.testing.assert_array_equal(limit.vectors[0], [5.0, 1.0])
    assert list(limit.matrices) == [(0, 1)]


def test_a_variable_without_candidates_is_named() -> None:
    builder = ProblemBuilder()
    builder.add_variable("alone", [np.inf, np.inf])
    with pytest.raises(InfeasibleError, match="no candidate of 'alone' is left"):
        reduce(builder.build())


def test_a_limit_that_even_the_least_break_is_named() -> None:
    builder = ProblemBuilder()
    builder.add_variable("a", [0.0, 1.0])
    builder.add_limit("forward of linear", 4.0, {0: [9.0, 7.0]})
    message = r"'forward of linear' of 4 cannot be met: even the least candidates need 7; raise"
    with pytest.raises(InfeasibleError, match=message):
        reduce(builder.build())


def assert_same(one: Reduced, other: Reduced) -> None:
    assert one.survivors == other.survivors
    assert one.constant_cost == other.constant_cost
    for a, b in zip(one.problem.variables, other.problem.variables, strict=True):
        np.testing.assert_array_equal(a.cost, b.cost)
    assert list(one.problem.edges) == list(other.problem.edges)
    for edge, matrix in one.problem.edges.items():
        np.testing.assert_array_equal(matrix, other.problem.edges[edge])
    for a, b in zip(one.eliminations, other.eliminations, strict=True):
        assert a.variable == b.variable
        np.testing.assert_array_equal(a.best, b.best)


@pytest.mark.parametrize("seed", range(100))
def test_shared_arrays_or_copies_reduce_alike(seed: int) -> None:
    """Results are remembered by where arrays lie; which ones lie together must not matter."""
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, 4, 3).astype(float) for _ in range(2)]
    matrices = [rng.integers(0, 4, (3, 3)).astype(float) for _ in range(2)]
    builder = ProblemBuilder()
    for i in range(8):  # few arrays in many places, as in repeated blocks
        builder.add_variable(f"v{i}", costs[int(rng.integers(2))])
    for i in range(8):
        for j in range(i):
            if rng.random() < 0.5:
                builder.add_edge(j, i, matrices[int(rng.integers(2))])
    problem = builder.build()
    assert_same(reduce(problem), reduce(copied(problem)))


def test_what_is_remembered_of_an_array_is_never_told_of_another() -> None:
    """Freed memory is soon used again; arguments are held, so that it is not while it matters."""
    remember = ArrayCache()
    places = set()
    for i in range(2000):
        array = np.full(4, float(i))
        places.add(array.__array_interface__["data"][0])
        assert remember(np.sum, array) == 4.0 * i
        assert remember(np.sum, array) == 4.0 * i
        del array
    assert len(places) == 2000
    transposed = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(remember(np.ascontiguousarray, transposed), transposed)
    np.testing.assert_array_equal(remember(np.ascontiguousarray, transposed.T), transposed.T)


def test_reduction_is_near_linear() -> None:
    seconds = []
    for num_blocks in (100, 400):
        problem = chain_of_blocks(num_blocks, 10, 8, seed=0)
        start = time.process_time()
        reduce(problem)
        seconds.append(time.process_time() - start)
    print(f"1000 variables: {seconds[0]:.2f} s, 4000 variables: {seconds[1]:.2f} s")
    assert seconds[1] < 12 * seconds[0]
