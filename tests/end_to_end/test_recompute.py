"""Recomputed blocks compute what the original does, once more, and hold less memory."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import autoplan
from autoplan.runtime import recompute
from autoplan.runtime.communicator import Communicator
from tests.end_to_end.peaks import Case as PeakCase
from tests.end_to_end.peaks import measure, measure_one
from tests.end_to_end.recompute_ranks import (
    everything,
    normalised,
    rows,
    running_statistics,
    two_calls_before_backward,
    verified,
)
from tests.end_to_end.training import Case, Outcome, train
from tests.models import gpt2, ideal_cluster, language_batch
from tests.runtime.launch import run_ranks

TOLERANCE = 1e-9

TWO_LAYERS = {"n_layer": 2, "dropout": 0.1}


def cases(ranks: int) -> list[Case]:
    """GPT-2 with dropout under schemes and random layouts, all blocks recomputed."""
    again: dict[str, Any] = {"recompute": True}
    ideal = {"cluster": ideal_cluster(ranks), **again}
    return [
        Case("gpt2", {"preset": name, **again}, TWO_LAYERS, name=name)
        for name in ("ddp", "fsdp", "megatron", "megatron-sp")
    ] + [
        Case("gpt2", ideal, TWO_LAYERS, name="fast links"),
        Case("gpt2", {"recompute": ["*.h.1", "lm_head"]}, TWO_LAYERS, name="one block"),
        *(Case("gpt2", again, TWO_LAYERS, rows=6, drawn=n, name=f"drawn {n}") for n in range(3)),
        Case("llama", {"preset": "megatron", **again}, microbatches=2, name="2 microbatches"),
    ]


def check(outcome: Outcome) -> None:
    assert outcome.loss_error <= TOLERANCE
    assert max(outcome.gradient_errors.values()) <= TOLERANCE, outcome.gradient_errors
    assert max(outcome.weight_errors.values()) <= TOLERANCE, outcome.weight_errors
    assert outcome.verified.startswith("equal") or not outcome.verified, outcome.verified
    for predicted, seen in (outcome.step_traffic, outcome.call_traffic):
        assert seen == predicted


@pytest.fixture(scope="module")
def on_two_ranks() -> list[dict[str, Any]]:
    return run_ranks(everything, 2, cases(2), timeout_s=280.0)


@pytest.mark.parametrize("case", cases(2), ids=str)
def test_two_ranks_train_as_one_device(on_two_ranks: Any, case: Case) -> None:
    for outcomes in on_two_ranks:
        check(outcomes[str(case)])


@pytest.mark.parametrize("case", cases(4), ids=str)
def test_simulated_ranks_train_as_one_device(case: Case) -> None:
    check(train(0, 4, case))


def test_blocks_with_running_statistics_move_them_once(on_two_ranks: Any) -> None:
    for found in on_two_ranks:
        for preset in ("ddp", "fsdp"):
            assert max(found[f"statistics {preset}"].values()) <= TOLERANCE
        assert found["two calls"] <= TOLERANCE
        assert found["verified"].startswith("equal")


@pytest.mark.parametrize("devices", [1, 3])
def test_running_statistics_move_once_in_simulation(devices: int) -> None:
    assert max(running_statistics(devices, {"recompute": True}).values()) <= TOLERANCE
    assert two_calls_before_backward(devices) <= TOLERANCE
    assert verified(devices).ok


def test_a_limit_that_asks_for_it_changes_no_number() -> None:
    """Chosen by the planner, on two simulated devices, with microbatches."""
    x = rows(64)
    options: dict[str, Any] = {"devices": 2, "microbatches": 2, "preset": "ddp"}
    free = autoplan.parallelize(normalised(), (x,), **options)
    limit = int(0.97 * free.plan.peak_memory_bytes)
    module = autoplan.parallelize(normalised(), (x,), memory=limit, **options)
    assert 0 < len(module.plan.recomputed) < 3
    losses = [float(each.train_step((x,)).loss) for each in (free, module)]
    assert losses[0] == losses[1]
    for (path, found), (_, true) in zip(
        module.named_parameters(), free.named_parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, true.grad, rtol=1e-12, atol=0.0, msg=path)
    for path, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, dict(free.named_buffers())[path], rtol=0.0, atol=0.0)


def test_second_runs_draw_at_their_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the step in force gradients are wrong, and this suite sees it."""
    drawn: list[tuple[int, int]] = []
    dropout = Communicator.dropout

    def noted(self: Communicator, *args: Any) -> Any:
        drawn.append((args[-1], self.step))
        return dropout(self, *args)

    monkeypatch.setattr(Communicator, "dropout", noted)
    two_calls_before_backward(1)
    calls = [each for each in drawn if drawn.count(each) == 2]
    assert sorted(set(calls)) == [(key, step) for key in range(3) for step in range(2)]
    assert len(drawn) == 12
    monkeypatch.setattr(recompute, "_step", lambda comms, step: recompute.contextlib.nullcontext())
    assert two_calls_before_backward(1) > 1e-3


