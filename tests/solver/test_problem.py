import math

import numpy as np
import pytest

from autoplan.solver import Limit, Problem, ProblemBuilder, Variable, restrict
from tests.solver.problems import enumerate_choices, random_problem


def test_edges_are_normalised_and_add_up() -> None:
    builder = ProblemBuilder()
    u = builder.add_variable("u", [1.0, 2.0])
    v = builder.add_variable("v", [0.0, 0.0, np.inf])
    matrix = np.arange(6.0).reshape(2, 3)
    builder.add_edge(u, v, matrix)
    builder.add_edge(v, u, 10 * matrix.T)
    builder.add_edge(u, u, [[100.0, 7.0], [7.0, 200.0]])
    builder.add_limit("memory", 6.0, {v: [5.0, 6.0, 7.0]})
    problem = builder.build()

    assert list(problem.edges) == [(0, 1)]
    np.testing.assert_array_equal(problem.edges[0, 1], 11 * matrix)
    np.testing.assert_array_equal(problem.variables[u].cost, [101.0, 202.0])
    assert problem.objective((1, 1)) == 202.0 + 0.0 + 44.0
    assert problem.limits[0].total((1, 1)) == 6.0
    assert problem.is_feasible((1, 1))
    assert not problem.is_feasible((1, 2))  # forbidden, and too large
    assert problem.without_limits().limits == ()


def test_amounts_of_pairs_add_up_in_either_direction() -> None:
    builder = ProblemBuilder()
    builder.add_variable("u", [0.0, 0.0])
    builder.add_variable("v", [0.0, 0.0, 0.0])
    matrix = np.arange(6.0).reshape(2, 3)
    pairs = {(0, 1): matrix, (1, 0): 10 * matrix.T, (0, 0): [[1.0, 9.0], [9.0, 2.0]]}
    builder.add_limit("memory", 100.0, {0: [0.5, 0.5]}, pairs, constant=-3.0)
    (limit,) = builder.build().limits
    np.testing.assert_array_equal(limit.matrices[0, 1], 11 * matrix)
    np.testing.assert_array_equal(limit.vectors[0], [1.5, 2.5])
    assert limit.total((1, 2)) == -3.0 + 2.5 + 55.0


@pytest.mark.parametrize("seed", range(30))
def test_the_brute_force_adds_up_as_the_problem_does(seed: int) -> None:
    problem = random_problem(seed)
    every = enumerate_choices(problem)
    rng = np.random.default_rng(seed)
    for at in rng.integers(len(every.choices), size=20):
        choices = every.choices[at].tolist()
        assert every.costs[at] == pytest.approx(problem.objective(choices), rel=1e-12, abs=0)
        assert every.fits[at] == problem.keeps_limits(choices)
        totals = [limit.total(choices) for limit in problem.limits]
        assert every.totals[:, at] == pytest.approx(totals, rel=1e-9, abs=1e-9)


def test_a_limit_is_kept_but_for_the_rounding_of_its_sum() -> None:
    tenths = {0: np.array([0.1]), 1: np.array([0.2])}
    assert 0.1 + 0.2 > 0.3
    assert Limit("sum", 0.3, tenths).holds(0.1 + 0.2)
    # Of a limit of zero, too: what counts is how large the amounts are.
    assert Limit("sum", 0.0, tenths, constant=-0.3).holds(0.1 + 0.2 - 0.3)
    assert not Limit("sum", 0.3, tenths).holds(0.3 + 1e-9)
    bytes_alive = Limit("memory", 80e9, {0: np.array([80e9])})
    assert not bytes_alive.holds(80e9 + 1)


def test_restriction_forbids_the_others() -> None:
    problem = random_problem(3)
    keep = [np.arange(v.num_candidates) == 0 for v in problem.variables]
    restricted = restrict(problem, {0: keep[0]})
    assert np.isinf(restricted.variables[0].cost[1:]).all()
    assert restricted.variables[0].cost[0] == problem.variables[0].cost[0]
    assert restricted.limits == problem.limits
    assert restricted.variables[1:] == problem.variables[1:]


def test_both_directions_of_a_given_edge_add_up() -> None:
    variables = (Variable("u", np.zeros(2)), Variable("v", np.zeros(3)))
    problem = Problem(variables, {(1, 0): np.ones((3, 2)), (0, 1): np.ones((2, 3))})
    np.testing.assert_array_equal(problem.edges[0, 1], np.full((2, 3), 2.0))


def test_values_are_frozen() -> None:
    problem = Problem((Variable("u", np.zeros(2)),), {})
    with pytest.raises(ValueError, match="read-only"):
        problem.variables[0].cost[0] = 1.0


def test_a_wrong_array_is_named() -> None:
    builder = ProblemBuilder()
    builder.add_variable("u", [0.0, 0.0])
    builder.add_variable("v", [0.0])
    with pytest.raises(ValueError, match=r"'u' - 'v' has shape \(1, 2\); expected \(2, 1\)"):
        builder.add_edge(0, 1, [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"'u' - 'v' holds NaN"):
        builder.add_edge(0, 1, [[1.0], [np.nan]])
    with pytest.raises(ValueError, match="2 variables"):
        builder.add_edge(0, 2, [[1.0]])
    with pytest.raises(ValueError, match="cost of 'w' holds NaN or -inf"):
        builder.add_variable("w", [-np.inf])
    with pytest.raises(ValueError, match=r"expected \(k,\)"):
        builder.add_variable("w", [])
    with pytest.raises(ValueError, match="joins a variable to itself"):
        Problem((Variable("u", np.zeros(1)),), {(0, 0): np.zeros((1, 1))})


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (Limit("m", 1.0, {1: np.zeros(2)}), "limit 'm' has .* for variable 1"),
        (Limit("m", 1.0, {0: np.zeros(3)}), "limit 'm' has .* for variable 0"),
        (Limit("m", 1.0, {0: np.array([0.0, np.inf])}), "limit 'm' must hold finite amounts"),
        (Limit("m", math.nan), "limit 'm' must hold finite amounts"),
        (Limit("m", 1.0, {}, {(0, 0): np.zeros((2, 2))}), r"matrix of \(0, 0\); expected u < v"),
        (Limit("m", 1.0, {}, {(0, 1): np.zeros((2, 2))}), r"edge \(0, 1\) of a problem with 1"),
    ],
)
def test_a_wrong_limit_is_named(limit: Limit, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem((Variable("u", np.zeros(2)),), {}, (limit,))


def test_wrong_choices_are_named() -> None:
    problem = Problem((Variable("u", np.zeros(2)),), {})
    with pytest.raises(ValueError, match="2 choices for 1 variables"):
        problem.objective((0, 0))
    with pytest.raises(ValueError, match="choice -1 for 'u'"):
        problem.objective((-1,))
