import numpy as np
import pytest

from autoplan.solver import Problem
from autoplan.solver.local_search import descend, local_search
from tests.solver.problems import dense_problem, enumerate_choices, random_problem


def assert_no_single_change_improves(problem: Problem, choices: tuple[int, ...]) -> None:
    objective = problem.objective(choices)
    for u, variable in enumerate(problem.variables):
        for candidate in range(variable.num_candidates):
            changed = (*choices[:u], candidate, *choices[u + 1 :])
            if problem.is_feasible(changed):
                assert problem.objective(changed) >= objective * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(300))
def test_no_single_change_improves(seed: int) -> None:
    problem = random_problem(seed).without_limits()
    choices = local_search(problem)
    if choices is not None:
        assert problem.is_feasible(choices)
        assert_no_single_change_improves(problem, choices)


@pytest.mark.parametrize("seed", range(300))
def test_what_breaks_a_limit_is_not_returned(seed: int) -> None:
    problem = random_problem(seed)
    choices = local_search(problem)
    assert choices is None or problem.is_feasible(choices)


@pytest.mark.parametrize("seed", range(300))
def test_a_descent_keeps_limits_and_never_gets_worse(seed: int) -> None:
    problem = random_problem(seed)
    every = enumerate_choices(problem)
    fitting = every.choices[every.fits & (every.costs < np.inf)]
    rng = np.random.default_rng(seed)
    for start in rng.permutation(fitting)[:5].tolist():
        choices = tuple(descend(problem, start, keep_limits=True))
        assert problem.is_feasible(choices)
        assert problem.objective(choices) <= problem.objective(start) * (1 + 1e-12)
        assert_no_single_change_improves(problem, choices)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_limit_that_binds_is_kept(seed: int, pairs: bool) -> None:
    problem = dense_problem(20, 6, seed, pairs)
    (limit,) = problem.limits
    start = [int(limit.vectors[u].argmin()) for u in range(20)]
    assert problem.is_feasible(start)
    choices = tuple(descend(problem, start, keep_limits=True))
    assert problem.is_feasible(choices)
    assert problem.objective(choices) < problem.objective(start)
    assert_no_single_change_improves(problem, choices)
    free = descend(problem, start)
    assert not problem.keeps_limits(free)  # the limit did bind
    assert problem.objective(free) < problem.objective(choices)
