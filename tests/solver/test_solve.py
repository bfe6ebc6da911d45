import time
from collections.abc import Callable

import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.solver import Problem, ProblemBuilder, Solution, ilp, solve, solve_ilp
from tests.solver.problems import brute_force, chain_of_blocks, dense_problem, random_problem

SOLVERS = (solve, solve_ilp)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(300))
def test_the_optimum_is_that_of_brute_force(seed: int, solver: Callable[..., Solution]) -> None:
    problem = random_problem(seed)
    best = brute_force(problem)
    if best is None:
        with pytest.raises(InfeasibleError, match=r"^(memory limit of|constraints conflict)"):
            solver(problem)
        return
    solution = solver(problem)
    certificate = solution.certificate
    assert problem.is_feasible(solution.choices)
    assert problem.objective(solution.choices) == certificate.objective
    assert certificate.objective == pytest.approx(best, rel=1e-12, abs=0)
    assert certificate.bound == pytest.approx(best, rel=1e-9, abs=0)
    assert (certificate.status, certificate.gap) == ("optimal", 0.0)
    assert certificate.bound_of == "full problem"


@pytest.mark.parametrize("seed", range(150))
def test_the_ilp_alone_finds_what_the_local_search_would(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ilp, "local_search", lambda problem: None)
    problem = random_problem(seed)
    best = brute_force(problem)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve_ilp(problem)
        return
    certificate = solve_ilp(problem).certificate
    assert certificate.objective == pytest.approx(best, rel=1e-12, abs=0)
    assert certificate.gap == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_reduction_and_ilp_agree_with_brute_force_on_a_dense_core(seed: int) -> None:
    problem = dense_problem(7, 4, seed)
    solution = solve(problem)
    assert solution.certificate.num_binaries > 0
    assert solution.certificate.objective == pytest.approx(brute_force(problem), rel=1e-12, abs=0)


@pytest.mark.parametrize("seed", range(5))
def test_with_and_without_reduction_agree(seed: int) -> None:
    problem = chain_of_blocks(6, 10, 6, seed, memory_share=0.3)
    with_reduction, without = solve(problem).certificate, solve_ilp(problem).certificate
    assert with_reduction.objective == pytest.approx(without.objective, rel=1e-12, abs=0)
    assert with_reduction.num_variables_after_reduction < without.num_variables_after_reduction


def test_twice_gives_the_same_choices() -> None:
    for problem in (dense_problem(9, 4, 0), chain_of_blocks(20, 10, 6, 1)):
        assert solve(problem).choices == solve(problem).choices


def test_the_memory_limit_and_the_least_memory_are_named() -> None:
    builder = ProblemBuilder()
    builder.add_variable("a", [1.0, 2.0], [3.0, 5.0])
    builder.add_variable("b", [1.0, 2.0], [3.0, 5.0])
    builder.add_edge(0, 1, [[np.inf, 0.0], [0.0, 0.0]])
    message = "memory limit of 7 bytes .* the least memory found possible is 8 bytes"
    for solver in SOLVERS:
        with pytest.raises(InfeasibleError, match=message):
            solver(builder.build(memory_limit=7.0))
        assert sorted(solver(builder.build(memory_limit=8.0)).choices) == [0, 1]


def test_a_conflict_is_no_matter_of_memory() -> None:
    builder = ProblemBuilder()
    for name in "abc":  # an odd cycle has no two colours
        builder.add_variable(name, [0.0, 0.0], [0.0, 1.0])
    for u, v in ((0, 1), (1, 2), (2, 0)):
        builder.add_edge(u, v, [[np.inf, 0.0], [0.0, np.inf]])
    for limit in (None, 2.0):
        for solver in SOLVERS:
            with pytest.raises(InfeasibleError, match="constraints conflict"):
                solver(builder.build(limit))


def nearly_fitting(excess_bytes: float) -> Problem:
    """Of the two cheap candidates together, `excess_bytes` too many."""
    builder = ProblemBuilder()
    for name in "abc":
        builder.add_variable(name, [0.0, 1.0, 1.5], [5e8 + excess_bytes / 2, 2e8, 0.0])
    builder.add_edge(0, 1, np.eye(3))
    return builder.build(memory_limit=1e9)


