"""Rows C and H of the capability table: plans with a certificate, as files that people review."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import autoplan
from autoplan import PlanFileError
from autoplan.planfiles.patterns import expanded
from tests.capabilities.plan_ranks import deeper_from_file
from tests.models import gpt2, language_batch
from tests.runtime.launch import run_ranks

ACTIVATION = "transformer.h.1.mlp.act/tanh#1"


@pytest.fixture(scope="module")
def plan() -> autoplan.Plan:
    """GPT-2 with three blocks on 2 x 2; the first block's up projection is pinned."""
    mesh = {"mesh": {"outer": 2, "inner": 2}}
    pins = {"transformer.h.*.mlp.c_fc": {"inner": "S(2)"}}
    return autoplan.plan(
        gpt2(n_layer=3), *language_batch(), devices=4, cluster="cpu", parallel=mesh, hints=pins
    )


@pytest.fixture(scope="module")
def path(plan: autoplan.Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "plan.toml"
    plan.save(path)
    return path


# -- C: a certificate ---------------------------------------------------------------------------


def test_row_c_a_plan_file_holds_its_certificate(plan: autoplan.Plan, path: Path) -> None:
    proof = autoplan.load_plan(path).certificate
    assert proof.gap == 0.0
    assert proof.bound <= proof.objective == plan.step_time_s
    assert proof.bound == pytest.approx(plan.step_time_s, rel=1e-9)


def test_row_c_what_was_not_solved_claims_no_proof(path: Path, tmp_path: Path) -> None:
    edited = edit(path, tmp_path / "edited.toml", {ACTIVATION: "B | B"})
    for proof in (autoplan.load_plan(edited).certificate, on(gpt2(n_layer=3), edited).certificate):
        assert proof.gap == 1.0
        assert proof.bound == 0.0
        assert "optimal" not in proof.status


# -- H: a plan is a reviewable text file --------------------------------------------------------


def on(model: torch.nn.Module, path: Path) -> autoplan.Plan:
    return autoplan.parallelize(model, *language_batch(), plan=path).plan


def edit(path: Path, to: Path, choices: dict[str, str | None]) -> Path:
    """The file as one edits it: a path leaves its block's line, and gets its own, or none."""
    lines = []
    for line in path.read_text().splitlines():
        parts = re.fullmatch(r'"(.*)" = (".*")', line)
        keys = expanded(parts[1]) if parts else []
        if parts is None or not choices.keys() & set(keys):
            lines.append(line)
            continue
        for key in keys:
            choice = f'"{choices[key]}"' if choices.get(key) else parts[2]
            if key not in choices or choices[key]:
                lines.append(f'"{key}" = {choice}')
    to.write_text("\n".join(lines))
    return to


def test_row_h_keyed_by_module_path(path: Path) -> None:
    """A person finds the decision on a module by its path, once for all blocks."""
    text = path.read_text()
    assert len(re.findall(r'^"transformer\.h\.\{0\.\.2\}\.mlp\.c_fc/addmm#1" = "', text, re.M)) == 1
    assert '"transformer.wte.weight" = "(' in text
    assert len(text) < 40_000


def test_row_h_edited_by_hand(plan: autoplan.Plan, path: Path, tmp_path: Path) -> None:
    """Another strategy for one op; its parameters are decided again, to fit."""
    linear, weight, bias = (
        f"transformer.h.1.mlp.c_fc{s}" for s in ("/addmm#1", ".weight", ".bias")
    )
    assert plan.choices[linear] != "B | B"
    alone = edit(path, tmp_path / "alone.toml", {linear: "B | B"})
    with pytest.raises(PlanFileError) as caught:
        on(gpt2(n_layer=3), alone)
    for word in (linear, "'B | B'", bias, "contradict", "(B, B)"):
        assert word in str(caught.value)
    edited = edit(path, tmp_path / "edited.toml", {linear: "B | B", weight: None, bias: None})
    module = autoplan.parallelize(gpt2(n_layer=3), *language_batch(), plan=edited)
    changed = {key for key, text in module.plan.choices.items() if plan.choices[key] != text}
    assert changed == {linear, f"parameter {weight}", f"parameter {bias}"}
    assert module.plan.choices[linear] == "B | B"
    assert module.plan.step_time_s > plan.step_time_s
    assert "new here, solved: in transformer.h.1.mlp.c_fc: weight, bias" in module.report()
    assert module.verify(*language_batch()).ok
    wrong = edit(path, tmp_path / "wrong.toml", {linear: "B | mm"})
    with pytest.raises(PlanFileError, match=r"c_fc/addmm#1' says 'B \| mm', but .* allows"):
        on(gpt2(n_layer=3), wrong)


def test_row_h_diffed_by_meaning(plan: autoplan.Plan, path: Path, tmp_path: Path) -> None:
    """Another spelling is no difference; another decision is one line, and what it costs."""
    spaced = tmp_path / "spaced.toml"
    spaced.write_text(path.read_text().replace(" | ", "|").replace("{0..2}", "{0,1,2}"))
    assert plan.diff(autoplan.load_plan(spaced)) == "no difference"
    edited = edit(path, tmp_path / "edited.toml", {ACTIVATION: "B | B"})
    lines = plan.diff(on(gpt2(n_layer=3), edited)).splitlines()
    assert f"{ACTIVATION}: {plan.choices[ACTIVATION]} -> B | B" in lines
    assert lines[0].startswith("step time: ")
    assert any(re.match(r"all_gather on inner: .* -> ", line) for line in lines)
    assert not [
        line for line in lines if line.startswith("transformer.") and ACTIVATION not in line
    ]


def test_row_h_survives_a_change_elsewhere(plan: autoplan.Plan, path: Path) -> None:
    """Blocks that are new are solved and listed; everything that was decided stays."""
    module = autoplan.parallelize(gpt2(n_layer=5), *language_batch(), plan=path)
    assert {key: module.plan.choices[key] for key in plan.choices} == plan.choices
    report = module.report()
    assert "new here, solved: in transformer.h.{3,4}.mlp.c_fc: weight, bias" in report
    assert module.verify(*language_batch()).ok
    shallow = on(gpt2(n_layer=2), path)
    assert "not in this model, left out: in transformer.h.2.mlp.c_fc" in "\n".join(shallow.notes)
    with pytest.raises(PlanFileError, match="of another model"):
        autoplan.parallelize(torch.nn.Linear(8, 8), (torch.randn(8, 8),), plan=path)


def test_row_h_real_ranks_agree_on_what_is_solved_again(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    autoplan.plan(gpt2(n_layer=2), *language_batch(), devices=2, cluster="cpu").save(path)
    results: list[dict[str, Any]] = run_ranks(deeper_from_file, 2, str(path), timeout_s=200)
    assert all(result["ok"] for result in results)
    assert len({result["choices"] for result in results}) == 1
    assert all("new here, solved" in result["notes"] for result in results)
