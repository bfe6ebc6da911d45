"""Row F: peak memory per rank as a constraint, predicted within a tenth of what is measured."""

from __future__ import annotations

import autoplan
from tests.end_to_end.peaks import MODELS, Case, Outcome, measure
from tests.runtime.launch import run_ranks


def _largest(case: Case) -> list[Outcome]:
    return [outcomes[0] for outcomes in run_ranks(measure, 2, [case], 2, timeout_s=240.0)]


def test_row_f_a_limit_that_binds_holds_in_the_running_program() -> None:
    """The plan that fits needs less than the fastest one, on paper and in the ranks' tensors."""
    free = Case("gpt2", "weights")
    model, (args, kwargs) = MODELS["gpt2"](free)
    fastest = autoplan.plan(model, args, kwargs, devices=2, cluster="cpu")
    limit = int(0.8 * fastest.peak_memory_bytes)
    plan = autoplan.plan(model, args, kwargs, devices=2, cluster="cpu", memory=limit)
    assert plan.peak_memory_bytes <= limit
    assert plan.step_time_s > fastest.step_time_s
    for outcome in _largest(Case("gpt2", "weights", {"memory": limit}, "limited")):
        assert abs(outcome.error) <= 0.1, outcome.what
        assert outcome.measured <= 1.1 * limit
