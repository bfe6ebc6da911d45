import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.solver import ProblemBuilder, fold, solve
from tests.solver.problems import folded_optimum, random_problem


def random_classes(seed: int, sizes: list[int]) -> list[int]:
    """Random classes of variables of one size."""
    rng = np.random.default_rng(seed)
    return [10 * size + int(rng.integers(2)) for size in sizes]


@pytest.mark.parametrize("seed", range(150))
def test_fold_is_the_best_choice_in_which_classes_agree(seed: int) -> None:
    problem = random_problem(seed)
    classes = random_classes(seed, [v.num_candidates for v in problem.variables])
    best = folded_optimum(problem, classes)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve(problem, classes)
        return
    solution = solve(problem, classes)
    chosen = dict(zip(classes, solution.choices, strict=True))
    assert solution.choices == tuple(chosen[label] for label in classes)
    assert problem.is_feasible(solution.choices)
    assert solution.certificate.objective == pytest.approx(best, rel=1e-12, abs=0)
    assert solution.certificate.bound_of == "folded problem"
    assert solution.certificate.folding is not None
    assert solution.certificate.folding.num_classes == len(set(classes))


@pytest.mark.parametrize("seed", range(50))
def test_a_folded_choice_costs_and_weighs_what_its_expansion_does(seed: int) -> None:
    problem = random_problem(seed)
    folded = fold(problem, random_classes(seed, [v.num_candidates for v in problem.variables]))
    rng = np.random.default_rng(seed)
    choices = [int(rng.integers(v.num_candidates)) for v in folded.problem.variables]
    full = folded.expand(choices)
    expected = problem.objective(full)
    assert folded.problem.objective(choices) == pytest.approx(expected, rel=1e-12, abs=0)
    assert folded.problem.memory(choices) == problem.memory(full)


def test_an_edge_inside_a_class_costs_its_diagonal() -> None:
    builder = ProblemBuilder()
    for name in "ab":
        builder.add_variable(name, [0.0, 1.0])
    builder.add_edge(0, 1, [[5.0, -100.0], [-100.0, 2.0]])
    problem = builder.build()
    folded = fold(problem, ["layer", "layer"])
    np.testing.assert_array_equal(folded.problem.variables[0].cost, [5.0, 4.0])
    assert folded.problem.variables[0].name == "a (x2)"
    assert solve(problem, ["layer", "layer"]).choices == (1, 1)
    assert solve(problem).certificate.objective == -99.0  # what folding costs: 4 + 99


def test_infeasible_because_of_folding_says_so() -> None:
    builder = ProblemBuilder()
    for name in "ab":
        builder.add_variable(name, [0.0, 1.0], [3.0, 0.0])
    builder.add_edge(0, 1, [[0.0, 0.0], [0.0, np.inf]])
    problem = builder.build(memory_limit=3.0)
    with pytest.raises(InfeasibleError, match=r"6 bytes .* unfolded, there may be a plan"):
        solve(problem, [0, 0])
    assert sorted(solve(problem, [0, 1]).choices) == [0, 1]


def test_wrong_classes_are_named() -> None:
    builder = ProblemBuilder()
    builder.add_variable("a", [0.0, 1.0])
    builder.add_variable("b", [0.0])
    with pytest.raises(ValueError, match="'b' has 1 candidates, but 'a' of the same class has 2"):
        fold(builder.build(), [0, 0])
    with pytest.raises(ValueError, match="1 classes for 2 variables"):
        fold(builder.build(), [0])
