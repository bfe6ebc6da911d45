import importlib
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.solver import Problem, ProblemBuilder, Solution, ilp, solve, solve_ilp
from autoplan.solver.problem import UndecidedError
from tests.solver.problems import (
    brute_force,
    chain_of_blocks,
    copied,
    dense_problem,
    enumerate_choices,
    random_problem,
)

# The module; the package's name of it is the function.
solving = importlib.import_module("autoplan.solver.solve")
SOLVERS = (solve, solve_ilp)


def assert_as_brute_force(solver: Callable[..., Solution], seed: int) -> None:
    problem = random_problem(seed)
    best = brute_force(problem)
    if best is None:
        with pytest.raises(InfeasibleError, match=r"^(limits? |constraints conflict)"):
            solver(problem)
        return
    solution = solver(problem)
    certificate = solution.certificate
    assert problem.is_feasible(solution.choices), seed
    assert problem.objective(solution.choices) == certificate.objective
    assert certificate.objective == pytest.approx(best, rel=1e-12, abs=0), seed
    assert certificate.bound == pytest.approx(best, rel=1e-9, abs=0), seed
    assert certificate.bound <= certificate.objective
    assert (certificate.status, certificate.gap) == ("optimal", 0.0)
    assert certificate.folding is None


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("start", range(0, 3000, 50))
def test_the_optimum_is_that_of_brute_force(start: int, solver: Callable[..., Solution]) -> None:
    for seed in range(start, start + 50):
        assert_as_brute_force(solver, seed)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("start", range(3000, 30_000, 1000))
def test_and_of_tens_of_thousands(start: int, solver: Callable[..., Solution]) -> None:
    for seed in range(start, start + 1000):
        assert_as_brute_force(solver, seed)


@pytest.mark.parametrize("start", range(0, 600, 50))
def test_small_problems_too_may_be_branched(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "_MOST_PAIRS_AT_ONCE", -1)
    for seed in range(start, start + 50):
        assert_as_brute_force(solve, seed)


@pytest.mark.parametrize("start", range(0, 500, 50))
def test_the_ilp_alone_finds_what_the_local_search_would(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ilp, "local_search", lambda problem: None)
    for seed in range(start, start + 50):
        assert_as_brute_force(solve_ilp, seed)


@pytest.mark.parametrize("seed", range(100))
def test_choices_to_start_from_change_nothing_but_the_time(seed: int) -> None:
    problem = random_problem(seed)
    every = enumerate_choices(problem)
    allowed = every.choices[every.costs < np.inf]
    if every.best is None:
        return
    start = tuple(map(int, np.random.default_rng(seed).choice(allowed)))
    certificate = solve(problem, start=start).certificate
    assert certificate.objective == pytest.approx(every.optimum, rel=1e-12, abs=0)
    assert certificate.gap == 0.0


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_reduction_and_ilp_agree_with_brute_force_on_a_dense_core(seed: int, pairs: bool) -> None:
    problem = dense_problem(7, 4, seed, pairs)
    solution = solve(problem)
    assert solution.certificate.num_binaries > 0
    assert solution.certificate.objective == pytest.approx(brute_force(problem), rel=1e-12, abs=0)


@pytest.mark.parametrize("seed", range(5))
def test_with_and_without_reduction_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain_of_blocks(6, 10, 6, seed, memory_share=0.3)
    with_reduction, without = solve(problem).certificate, solve_ilp(problem).certificate
    assert with_reduction.objective == pytest.approx(without.objective, rel=1e-12, abs=0)
    assert with_reduction.num_variables_after_reduction < without.num_variables_after_reduction
    monkeypatch.setattr(solving, "_MOST_PAIRS_AT_ONCE", -1)
    branched = solve(problem).certificate
    assert branched.objective == pytest.approx(without.objective, rel=1e-12, abs=0)
    assert branched.gap == 0.0


def test_twice_gives_the_same_choices() -> None:
    for problem in (
        dense_problem(9, 4, 0),
        chain_of_blocks(20, 10, 6, 1),
        *(random_problem(seed) for seed in range(150)),
    ):
        if len(problem.variables) <= 6 and brute_force(problem) is None:
            continue
        first = solve(problem).choices
        assert solve(problem).choices == first
        # Where arrays lie must not matter either.
        assert solve(copied(problem)).choices == first


def test_branching_twice_gives_the_same_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "_MOST_PAIRS_AT_ONCE", -1)
    for problem in (chain_of_blocks(20, 10, 6, 1), chain_of_blocks(6, 10, 6, 0, 0.3)):
        assert solve(problem).choices == solve(copied(problem)).choices


def test_the_limit_and_how_far_it_is_are_named() -> None:
    builder = ProblemBuilder()
    builder.add_variable("a", [1.0, 2.0])
    builder.add_variable("b", [1.0, 2.0])
    builder.add_edge(0, 1, [[np.inf, 0.0], [0.0, 0.0]])
    amounts = {0: [3.0, 5.0], 1: [3.0, 5.0]}
    builder.add_limit("forward of linear", 7.0, amounts)
    problem = builder.build()
    message = r"no candidate of 'a' is left .* keeps 'forward of linear'; raise a limit or drop"
    with pytest.raises(InfeasibleError, match=message):
        solve(problem)
    with pytest.raises(InfeasibleError, match="or breaks a limit"):
        solve_ilp(problem)
    builder.add_limit("less", 5.0, amounts)
    with pytest.raises(InfeasibleError, match=r"'less' of 5 cannot be met: .* need 6; raise"):
        solve(builder.build())


