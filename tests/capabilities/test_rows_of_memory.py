"""Row F: peak memory per rank as a constraint, predicted within a tenth of what is measured.

Row 12: activation checkpointing, forced or where a limit asks for it.
"""

from __future__ import annotations

from typing import Any

import pytest

import autoplan
from tests.capabilities.ranks import recomputed_on_two
from tests.end_to_end.peaks import MODELS, Case, Outcome, measure
from tests.models import gpt2, language_batch
from tests.runtime.launch import run_ranks


def _largest(case: Case) -> list[Outcome]:
    return [outcomes[0] for outcomes in run_ranks(measure, 2, [case], 2, timeout_s=240.0)]


def test_row_f_a_limit_that_binds_holds_in_the_running_program() -> None:
    """The plan that fits needs less than the fastest one, on paper and in the ranks' tensors."""
    free = Case("gpt2", "weights")
    model, (args, kwargs) = MODELS["gpt2"](free)
    fastest = autoplan.plan(model, args, kwargs, devices=2, cluster="cpu")
    limit = int(0.8 * fastest.peak_memory_bytes)
    given: dict[str, Any] = {"memory": limit, "time_limit_s": 10.0}
    plan = autoplan.plan(model, args, kwargs, devices=2, cluster="cpu", **given)
    assert plan.peak_memory_bytes <= limit
    assert plan.step_time_s > fastest.step_time_s
    for outcome in _largest(Case("gpt2", "weights", given, "limited")):
        assert abs(outcome.error) <= 0.1, outcome.what
        assert outcome.measured <= 1.1 * limit


AGAIN: dict[str, Any] = {"preset": "ddp", "recompute": True}


@pytest.mark.parametrize("devices", [1, 4])
def test_row_12_recomputed_blocks_give_equal_gradients(devices: int) -> None:
    """Loss, gradients and weights after two steps, with dropout, in simulation."""
    module = autoplan.parallelize(
        gpt2(0.1, n_layer=2), *language_batch(), devices=devices, recompute=True
    )
    assert module.plan.recomputed == ("transformer.h.0", "transformer.h.1")
    check = module.verify(*language_batch(), steps=2)
    assert check.ok, check


def test_row_12_recomputed_blocks_give_equal_gradients_on_real_ranks() -> None:
    for said in run_ranks(recomputed_on_two, 2, timeout_s=240.0):
        assert said.startswith("equal"), said


def test_row_12_predicted_and_measured_peak_memory_fall() -> None:
    plain, again = Case("gpt2", "activations", AGAIN | {"recompute": False}), Case(
        "gpt2", "activations", AGAIN, "recomputed"
    )  # fmt: skip
    for one, two in run_ranks(measure, 2, [plain, again], 2, timeout_s=240.0):
        assert two.measured < 0.7 * one.measured
        assert two.predicted < 0.7 * one.predicted
        assert abs(two.error) <= 0.1, two.what


def test_row_12_a_limit_asks_for_it() -> None:
    """The planner recomputes where nothing fits without it, and what it then takes fits."""
    case = Case("gpt2", "activations", {"preset": "ddp"})
    model, (args, kwargs) = MODELS["gpt2"](case)
    options: dict[str, Any] = {"devices": 2, "cluster": "cpu", "preset": "ddp"}
    free = autoplan.plan(model, args, kwargs, **options)
    assert free.recomputed == ()
    every = autoplan.plan(model, args, kwargs, recompute=True, **options)
    limit = int(1.03 * every.peak_memory_bytes)
    plan = autoplan.plan(model, args, kwargs, memory=limit, **options)
    assert plan.recomputed
    assert plan.peak_memory_bytes <= limit
    with pytest.raises(autoplan.InfeasibleError):
        autoplan.plan(model, args, kwargs, memory=limit, recompute=False, **options)
    for outcome in _largest(Case("gpt2", "activations", {"preset": "ddp", "memory": limit})):
        assert abs(outcome.error) <= 0.1, outcome.what
        assert outcome.measured <= 1.1 * limit
