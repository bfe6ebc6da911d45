import numpy as np
import pytest

from autoplan.solver import Problem, ProblemBuilder, Variable


def test_edges_are_normalised_and_add_up() -> None:
    builder = ProblemBuilder()
    u = builder.add_variable("u", [1.0, 2.0])
    v = builder.add_variable("v", [0.0, 0.0, np.inf], [5.0, 6.0, 7.0])
    matrix = np.arange(6.0).reshape(2, 3)
    builder.add_edge(u, v, matrix)
    builder.add_edge(v, u, 10 * matrix.T)
    builder.add_edge(u, u, [[100.0, 7.0], [7.0, 200.0]])
    problem = builder.build(memory_limit=6.0)

    assert list(problem.edges) == [(0, 1)]
    np.testing.assert_array_equal(problem.edges[0, 1], 11 * matrix)
    np.testing.assert_array_equal(problem.variables[u].cost, [101.0, 202.0])
    assert problem.objective((1, 1)) == 202.0 + 0.0 + 44.0
    assert problem.memory((1, 1)) == 6.0
    assert problem.is_feasible((1, 1))
    assert not problem.is_feasible((1, 2))  # forbidden, and too large


def test_both_directions_of_a_given_edge_add_up() -> None:
    variables = (Variable("u", np.zeros(2), np.zeros(2)), Variable("v", np.zeros(3), np.zeros(3)))
    problem = Problem(variables, {(1, 0): np.ones((3, 2)), (0, 1): np.ones((2, 3))})
    np.testing.assert_array_equal(problem.edges[0, 1], np.full((2, 3), 2.0))


def test_values_are_frozen() -> None:
    problem = Problem((Variable("u", np.zeros(2), np.zeros(2)),), {})
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
    with pytest.raises(ValueError, match="memory of 'w' must be finite"):
        builder.add_variable("w", [0.0], [np.inf])
    with pytest.raises(ValueError, match="memory of 'w' has shape"):
        builder.add_variable("w", [0.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="memory_limit is -1"):
        builder.build(-1)
    with pytest.raises(ValueError, match="joins a variable to itself"):
        Problem((Variable("u", np.zeros(1), np.zeros(1)),), {(0, 0): np.zeros((1, 1))})


def test_wrong_choices_are_named() -> None:
    problem = Problem((Variable("u", np.zeros(2), np.zeros(2)),), {})
    with pytest.raises(ValueError, match="2 choices for 1 variables"):
        problem.objective((0, 0))
    with pytest.raises(ValueError, match="choice -1 for 'u'"):
        problem.objective((-1,))