def test_limits_that_fit_one_by_one_only_are_named() -> None:
    """Each of three adds 3 to one limit of 4 or to the other: one of them is over."""
    builder = ProblemBuilder()
    for name in "abc":
        builder.add_variable(name, [0.0, 1.0])
    builder.add_edge(0, 1, [[0.0, 2.0], [3.0, 0.0]])
    builder.add_limit("one", 4.0, {i: [3.0, 0.0] for i in range(3)})
    builder.add_limit("other", 4.0, {i: [0.0, 3.0] for i in range(3)})
    message = "limits cannot be kept: 'one', 'other'; .* reach 1.125 times what is allowed"
    for pairs in (-1, 3000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(solving, "_MOST_PAIRS_AT_ONCE", pairs)
            with pytest.raises(InfeasibleError, match=message):
                solve(builder.build())


def test_eight_bytes_are_enough() -> None:
    builder = ProblemBuilder()
    builder.add_variable("a", [1.0, 2.0])
    builder.add_variable("b", [1.0, 2.0])
    builder.add_edge(0, 1, [[np.inf, 0.0], [0.0, 0.0]])
    builder.add_limit("memory", 8.0, {0: [3.0, 5.0], 1: [3.0, 5.0]})
    for solver in SOLVERS:
        assert sorted(solver(builder.build()).choices) == [0, 1]


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("num", [3, 4])
def test_a_conflict_is_no_matter_of_limits(num: int, limited: bool) -> None:
    """Two colours of a triangle, three of four variables that all differ."""
    builder = ProblemBuilder()
    for i in range(num):
        builder.add_variable(f"v{i}", [0.0] * (num - 1))
        for j in range(i):
            builder.add_edge(j, i, np.where(np.eye(num - 1), np.inf, 1.0))
    if limited:
        builder.add_limit("memory", 2.0, {i: np.arange(num - 1.0) for i in range(num)})
    for solver in SOLVERS:
        with pytest.raises(InfeasibleError, match="constraints conflict"):
            solver(builder.build())


def nearly_fitting(excess_bytes: float) -> Problem:
    """Of the two cheap candidates together, `excess_bytes` too many."""
    builder = ProblemBuilder()
    for name in "abc":
        builder.add_variable(name, [0.0, 1.0, 1.5])
    amounts = [5e8 + excess_bytes / 2, 2e8, 0.0]
    builder.add_edge(0, 1, np.eye(3))
    builder.add_limit("memory", 1e9, dict.fromkeys(range(3), amounts))
    return builder.build()


@pytest.mark.parametrize("branched", [False, True])
@pytest.mark.parametrize("excess_bytes", [0.0, 0.01, 1.0, 100.0])
def test_the_limit_is_exact(
    excess_bytes: float, branched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if branched:
        monkeypatch.setattr(solving, "_MOST_PAIRS_AT_ONCE", -1)
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


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("time_limit_s", [0.0, 0.3, 2.0])
def test_a_time_limit_gives_an_incumbent_with_its_gap(time_limit_s: float, pairs: bool) -> None:
    problem = dense_problem(30, 8, 0, pairs)
    start = time.perf_counter()
    solution = solve(problem, time_limit_s=time_limit_s)
    assert time.perf_counter() - start < time_limit_s + 8.0  # 1.6 s more were measured at most
    certificate = solution.certificate
    assert problem.is_feasible(solution.choices)
    assert certificate.status == "time limit"
    assert certificate.bound < certificate.objective
    gap = (certificate.objective - certificate.bound) / certificate.objective
    assert certificate.gap == pytest.approx(gap)
    assert gap > 0.01


@pytest.mark.parametrize("time_limit_s", [0.0, 0.02])
def test_a_small_problem_too_has_an_incumbent_in_time(time_limit_s: float) -> None:
    problem = dense_problem(9, 4, 0, pairs=True)
    solution = solve(problem, time_limit_s=time_limit_s)
    assert problem.is_feasible(solution.choices)
    best = solve(problem).certificate
    assert best.status == "optimal"
    assert solution.certificate.bound <= best.objective <= solution.certificate.objective


def test_classes_share_the_time_limit() -> None:
    problem = dense_problem(30, 8, 0)
    wider = replace(problem.limits[0], most=1.4e10)  # so that variables may choose alike
    problem = replace(problem, limits=(wider,))
    start = time.perf_counter()
    solution = solve(problem, classes=[i % 5 for i in range(30)], time_limit_s=1.0)
    assert time.perf_counter() - start < 9.0
    assert problem.is_feasible(solution.choices)
    assert solution.certificate.status == "time limit"
    assert solution.certificate.folding is not None
    assert solution.certificate.folding.cost_s >= 0.0


def test_nothing_found_in_time_is_an_error_and_no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "local_search", lambda problem: None)
    problem = dense_problem(30, 8, 0).without_limits()
    with pytest.raises(UndecidedError, match=r"found in 0\.0 s, .* raise the time limit"):
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


@pytest.mark.parametrize("branched", [False, True])
def test_penalties_do_not_drown_small_costs(
    branched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if branched:
        monkeypatch.setattr(solving, "_MOST_PAIRS_AT_ONCE", -1)
    rng = np.random.default_rng(0)
    builder = ProblemBuilder()
    amounts = {}
    for i in range(6):
        builder.add_variable(f"v{i}", rng.random(3) * 1e-7)
        amounts[i] = rng.integers(0, 3, 3)
        for j in range(i):
            penalty = np.where(rng.random((3, 3)) < 0.2, 1e6, 0.0)
            builder.add_edge(j, i, rng.random((3, 3)) * 1e-7 + penalty)
    builder.add_limit("memory", 5.0, amounts)
    problem = builder.build()
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
