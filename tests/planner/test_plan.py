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
from tests.planner.models import MLP, Residual, gpt2, token_ids


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


def unhurried(plan: Plan) -> Plan:
    """The plan without how long the solver took, which is no part of its file."""
    proof = msgspec.structs.replace(plan.certificate, seconds=0.0)
    return msgspec.structs.replace(plan, certificate=proof)


def test_save_and_load(plan: Plan, gpt2_plan: Plan, tmp_path: Path) -> None:
    for number, each in enumerate((plan, gpt2_plan, plan_mlp(devices=1, parallel=None))):
        path = tmp_path / f"{number}.toml"
        each.save(path)
        assert autoplan.load_plan(path) == unhurried(each)
        assert autoplan.load_plan(str(path)) == unhurried(each)
        assert decode_plan(encode_plan(each), "text") == each


def test_what_ranks_send_is_read_back_as_the_same_bytes(gpt2_plan: Plan) -> None:
    text = encode_plan(gpt2_plan)
    assert encode_plan(decode_plan(text, "text")) == text


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"format": 3}', "\xff"])
def test_what_is_no_plan_of_a_rank(text: str) -> None:
    with pytest.raises(PlanFileError, match="'rank 0' is not a plan"):
        decode_plan(text.encode("latin-1"), "rank 0")


def test_a_plan_of_another_version(plan: Plan) -> None:
    other = msgspec.structs.replace(plan, format="autoplan-plan/9")
    with pytest.raises(PlanFileError, match=r"'autoplan-plan/9'.*reads 'autoplan-plan/2'"):
        decode_plan(encode_plan(other), "rank 0")


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
    assert plan.diff(decode_plan(encode_plan(plan), "text")) == "no difference"
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


def test_diff_says_what_was_asked_decided_predicted_and_sent(plan: Plan) -> None:
    other = plan_mlp(optimizer="sgd", microbatches=2, hints={"down.weight": "(B, S(1))"})
    lines = plan.diff(other).splitlines()
    assert "optimizer: adamw -> sgd" in lines
    assert "microbatches: 1 -> 2" in lines
    assert any(line.startswith("hints: 'up.weight'") for line in lines)
    assert any(re.match(r"step time: .* -> .* \([+-][\d.]+%\)", line) for line in lines)
    assert any(re.match(r"all_\w+ on [ab]: (\d+ of|none)", line) for line in lines)
    assert any(line.startswith("down.weight: ") for line in lines)


def test_diff_turned_around_swaps_the_sides(plan: Plan) -> None:
    other = plan_mlp(hints={"up.weight": "(B, S(1))"})

    def sides(text: str) -> set[tuple[str, ...]]:
        """Left and right of every line, without the relative change, which turns otherwise."""
        lines = re.sub(r" \([+-][\d.]+%\)$", "", text, flags=re.M).splitlines()
        parts = [line.partition(": ") for line in lines]
        return {(name, *sorted(what.split(" -> "))) for name, _, what in parts}

    assert plan.diff(other) != other.diff(plan)
    assert sides(plan.diff(other)) == sides(other.diff(plan))


def test_diff_of_many_blocks_is_as_long_as_of_few() -> None:
    def lines(layers: int) -> int:
        options: dict[str, Any] = {"devices": 2, "cluster": "cpu"}
        batch = (torch.randn(64, 16),)
        pins = {"layers.*.up.weight": "S(0)"}
        free = autoplan.plan(Residual(layers), batch, **options)
        pinned = autoplan.plan(Residual(layers), batch, hints=pins, **options)
        return len(free.diff(pinned).splitlines())

    assert lines(3) == lines(6)


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


def test_planning_is_deterministic(tmp_path: Path) -> None:
    """Two processes with different hash seeds write the same bytes."""
    root = Path(__file__).parents[2]
    paths = {seed: tmp_path / f"{seed}.toml" for seed in ("1", "2")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path)],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
        )
        for seed, path in paths.items()
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    files = [path.read_bytes() for path in paths.values()]
    assert files[0] == files[1]


def test_planning_twice_in_one_process(plan: Plan, tmp_path: Path) -> None:
    again = plan_mlp(hints={"up.weight": "(S(0), B)"})
    plan.save(tmp_path / "one")
    again.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
