"""Lean candidates: offered where memory binds or a preset asks, and nowhere else."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autoplan
from autoplan import lean
from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.errors import InfeasibleError
from autoplan.layouts import Layout
from autoplan.memory.within_memory import TooLittleMemoryError
from autoplan.mesh import Mesh
from autoplan.plan import Memory
from autoplan.policies import is_lean, without_policy
from autoplan.recompute.choose import Chosen
from autoplan.registry import rules_in_force
from autoplan.request import Request, make_request
from autoplan.sites import Candidate
from autoplan.solver import Certificate, Solution


class Deep(nn.Module):
    """Layers of large weights on few rows: whole weights are most of what a step holds."""

    def __init__(self, layers: int = 6, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.square().mean()


def _plan(preset: str | None, **options: Any) -> autoplan.Plan:
    torch.manual_seed(0)
    given = {"devices": 4, "cluster": "cpu", "recompute": "none", **options}
    return autoplan.plan(Deep(), (torch.randn(8, 64),), preset=preset, **given)


@pytest.fixture(scope="module")
def peaks() -> dict[str, autoplan.Plan]:
    return {name: _plan(name) for name in ("fsdp", "zero1", "zero2", "zero3")}


def _policies(plan: autoplan.Plan) -> dict[str, str]:
    return {row.path: row.policy for row in plan.tensors if row.kind == "parameter"}


def test_each_stage_holds_less_and_takes_no_less_time(peaks: dict[str, autoplan.Plan]) -> None:
    assert peaks["fsdp"].choices == peaks["zero1"].choices
    memory = [peaks[name].peak_memory_bytes for name in ("zero1", "zero2", "zero3")]
    assert memory == sorted(memory, reverse=True)
    assert memory[2] < 0.7 * memory[0]
    times = [peaks[name].step_time_s for name in ("zero1", "zero2", "zero3")]
    assert times == sorted(times)
    wanted = {"zero1": "step", "zero2": "reduce", "zero3": "microbatch"}
    for name, policy in wanted.items():
        assert set(_policies(peaks[name]).values()) == {policy}


def test_what_fits_only_so_is_planned(peaks: dict[str, autoplan.Plan]) -> None:
    """As many parameters as memory asks for are gathered in every microbatch, no more."""
    low, high = peaks["zero3"].peak_memory_bytes, peaks["fsdp"].peak_memory_bytes
    times = []
    for share in (0.05, 0.5, 0.95):
        most = int(low + share * (high - low))
        plan = _plan("fsdp", memory=most)
        assert plan.peak_memory_bytes <= most
        assert {"microbatch", "reduce"} & set(_policies(plan).values())
        assert peaks["fsdp"].step_time_s < plan.step_time_s <= peaks["zero3"].step_time_s
        times.append(plan.step_time_s)
    assert times == sorted(times, reverse=True)
    with pytest.raises(InfeasibleError, match="too small"):
        _plan("zero1", memory=int(low + 0.05 * (high - low)))


def test_nothing_is_offered_where_memory_does_not_bind(
    peaks: dict[str, autoplan.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    solve = lean.solve_lean_where_memory_asks

    def watched(given: Any, *rest: Any) -> Any:
        def noted(request: Any, leaner: bool) -> Any:
            asked.append(leaner)
            return given(request, leaner)

        return solve(noted, *rest)

    monkeypatch.setattr("autoplan.search.solve_lean_where_memory_asks", watched)
    plan = _plan("fsdp", memory=peaks["fsdp"].peak_memory_bytes)
    assert plan.choices == peaks["fsdp"].choices
    assert asked == [False]
    _plan("fsdp", memory=peaks["fsdp"].peak_memory_bytes - 1)
    assert asked == [False, False, True]


def test_a_plan_file_keeps_the_policies(peaks: dict[str, autoplan.Plan], tmp_path: Path) -> None:
    for name in ("zero2", "zero3"):
        peaks[name].save(tmp_path / "plan.toml")
        loaded = autoplan.load_plan(tmp_path / "plan.toml")
        assert (loaded.choices, loaded.tensors) == (peaks[name].choices, peaks[name].tensors)
        torch.manual_seed(0)
        module = autoplan.parallelize(
            Deep(), (torch.randn(8, 64),), devices=4, cluster="cpu", plan=loaded
        )
        assert module.plan.choices == peaks[name].choices
        assert module.plan.step_time_s == pytest.approx(peaks[name].step_time_s, rel=1e-12)


def test_choices_read_as_they_are_written() -> None:
    storage, use = Layout.parse("(S(0), B)"), Layout.parse("(B/P, B/P)")
    for policy in ("step", "reduce", "microbatch"):
        choice = Candidate((), (), (use,), storage, policy)
        layouts, text = without_policy(str(choice))
        assert layouts == "(S(0), B) -> (B/P, B/P)"
        assert is_lean(str(choice)) == (policy != "step") == bool(text)
        # What only adds up does so once a step, whatever the policy.
        carried = "(B/P, B/P)" if policy == "step" else "(S(0), B/P)"
        assert str(choice.carried) == carried
        assert choice.policies == (policy, "step")


class Shared(nn.Module):
    """A fused weight that the model splits, one that the prologue computes with, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.fused = nn.Parameter(torch.randn(8, 24))
        self.scaled = nn.Parameter(torch.randn(8, 8))
        self.frozen = nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        q, k, v = self.fused.split(8, 1)
        x = (x @ q + x @ k) * (x @ v)
        return (x @ self.scaled.exp() @ self.frozen).square().mean()


