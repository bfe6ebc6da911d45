import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.solver import ProblemBuilder, fold, solve
from autoplan.solver.problem import relative_gap
from tests.solver.problems import brute_force, enumerate_choices, random_classes, random_problem


def assert_folding_is_only_a_start(seed: int) -> None:
    problem = random_problem(seed)
    classes = random_classes(seed, problem)
    best = brute_force(problem)
    alike = enumerate_choices(problem, classes).optimum
    if best is None:
        with pytest.raises(InfeasibleError):
            solve(problem, classes)
        return
    solution = solve(problem, classes)
    certificate = solution.certificate
    assert problem.is_feasible(solution.choices)
    assert certificate.objective == pytest.approx(best, rel=1e-12, abs=0)
    assert certificate.bound == pytest.approx(best, rel=1e-9, abs=0)
    assert (certificate.status, certificate.gap) == ("optimal", 0.0)
    folding = certificate.folding
    if alike is None:  # nothing fits in which blocks are alike
        assert folding is None
        return
    assert folding is not None
    assert folding.num_variables == len(problem.variables)
    assert folding.num_classes == len(set(classes))
    if relative_gap(alike, best) > 0.0:
        assert folding.cost_s == pytest.approx(alike - best, rel=1e-6, abs=0)
    else:
        assert folding.cost_s == 0.0


@pytest.mark.parametrize("seed", range(300))
def test_the_optimum_is_that_of_the_problem_as_it_is(seed: int) -> None:
    assert_folding_is_only_a_start(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(300, 5000, 100))
def test_and_of_thousands(start: int) -> None:
    for seed in range(start, start + 100):
        assert_folding_is_only_a_start(seed)


@pytest.mark.parametrize("seed", range(300))
def test_a_folded_choice_costs_and_adds_what_its_expansion_does(seed: int) -> None:
    problem = random_problem(seed)
    folded = fold(problem, random_classes(seed, problem))
    rng = np.random.default_rng(seed)
    for _ in range(5):
        choices = [int(rng.integers(v.num_candidates)) for v in folded.problem.variables]
        full = folded.expand(choices)
        expected = problem.objective(full)
        assert folded.problem.objective(choices) == pytest.approx(expected, rel=1e-12, abs=0)
        for small, limit in zip(folded.problem.limits, problem.limits, strict=True):
            total = limit.total(full)
            rounding = 1e-12 * limit.largest
            assert small.total(choices) == pytest.approx(total, rel=1e-12, abs=rounding)
            assert small.holds(small.total(choices)) == limit.holds(total)


def test_an_edge_inside_a_class_costs_its_diagonal() -> None:
    builder = ProblemBuilder()
    for name in "ab":
        builder.add_variable(name, [0.0, 1.0])
    builder.add_edge(0, 1, [[5.0, -100.0], [-100.0, 2.0]])
    problem = builder.build()
    folded = fold(problem, ["layer", "layer"])
    np.testing.assert_array_equal(folded.problem.variables[0].cost, [5.0, 4.0])
    assert folded.problem.variables[0].name == "a (x2)"
    certificate = solve(problem, ["layer", "layer"]).certificate
    assert certificate.objective == -99.0
    assert certificate.folding is not None
    assert certificate.folding.cost_s == 4.0 + 99.0


def test_what_only_alike_blocks_cannot_do_is_found_all_the_same() -> None:
    builder = ProblemBuilder()
    for name in "ab":
        builder.add_variable(name, [0.0, 1.0])
    builder.add_edge(0, 1, [[0.0, 0.0], [0.0, np.inf]])
    builder.add_limit("memory", 3.0, {0: [3.0, 0.0], 1: [3.0, 0.0]})
    problem = builder.build()
    solution = solve(problem, [0, 0])
    assert sorted(solution.choices) == [0, 1]
    assert (solution.certificate.gap, solution.certificate.folding) == (0.0, None)
    assert brute_force(fold(problem, [0, 0]).problem) is None


def test_wrong_classes_are_named() -> None:
    builder = ProblemBuilder()
    builder.add_variable("a", [0.0, 1.0])
    builder.add_variable("b", [0.0])
    with pytest.raises(ValueError, match="'b' has 1 candidates, but 'a' of the same class has 2"):
        fold(builder.build(), [0, 0])
    with pytest.raises(ValueError, match="1 classes for 2 variables"):
        fold(builder.build(), [0])
