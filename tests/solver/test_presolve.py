"""A problem of 16 variables on which HiGHS 1.15.1 loops for ever in one presolve rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autoplan.solver import Problem, Variable, solve_ilp

DATA = json.loads(Path(__file__).with_name("presolve_loop.json").read_text())


@pytest.mark.timeout(60)
def test_no_presolve_rule_loops() -> None:
    """GPT-2 of two layers under data parallelism on H100, reduced; it takes milliseconds."""
    variables = tuple(
        Variable(name, np.array(cost), np.zeros(len(cost))) for name, cost in DATA["variables"]
    )
    edges = {
        (u, v): np.array([[np.inf if x is None else x for x in row] for row in matrix])
        for u, v, matrix in DATA["edges"]
    }
    certificate = solve_ilp(Problem(variables, edges), time_limit_s=20.0).certificate
    assert certificate.status == "optimal"
    assert certificate.objective == pytest.approx(0.000516995, rel=1e-9)
