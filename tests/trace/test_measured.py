"""Profiled steps: the same values to the bit, and spans of all ranks beside the prediction."""

from __future__ import annotations

import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import autoplan
from autoplan.trace.measured import Profile
from autoplan.trace.recorder import CudaClock, HostClock, Recorder, clock_of
from tests.planner.models import MLP
from tests.runtime.launch import run_ranks
from tests.trace.profiling import CASES, Steps, both_steps, on_rank
from tests.trace.reading import read_trace

pytest.importorskip("jsonschema")


@cache
def simulated(case: str) -> Steps:
    return both_steps(case)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Steps]]]:
    """All cases on two gloo ranks."""
    folder = tmp_path_factory.mktemp("profiled")
    return folder, run_ranks(on_rank, 2, str(folder), timeout_s=250)


def is_the_same(steps: Steps) -> None:
    plain, profiled = steps.losses
    assert torch.equal(plain, profiled)
    plain_grads, profiled_grads = steps.gradients
    assert plain_grads.keys() == profiled_grads.keys()
    for path, gradient in plain_grads.items():
        assert torch.equal(gradient, profiled_grads[path]), path
    assert steps.left == []


@pytest.mark.parametrize("case", CASES)
def test_a_profiled_step_is_the_same_to_the_bit(case: str) -> None:
    is_the_same(simulated(case))


@pytest.mark.parametrize("case", CASES)
def test_and_on_real_ranks(case: str, real: tuple[Path, list[dict[str, Steps]]]) -> None:
    for found in real[1]:
        is_the_same(found[case])


@pytest.mark.parametrize("case", CASES)
def test_predicted_and_measured_in_one_file(
    case: str, real: tuple[Path, list[dict[str, Steps]]]
) -> None:
    folder, ranks = real
    processes = read_trace(folder / case / "trace.json")
    assert list(processes) == ["predicted", "measured"]
    plan = ranks[0][case].profile.plan
    assert processes["predicted"].end_us == pytest.approx(1e6 * plan.step_time_s, rel=1e-9)
    measured = processes["measured"].threads
    predicted = {t for t in processes["predicted"].threads if "sends" not in t}
    assert set(measured) == predicted  # the same tracks, side by side
    for thread, slices in measured.items():
        assert all(each.start_us >= 0 for each in slices)
        if not thread.endswith("compute"):
            continue
        kinds = Counter(each.category for each in slices if "microbatch" in each.args)
        assert kinds == {"forward": plan.microbatches, "backward": plan.microbatches}
        names = {each.name for each in slices if each.depth}
        rank = int(thread.split()[1])
        layer = rank if case == "pipeline" else 0
        assert f"layers.{layer}.down/linear" in names
        backward = [e for e in slices if e.category == "backward" and "autograd" in e.args]
        assert {"AddmmBackward0", "BoxingBackward"} & {
            e.args["autograd"].lstrip("_") for e in backward
        }
    # Every rank knows the profile of all.
    first = ranks[0][case].profile
    assert all(found[case].profile.spans == first.spans for found in ranks)
    assert first.step_time_s == pytest.approx(1e-6 * processes["measured"].end_us, abs=1e-9)


@pytest.mark.parametrize("case", ["megatron", "zero3"])
def test_measured_collectives_are_those_of_the_plan(
    case: str, real: tuple[Path, list[dict[str, Steps]]]
) -> None:
    """Each rank's, by kind and axis, as often as the ledger says."""
    profile = real[1][0][case].profile
    counted: Counter[Any] = Counter()
    for row in profile.plan.collectives:
        if row.phase != "outputs":
            counted[row.kind, row.axis] += row.count
    for rank in profile.ranks:
        seen: Counter[Any] = Counter()
        for span in profile.spans:
            if span.track == f"{rank} communication":
                seen[span.args["kind"], span.args["axis"]] += 1
        assert seen == counted


def test_spans_of_a_simulation_say_that_they_are_of_all_ranks() -> None:
    profile = simulated("megatron").profile
    assert profile.simulated
    assert profile.ranks == ("ranks 0 to 1, simulated",)
    assert "of all ranks" in profile.group().notes["simulated"]
    names = {span.name for span in profile.spans if span.category == "forward"}
    assert {"layers.0.up/linear", "layers.1.down/linear", "layers.0/relu"} <= names


def test_a_profile_is_shown_beside_the_plan(tmp_path: Path) -> None:
    profile = simulated("pipeline").profile
    profile.plan.save_trace(tmp_path / "a.json", measured=profile)
    profile.save_trace(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert list(read_trace(tmp_path / "a.json")) == ["predicted", "measured"]


def test_a_profile_of_a_forward_alone() -> None:
    args = (torch.randn(8, 8),)
    module = autoplan.parallelize(MLP(), args, devices=2, preset="ddp")
    result = module.train_step(args, forward_only=True, profile=True)
    assert isinstance(result.profile, Profile)
    assert not any(span.category == "backward" for span in result.profile.spans)
    assert all(p.grad is None for p in module.parameters())


def test_a_plain_step_makes_no_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something records")

    args = (torch.randn(8, 8),)
    module = autoplan.parallelize(MLP(), args, devices=2, preset="ddp")
    monkeypatch.setattr(Recorder, "__init__", refuse)
    monkeypatch.setattr("autoplan.trace.recorder.RecordingExecutor.__init__", refuse)
    assert module.train_step(args).profile is None
    with pytest.raises(AssertionError, match="something records"):
        module.train_step(args, profile=True)


def test_a_step_that_fails_leaves_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    args = (torch.randn(8, 8),)
    module = autoplan.parallelize(MLP(), args, devices=2, preset="ddp")
    before = dict(module._executors)

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(type(module), "_run", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            module.train_step(args, profile=True)
    assert module._executors == before
    module.train_step(args)


def test_spans_last_as_long_as_what_they_hold() -> None:
    recorder = Recorder(HostClock())
    recorder.restart()
    with recorder.span(0, "compute", "outer", "test"):
        time.sleep(0.02)
        with recorder.span(0, "compute", "inner", "test", number=1):
            time.sleep(0.01)
    (spans,) = recorder.spans().values()
    outer, inner = spans
    assert (outer.name, inner.name) == ("outer", "inner")
    assert inner.time_s >= 0.01
    assert outer.start_s + 0.02 <= inner.start_s
    assert inner.end_s <= outer.end_s
    assert recorder.spans() == {}


def test_the_clock_is_the_device_s() -> None:
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
    assert isinstance(clock_of(torch.device("cuda", 0)), CudaClock)


def test_a_profile_is_short_in_print() -> None:
    model = torch.nn.Linear(4, 4)
    x = torch.zeros(8, 4)

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).square().mean()

    result = autoplan.parallelize(Mean(), (x,), devices=2).train_step((x,), profile=True)
    assert repr(result.profile).startswith("Profile(")
    assert len(repr(result)) < 300
    frozen = autoplan.parallelize(Mean(), (x,), devices=2, training=False)
    with pytest.raises(autoplan.InputError, match=r"training=False, which has no loss; call it"):
        frozen.train_step((x,), forward_only=True)
