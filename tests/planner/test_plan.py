"""The plan as data: saved and read back, compared, asked, and the same every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import autoplan
from autoplan.errors import LayoutError, PlanFileError
from autoplan.layouts import S
from autoplan.plan import Plan, decode_plan, encode_plan
from tests.planner.models import MLP, gpt2, token_ids


def plan_mlp(**options: Any) -> Plan:
    given = {"devices": 4, "cluster": "cpu", "parallel": {"mesh": {"a": 2, "b": 2}}} | options
    return autoplan.plan(MLP(64, 256), (torch.randn(32, 64),), **given)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_mlp(hints={"up.weight": "(S(0), B)"})


@pytest.fixture(scope="module")
def gpt2_plan() -> Plan:
    ids = token_ids(4, 16)
    return autoplan.plan(gpt2(), (ids,), {"labels": ids}, devices=2, cluster="cpu")


def test_save_and_load(plan: Plan, gpt2_plan: Plan, tmp_path: Path) -> None:
    for number, each in enumerate((plan, gpt2_plan, plan_mlp(devices=1, parallel=None))):
        path = tmp_path / f"{number}.json"
        each.save(path)
        assert autoplan.load_plan(path) == each
        assert autoplan.load_plan(str(path)) == each
        assert decode_plan(encode_plan(each), "text") == each


def test_saving_what_was_loaded_gives_the_same_bytes(gpt2_plan: Plan) -> None:
    text = encode_plan(gpt2_plan)
    assert encode_plan(decode_plan(text, "text")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a plan file"),
        ("{}", "not a plan file"),
        ("[1, 2]", "not a plan file"),
        ('{"format": 3}', "not a plan file"),
        ("\xff", "not a plan file"),
    ],
    ids=["empty", "object", "list", "type", "text"],
)
def test_files_that_are_no_plan(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanFileError, match=message) as caught:
        autoplan.load_plan(path)
    assert str(path) in str(caught.value)


def test_missing_truncated_and_foreign_files(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(PlanFileError, match="No such file"):
        autoplan.load_plan(path)
    plan.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PlanFileError, match="damaged"):
        autoplan.load_plan(path)
    path.write_bytes(whole.replace(b"autoplan-plan/1", b"autoplan-plan/9"))
    with pytest.raises(PlanFileError, match=r"'autoplan-plan/9'.*reads 'autoplan-plan/1'"):
        autoplan.load_plan(path)


def test_ask_for_a_layout(plan: Plan, gpt2_plan: Plan) -> None:
    assert plan.layout("up.weight")[0] == S(0)
    row = plan.tensor("up.weight")
    assert (row.shape, row.kind, row.dtype) == ((256, 64), "parameter", "float32")
    assert row.local_shape[0] == 128
    assert plan.tensor("x").kind == "input"
    assert plan.tensor("down").kind == "module"
    with pytest.raises(LayoutError, match=r"'up.wieght' \(did you mean 'up.weight'\?\)"):
        plan.layout("up.wieght")
    with pytest.raises(LayoutError, match="no parameter, argument or module 'zzzzz'"):
        plan.tensor("zzzzz")
    tied = [gpt2_plan.tensor(p) for p in ("lm_head.weight", "transformer.wte.weight")]
    assert tied[0].layout == tied[1].layout


def test_every_parameter_module_and_argument_has_a_row(gpt2_plan: Plan) -> None:
    model = gpt2()
    paths = {row.path for row in gpt2_plan.tensors}
    assert {name for name, _ in model.named_parameters(remove_duplicate=False)} <= paths
    assert {"input_ids", "labels"} <= paths
    linears = [n for n, m in model.named_modules() if type(m).__name__ in ("Conv1D", "LayerNorm")]
    assert set(linears) <= paths


def test_diff(plan: Plan) -> None:
    assert plan.diff(plan) == "no difference"
    other = plan_mlp(hints={"up.weight": "(B, S(1))"})
    text = plan.diff(other)
    line = next(line for line in text.splitlines() if line.startswith("up.weight"))
    assert re.match(r"up\.weight: \(S\(0\), B\).* -> \(B, S\(1\)\)", line)
    assert "mesh" not in text
    one = plan_mlp(parallel={"mesh": {"x": 4}})
    assert plan.diff(one).splitlines()[0] == "mesh: a 2 x b 2 -> x 4"
    deeper = autoplan.plan(
        torch.nn.Sequential(torch.nn.Linear(8, 8)), (torch.randn(4, 8),), devices=2, cluster="cpu"
    )
    assert "0.weight: only in the second plan" in plan.diff(deeper)
    assert "up.weight: only in the first plan" in plan.diff(deeper)


def test_a_plan_is_plain_data(plan: Plan) -> None:
    data = msgspec.json.decode(encode_plan(plan))
    assert data["axes"] == ["a", "b"]
    assert data["step_time_s"] == data["certificate"]["objective"]
    assert data["hints"] == ["'up.weight': '(S(0), B)'"]
    with pytest.raises(AttributeError):
        plan.step_time_s = 0.0  # type: ignore[misc]


def test_times_and_collectives_add_up(gpt2_plan: Plan) -> None:
    """Ops, collectives and the rest (optimizer, local boxing) make the step; none is negative."""
    ops = sum(row.forward_s + row.backward_s for row in gpt2_plan.operations)
    moved = sum(row.time_s for row in gpt2_plan.collectives if row.phase != "outputs")
    assert 0.0 < ops <= gpt2_plan.step_time_s
    assert ops + moved <= gpt2_plan.step_time_s * (1 + 1e-9)


SCRIPT = """
import sys, torch, autoplan
from tests.planner.models import Residual
plan = autoplan.plan(
    Residual(3), (torch.randn(64, 16),), devices=4, cluster="cpu",
    hints={"layers.*.up.weight": {"inner": "S(1)|S(0)"}},
    parallel={"mesh": {"outer": 2, "inner": 2}},
)
plan.save(sys.argv[1])
"""


def without_seconds(data: bytes) -> bytes:
    """A plan file without the one number that may differ: how long the solver took."""
    masked, count = re.subn(rb'("seconds": )[-+.e\d]+', rb"\g<1>0", data)
    assert count == 1
    return masked


def test_planning_is_deterministic(tmp_path: Path) -> None:
    """Two processes with different hash seeds write the same bytes."""
    root = Path(__file__).parents[2]
    paths = {seed: tmp_path / f"{seed}.json" for seed in ("1", "2")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path)],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
        )
        for seed, path in paths.items()
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    files = [without_seconds(path.read_bytes()) for path in paths.values()]
    assert files[0] == files[1]


def test_planning_twice_in_one_process(plan: Plan, tmp_path: Path) -> None:
    again = plan_mlp(hints={"up.weight": "(S(0), B)"})
    files = []
    for name, each in (("one", plan), ("two", again)):
        each.save(tmp_path / name)
        files.append(without_seconds((tmp_path / name).read_bytes()))
    assert files[0] == files[1]