def test_views_go_along_and_what_the_prologue_computes_stays() -> None:
    captured = capture(Shared(), (torch.randn(8, 8),))
    plain = annotate(captured, Mesh.of(x=2), rules_in_force())
    leaner = annotate(captured, Mesh.of(x=2), rules_in_force(), lean=True)
    policies = {
        site.path: {each.policy for each in site.candidates}
        for site in leaner.sites
        if site.kind == "parameter"
    }
    assert policies == {
        "first.weight": {"step", "reduce", "microbatch"},
        "first.bias": {"step", "reduce", "microbatch"},
        "fused": {"step", "reduce", "microbatch"},
        "scaled": {"step"},
        "frozen": {"step", "microbatch"},
    }
    assert {e.policy for site in plain.sites for e in site.candidates} == {"step"}
    moved = {site.name for site in plain.sites if site.parameter_only} - {
        site.name for site in leaner.sites if site.parameter_only
    }
    assert all("split" in name for name in moved)
    assert moved
    (split,) = [site for site in leaner.sites if site.kept]
    assert split.name in moved


@pytest.mark.parametrize("preset", ["zero2", "zero3"])
def test_such_parameters_train_as_on_one_device(preset: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    module = autoplan.parallelize(
        Shared(), (x,), devices=4, cluster="cpu", preset=preset, microbatches=1
    )
    check = module.verify((x,), steps=3)
    assert check.ok, check


@pytest.mark.parametrize(("known", "bound"), [(7.0, 7.0), (-math.inf, 6.0), (math.inf, 10.0)])
def test_where_time_ends_before_lean_candidates_nothing_of_them_is_claimed(
    known: float, bound: float
) -> None:
    """The plan without them stays, and what is proven is what the shorter search has proven."""
    proof = Certificate(10.0, 10.0, 0.0, 0.1, "optimal", 1, 0, 0, None)
    plain: Any = None, Chosen(Solution((0,), proof), Memory(0, 0, 0, 0, 0), limited=True, floor=6.0)

    def solve(asked: Request, with_lean: bool) -> Any:
        if with_lean:
            raise TooLittleMemoryError("nothing was found in time", (0,), known)
        return plain

    asked = make_request(4, cluster="cpu")
    _, found = lean.solve_lean_where_memory_asks(solve, asked, (), Mesh.of(devices=4))
    certificate = found.solution.certificate
    assert certificate.objective == 10.0
    assert certificate.bound == bound
    assert (certificate.status == "optimal") == (bound == 10.0)


def test_where_the_shorter_search_took_most_of_the_time_there_is_no_other() -> None:
    proof = Certificate(10.0, 10.0, 0.0, 0.1, "optimal", 1, 0, 0, None)

    def solve(asked: Request, with_lean: bool) -> Any:
        assert not with_lean
        time.sleep(0.1)
        return None, Chosen(Solution((0,), proof), Memory(0, 0, 0, 0, 0), limited=True, floor=6.0)

    asked = make_request(4, cluster="cpu", time_limit_s=0.11)
    _, found = lean.solve_lean_where_memory_asks(solve, asked, (), Mesh.of(devices=4))
    assert found.solution.certificate.bound == 6.0
