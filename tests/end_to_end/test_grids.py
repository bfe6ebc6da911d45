"""Models trained on grids of ranks equal one device, simulated and between real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autoplan
from tests.end_to_end.grids import GRIDS, Chain, parallel_on, ranks_run, trained
from tests.end_to_end.training import predicted, watched
from tests.models import gpt2, language_batch
from tests.runtime.launch import run_ranks

EQUAL = "equal within 1e-09 (float64)"
NAMES = ("linear", "mlp", "attention")


def check(worst: dict[str, float]) -> None:
    assert set(worst) == {"loss", "gradient", "weight"}
    assert max(worst.values()) < 1e-9, worst


# -- simulated ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", GRIDS)
def test_training_on_a_grid_is_training_on_one_device(mode: str, name: str) -> None:
    """Three steps of AdamW, by hand: losses, gradients and weights."""
    check(trained(name, mode, GRIDS[mode]))


TWICE: dict[str, Any] = {"size": 4, "mode": "2d"}
OPTIONS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "plain": ("2d", 4, {}),
    "recompute": ("2d", 4, {"recompute": True, "microbatches": 2}),
    "depth": ("2.5d", 8, {}),
    "data": ("2d", 8, {"parallel": {"data": 2, "tensor": TWICE}}),
    "cube": ("3d", 8, {"microbatches": 2}),
    "pipeline": ("2d", 8, {"parallel": {"pipeline": 2, "tensor": TWICE}, "microbatches": 2}),
}
SLOW = ("data", "cube")


def planned_gpt2(name: str) -> autoplan.ParallelModule:
    mode, size, options = OPTIONS[name]
    torch.manual_seed(0)
    given = {"parallel": parallel_on(mode, size), **options}
    return autoplan.parallelize(gpt2(n_layer=2), *language_batch(), devices=size, **given)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in OPTIONS]
)
def test_gpt2_on_a_grid_equals_one_device(name: str) -> None:
    """With microbatches, recomputation, data parallelism and pipelines beside."""
    module = planned_gpt2(name)
    assert str(module.verify(*language_batch(), steps=2)).startswith(EQUAL)


@pytest.mark.parametrize("name", ["recompute", "depth"])
def test_what_a_step_on_a_grid_moves_is_what_is_predicted(name: str) -> None:
    module = planned_gpt2(name)
    with watched(module) as seen:
        module.train_step(*language_batch())
    assert {kind for kind, _, _ in seen} >= {"broadcast", "reduce"}
    assert seen == predicted(module.plan)


def test_gpt2_in_two_dimensions_streams_every_weight() -> None:
    plan = autoplan.plan(
        gpt2(n_layer=2), *language_batch(), devices=4, parallel=parallel_on("2d", 4)
    )
    choices = {row.choice for row in plan.operations if row.op.split(".")[1] in ("addmm", "linear")}
    assert choices == {"n~ | o~", "b0~ | o~"}


def test_a_free_search_streams_factors_where_memory_binds() -> None:
    """Where no rank may hold a strip of any factor, and nothing else is said."""
    ids = torch.arange(256) % 64
    given: dict[str, Any] = {"devices": 4, "cluster": "h100", "training": False}
    given["parallel"] = {"mesh": {"a": 2, "b": 2}}
    plan = autoplan.plan(Chain(), (ids,), **given)
    assert "~" not in "".join(plan.choices.values())
    torch.manual_seed(0)
    module = autoplan.parallelize(Chain(), (ids,), memory=430_000, **given)
    choices = [row.choice for row in module.plan.operations if "linear" in row.op]
    assert all("~" in choice for choice in choices)
    assert module.plan.peak_memory_bytes <= 430_000 < plan.peak_memory_bytes
    assert module.plan.certificate.status == "optimal"
    assert module.plan.step_time_s > plan.step_time_s
    assert str(module.verify((ids,))).startswith(EQUAL)


# -- between real processes -----------------------------------------------------------------

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def four() -> Found:
    return run_ranks(ranks_run, 4, "2d", 4, timeout_s=280)


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_four_processes_train_in_two_dimensions(four: Found, name: str) -> None:
    for found in four:
        check(found[name])
        assert found["verified"].startswith(EQUAL)


def test_no_process_ever_makes_more_than_a_block(four: Found) -> None:
    """In a step of AdamW no tensor that an op makes is as large as a strip of any factor.

    Rows, inner and outer widths are 32, 24 and 40: a rank's part is a quarter, a strip is a half.
    """
    numbers = (32 * 24, 24 * 40, 32 * 40)
    assert max(numbers) // 4 < min(numbers) // 2
    for found in four:
        assert found["largest"] == 8 * max(numbers) // 4


@pytest.mark.parametrize("mode", ["2.5d", pytest.param("3d", marks=pytest.mark.slow)])
def test_eight_processes_train_in_three_dimensions(mode: str) -> None:
    for found in run_ranks(ranks_run, 8, mode, 8, timeout_s=280):
        for name in ("mlp", "attention"):
            check(found[name])
        assert found["verified"].startswith(EQUAL)
