import time

import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.solver import ProblemBuilder, reduce
from autoplan.solver.candidates import non_dominated, split_sum
from tests.solver.problems import best_choices, brute_force, chain_of_blocks, random_problem


@pytest.mark.parametrize("seed", range(300))
def test_reduction_keeps_the_optimum_and_finds_its_way_back(seed: int) -> None:
    problem = random_problem(seed)
    best = brute_force(problem)
    try:
        reduced = reduce(problem)
    except InfeasibleError:
        assert best is None
        return
    choices = best_choices(reduced.problem)
    if best is None:
        assert choices is None
        return
    assert choices is not None
    full = reduced.expand(choices)
    assert problem.is_feasible(full)
    assert problem.objective(full) == pytest.approx(best, rel=1e-12, abs=0)
    cost = reduced.problem.objective(choices) + reduced.constant_cost
    assert cost == pytest.approx(best, rel=1e-12, abs=1e-24)


@pytest.mark.parametrize("seed", range(300))
def test_every_reduced_choice_costs_and_weighs_what_its_expansion_does(seed: int) -> None:
    problem = random_problem(seed)
    try:
        reduced = reduce(problem)
    except InfeasibleError:
        return
    rng = np.random.default_rng(seed)
    choices = [int(rng.integers(v.num_candidates)) for v in reduced.problem.variables]
    full = reduced.expand(choices)
    cost = reduced.problem.objective(choices) + reduced.constant_cost
    if cost < np.inf:
        assert problem.objective(full) == pytest.approx(cost, rel=1e-12, abs=1e-24)
    if reduced.problem.memory_limit is not None:
        memory = reduced.problem.memory(choices) + reduced.constant_memory
        assert problem.memory(full) == memory
    elif problem.memory_limit is not None:
        assert problem.memory(full) <= problem.memory_limit


def test_a_tree_without_memory_vanishes() -> None:
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
    for i in range(200):
        builder.add_variable(f"v{i}", rng.random(5), rng.random(5))
        for j in (i - 1, i - 2):
            if j >= 0:
                builder.add_edge(j, i, rng.random((5, 5)))
    assert reduce(builder.build(memory_limit=200.0)).problem.variables == ()
    assert len(reduce(builder.build(memory_limit=80.0)).problem.variables) > 100


def test_a_sum_of_node_costs_is_no_edge() -> None:
    a, b = np.array([0.1, 0.7, 1e9]), np.array([0.2, 1e-9])
    split = split_sum(np.add.outer(a, b))
    assert split is not None
    np.testing.assert_allclose(np.add.outer(*split), np.add.outer(a, b), rtol=1e-15)
    assert split_sum(np.array([[0.0, 1.0], [1.0, 0.0]])) is None
    assert split_sum(np.array([[0.0, 1e-18], [0.0, 0.0]])) is None  # small is not zero
    assert split_sum(np.array([[1e9, 1e9], [1e9, 1e9 + 1e-5]])) is None  # nor beside large
    assert split_sum(np.array([[0.0, np.inf], [0.0, 0.0]])) is None


def test_dominance_by_hand() -> None:
    cost = np.array([1.0, 0.0, 1.0, 2.0])
    edge = np.array([[0.0, 0.0], [0.0, 3.0], [0.0, 0.0], [np.inf, 0.0]])
    # 2 equals 0, 3 costs more everywhere; 1 is better against one choice, worse against another.
    np.testing.assert_array_equal(non_dominated(cost, None, [edge]), [True, True, False, False])
    memory = np.array([2.0, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(non_dominated(cost, memory, [edge]), [False, True, True, True])

    # Where both are forbidden neither is worse; small differences decide; costs may offset edges.
    np.testing.assert_array_equal(
        non_dominated(np.array([0.0, 1.0]), None, [np.array([[np.inf, 0.0], [np.inf, 0.0]])]),
        [True, False],
    )
    np.testing.assert_array_equal(
        non_dominated(np.array([1e-15, 0.0]), None, [np.array([[0.0, 1.0], [0.0, 1.0]])]),
        [False, True],
    )
    np.testing.assert_array_equal(
        non_dominated(np.array([0.0, 3.0]), None, [np.array([[2.0, 0.0], [0.0, 0.0]])]),
        [True, False],
    )


def test_dominance_over_many_columns_is_that_over_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, edge = rng.integers(0, 3, 12).astype(float), rng.random((12, 40)) * 2
        edge[rng.random((12, 40)) < 0.01] = np.inf
        kept = non_dominated(cost, None, [edge])
        for a in np.flatnonzero(~kept):
            with np.errstate(invalid="ignore"):
                worst = np.nan_to_num(edge - edge[a], nan=-np.inf, posinf=np.inf).max(axis=1)
            assert (cost - cost[a] + worst <= 0)[kept].any()


def test_a_variable_without_candidates_is_named() -> None:
    builder = ProblemBuilder()
    builder.add_variable("alone", [np.inf, np.inf])
    with pytest.raises(InfeasibleError, match="no candidate of 'alone' is left"):
        reduce(builder.build())


def test_reduction_is_near_linear() -> None:
    seconds = []
    for num_blocks in (100, 400):
        problem = chain_of_blocks(num_blocks, 10, 8, seed=0)
        start = time.process_time()
        reduce(problem)
        seconds.append(time.process_time() - start)
    print(f"1000 variables: {seconds[0]:.2f} s, 4000 variables: {seconds[1]:.2f} s")
    assert seconds[1] < 12 * seconds[0]
