import numpy as np
import pytest

from autoplan.solver import Problem
from autoplan.solver.local_search import local_search
from tests.solver.problems import dense_problem, random_problem


def assert_no_single_change_improves(problem: Problem, choices: tuple[int, ...]) -> None:
    objective = problem.objective(choices)
    for u, variable in enumerate(problem.variables):
        for candidate in range(variable.num_candidates):
            changed = (*choices[:u], candidate, *choices[u + 1 :])
            if problem.is_feasible(changed):
                assert problem.objective(changed) >= objective * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(300))
def test_no_single_change_improves(seed: int) -> None:
    problem = random_problem(seed)
    choices = local_search(problem)
    if choices is not None:
        assert problem.is_feasible(choices)
        assert_no_single_change_improves(problem, choices)


@pytest.mark.parametrize("seed", range(10))
def test_a_tight_limit_is_met_and_used(seed: int) -> None:
    problem = dense_problem(20, 6, seed)
    choices = local_search(problem)
    assert choices is not None
    assert problem.is_feasible(choices)
    assert_no_single_change_improves(problem, choices)
    cheapest = local_search(Problem(problem.variables, problem.edges))
    assert cheapest is not None
    assert problem.memory(cheapest) > np.float64(problem.memory_limit)  # the limit did bind