def test_a_forward_alone_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows()
    module = autoplan.parallelize(normalised(), (x,), devices=1, recompute=True)
    steps: list[int] = []
    dropout = Communicator.dropout
    monkeypatch.setattr(
        Communicator, "dropout", lambda self, *args: steps.append(1) or dropout(self, *args)
    )
    module.train_step((x,), forward_only=True)
    with torch.no_grad():
        module(x)
    assert len(steps) == 6


def test_verify_names_the_first_difference_inside_a_block() -> None:
    """It looks into blocks, and finds what the second run alone gets wrong by the gradients."""
    x = rows()
    module = autoplan.parallelize(normalised(), (x,), devices=2, recompute=True)
    [entry] = module._entries.values()
    for program in entry.programs:
        _, part = next(iter(recompute.parts_of(program.body)))
        tanh = next(node for node in part.graph.nodes if "tanh" in str(node.target))
        tanh.target = torch.ops.aten.sin.default
        part.recompile()
    check = module.verify((x,))
    assert not check.ok
    assert check.first_difference is not None
    assert check.first_difference.path == "layers.0.2"


def test_the_code_of_a_block_is_shown_once_with_its_comments() -> None:
    module = autoplan.parallelize(
        gpt2(n_layer=2), *language_batch(), devices=2, preset="megatron", recompute=["*.h.1"]
    )
    code = module.code
    assert "# transformer.h.1: computed again in backward" in code
    assert code.count("def recomputed_transformer_h_1(self, comm, ") == 1
    body, part = code.split("def recomputed_transformer_h_1(")
    assert "# transformer.h.0.ln_1: " in body
    assert "# transformer.h.1.ln_1: " not in body
    assert "# transformer.h.1.ln_1: " in part
    for line in part.splitlines()[1:-1]:
        assert re.search(r"  # .*transformer\.h\.1|return \(", line) or not line.strip(), line
    compile(code, "code", "exec")


# -- memory -------------------------------------------------------------------------------------

PEAKS = [
    PeakCase(model, "activations", {"preset": preset, "recompute": again}, f"{preset} {again}")
    for model, preset in (("gpt2", "ddp"), ("gpt2", "fsdp"), ("llama", "megatron"), ("vit", "ddp"))
    for again in (False, True)
]


@pytest.mark.parametrize("model", ["gpt2", "bert", "llama"])
def test_the_peak_falls_as_predicted_on_one_device(model: str) -> None:
    plain, again = (
        measure_one(PeakCase(model, "activations", {"recompute": each}), 1)
        for each in (False, True)
    )
    assert abs(plain.error) <= 0.1, plain.what
    assert abs(again.error) <= 0.1, again.what
    assert again.measured < 0.75 * plain.measured
    assert again.predicted < 0.75 * plain.predicted


def test_the_peak_falls_as_predicted_on_two_ranks() -> None:
    for outcomes in run_ranks(measure, 2, PEAKS, 2, timeout_s=280.0):
        for plain, again in zip(outcomes[::2], outcomes[1::2], strict=True):
            assert abs(again.error) <= 0.1, again.what
            assert again.measured < 0.9 * plain.measured
            assert again.predicted < 0.9 * plain.predicted