@pytest.mark.parametrize("excess_bytes", [0.0, 0.01, 1.0, 100.0])
def test_the_limit_is_exact(excess_bytes: float) -> None:
    problem = nearly_fitting(excess_bytes)
    for solver in SOLVERS:
        solution = solver(problem)
        assert problem.is_feasible(solution.choices)
        assert solution.certificate.objective == brute_force(problem)


def test_what_highs_finds_within_its_tolerance_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "_TOLERANCE", 1e-6)
    monkeypatch.setattr(ilp, "local_search", lambda problem: None)
    problem = nearly_fitting(0.1)
    assert solve_ilp(problem).certificate.objective == brute_force(problem)


@pytest.mark.parametrize("time_limit_s", [0.0, 0.3])
def test_a_time_limit_gives_an_incumbent_with_its_gap(time_limit_s: float) -> None:
    problem = dense_problem(30, 8, 0)
    solution = solve(problem, time_limit_s=time_limit_s)
    certificate = solution.certificate
    assert problem.is_feasible(solution.choices)
    assert certificate.status == "time limit"
    assert certificate.bound < certificate.objective
    gap = (certificate.objective - certificate.bound) / certificate.objective
    assert certificate.gap == pytest.approx(gap)
    assert gap > 0.01
    assert certificate.seconds < 10


def test_no_incumbent_in_time_takes_the_least_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "local_search", lambda problem: None)
    problem = dense_problem(30, 8, 0)
    solution = solve_ilp(problem, time_limit_s=0.0)
    assert problem.is_feasible(solution.choices)
    assert solution.certificate.status == "time limit"
    assert solution.certificate.gap > 0.01


def test_nothing_found_in_time_is_an_error_and_no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "local_search", lambda problem: None)
    unlimited = dense_problem(30, 8, 0)
    problem = Problem(unlimited.variables, unlimited.edges)
    with pytest.raises(InfeasibleError, match=r"found in 0\.0 s, .* raise the time limit"):
        solve_ilp(problem, time_limit_s=0.0)


@pytest.mark.parametrize("gap", [0.02, 0.1, 0.3])
def test_a_gap_stops_early_and_is_reported(gap: float) -> None:
    problem = dense_problem(10, 5, 0)
    certificate = solve(problem, gap=gap).certificate
    assert certificate.status == "optimal"
    assert certificate.gap <= gap
    assert certificate.gap > 0 or gap < 0.3
    assert certificate.bound <= solve(problem).certificate.objective <= certificate.objective


def test_an_empty_problem_and_a_lone_variable() -> None:
    assert solve(Problem((), {})).choices == ()
    builder = ProblemBuilder()
    builder.add_variable("a", [3.0, -2.0])
    solution = solve(builder.build())
    assert solution.choices == (1,)
    assert (solution.certificate.objective, solution.certificate.bound) == (-2.0, -2.0)
    assert solution.certificate.num_variables_after_reduction == 0


def test_penalties_do_not_drown_small_costs() -> None:
    rng = np.random.default_rng(0)
    builder = ProblemBuilder()
    for i in range(6):
        builder.add_variable(f"v{i}", rng.random(3) * 1e-7, rng.integers(0, 3, 3))
        for j in range(i):
            penalty = np.where(rng.random((3, 3)) < 0.2, 1e6, 0.0)
            builder.add_edge(j, i, rng.random((3, 3)) * 1e-7 + penalty)
    problem = builder.build(memory_limit=5.0)
    for solver in SOLVERS:
        objective = solver(problem).certificate.objective
        assert objective == pytest.approx(brute_force(problem), rel=1e-12, abs=0)


def test_a_long_chain_of_blocks_is_solved_in_seconds() -> None:
    problem = chain_of_blocks(300, 10, 8, seed=0)
    start = time.perf_counter()
    certificate = solve(problem, time_limit_s=60.0).certificate
    seconds = time.perf_counter() - start
    print(f"3000 variables x 8 candidates: {seconds:.1f} s, {certificate}")
    assert (certificate.status, certificate.gap) == ("optimal", 0.0)
    assert seconds < 45
