"""Problems of few variables on which HiGHS 1.15.1 with presolve loops for ever, or is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoplan.solver import Limit, Problem, Variable, solve, solve_ilp
from tests.solver.problems import brute_force


def read(name: str) -> Any:
    return json.loads(Path(__file__).with_name(name).read_text())


def problem_of(data: Any) -> Problem:
    """A problem from JSON, in which null is infinite."""

    def costs(rows: Any) -> np.ndarray:
        return np.array(rows, dtype=np.float64)

    def finite(rows: Any) -> np.ndarray:
        return np.where(np.isnan(costs(rows)), np.inf, costs(rows))

    return Problem(
        tuple(Variable(name, finite(cost)) for name, cost in data["variables"]),
        {(u, v): finite(matrix) for u, v, matrix in data["edges"]},
        tuple(
            Limit(
                f"limit {i}",
                each["most"],
                {u: costs(vector) for u, vector in each["vectors"]},
                {(u, v): costs(matrix) for u, v, matrix in each["matrices"]},
                each["constant"],
            )
            for i, each in enumerate(data.get("limits", ()))
        ),
    )


@pytest.mark.timeout(60)
def test_no_presolve_rule_loops() -> None:
    """GPT-2 of two layers under data parallelism on H100, reduced; it takes milliseconds."""
    problem = problem_of(read("presolve_loop.json"))
    certificate = solve_ilp(problem, time_limit_s=20.0).certificate
    assert certificate.status == "optimal"
    assert certificate.objective == pytest.approx(0.000516995, rel=1e-9)


@pytest.mark.parametrize("number", range(2))
def test_what_presolve_calls_infeasible_is_solved(number: int) -> None:
    data = read("presolve_infeasible.json")[number]
    problem = problem_of(data)
    assert brute_force(problem) == pytest.approx(data["optimum"], rel=1e-12, abs=0)
    for solver in (solve, solve_ilp):
        certificate = solver(problem).certificate
        assert certificate.objective == pytest.approx(data["optimum"], rel=1e-12, abs=0)
        assert certificate.gap == 0.0
