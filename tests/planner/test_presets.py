"""Presets: what each one pins, on GPT-2 and Llama; and that it is never faster than a free plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autoplan
from autoplan.capture import Captured, capture
from autoplan.layouts import BP, B, Layout, S
from autoplan.plan import Plan
from autoplan.planning import plan_captured
from autoplan.request import make_request
from tests.planner.models import gpt2, llama, token_ids

WHOLE = {(B,), (BP,)}


@pytest.fixture(scope="module")
def graphs() -> dict[str, Captured]:
    ids = token_ids(8, 16, 100)
    models = {"gpt2": gpt2(vocab_size=100), "llama": llama(vocab_size=100, num_key_value_heads=4)}
    return {name: capture(model, (ids,), {"labels": ids}) for name, model in models.items()}


def plan_with(captured: Captured, preset: str | None, **options: Any) -> Plan:
    given = {"parallel": None if preset else {"mesh": {"devices": 4}}} | options
    return plan_captured(captured, make_request(4, "cpu", preset=preset, **given), "model").plan


def parameters(plan: Plan) -> dict[str, Any]:
    return {row.path: row for row in plan.tensors if row.kind == "parameter"}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_ddp_keeps_every_parameter_whole(graphs: Any, name: str) -> None:
    plan = plan_with(graphs[name], "ddp")
    for path, row in parameters(plan).items():
        assert row.layout == "(B)", path
        assert row.use == "(B/P)", path
    assert plan.layout("input_ids") == plan.layout("labels") == (S(0),)
    assert {row.kind for row in plan.collectives if row.direction == "backward"} == {"all_reduce"}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_ddp_is_the_baseline(graphs: Any, name: str) -> None:
    plan = plan_with(graphs[name], "ddp")
    assert plan.baseline.step_time_s == pytest.approx(plan.step_time_s, rel=1e-9)
    assert plan.baseline.peak_memory_bytes == plan.peak_memory_bytes


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_fsdp_stores_every_parameter_split(graphs: Any, name: str) -> None:
    plan = plan_with(graphs[name], "fsdp")
    for path, row in parameters(plan).items():
        assert row.layout in ("(S(0))", "(S(1))"), path
        assert row.use == "(B/P)", path
    assert plan.layout("input_ids") == (S(0),)
    ddp = plan_with(graphs[name], "ddp")
    assert plan.memory.parameters * 4 == ddp.memory.parameters


def test_fsdp_leaves_parameters_without_a_row_for_every_rank_whole() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Linear(3, 3))
    plan = autoplan.plan(model, (torch.randn(8, 8),), devices=4, cluster="cpu", preset="fsdp")
    layouts = {path: row.layout for path, row in parameters(plan).items()}
    assert layouts == {"0.weight": "(S(1))", "0.bias": "(B)", "1.weight": "(B)", "1.bias": "(B)"}


# The fused c_attn is cut into q, k and v before it is multiplied, so its storage is free.
COLUMN = {
    "gpt2": {"mlp.c_fc.weight": S(1)},
    "llama": {
        f"{name}_proj.weight": S(0)
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")
    },
}
ROW = {
    "gpt2": {"attn.c_proj.weight": S(0), "mlp.c_proj.weight": S(0)},
    "llama": {"self_attn.o_proj.weight": S(1), "mlp.down_proj.weight": S(1)},
}
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}


def products(plan: Plan) -> dict[str, set[str]]:
    """Module path -> the indices over which its products with weights are split."""
    found: dict[str, set[str]] = {}
    for row in plan.operations:
        if row.op in ("aten.linear.default", "aten.addmm.default"):
            found.setdefault(row.path, set()).add(row.choice)
    return found


@pytest.mark.parametrize("preset", ["megatron", "megatron-sp"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_megatron_cuts_columns_then_rows(graphs: Any, name: str, preset: str) -> None:
    plan = plan_with(graphs[name], preset)
    labels = products(plan)
    residual = WHOLE if preset == "megatron" else {(S(1),)}
    for layer in range(2):
        block = f"{BLOCKS[name]}.{layer}"
        for path, entry in COLUMN[name].items():
            assert plan.tensor(f"{block}.{path}").use in {f"({entry})"}, path
            assert labels[f"{block}.{path}".removesuffix(".weight")] == {"o"}, path
        for path, entry in ROW[name].items():
            assert plan.tensor(f"{block}.{path}").use in {f"({entry})"}, path
            assert labels[f"{block}.{path}".removesuffix(".weight")] == {"i"}, path
        assert plan.layout(block) in residual
    if name == "gpt2":
        for layer in range(2):
            assert labels[f"transformer.h.{layer}.attn.c_attn"] == {"o"}
    attention = [r for r in plan.operations if "scaled_dot_product" in r.op]
    assert {row.choice for row in attention} == {"h"}
    assert tuple(plan.layout("input_ids")) in WHOLE


@pytest.mark.parametrize("preset", ["ddp", "fsdp", "megatron", "megatron-sp"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_preset_is_never_faster_than_a_free_plan(graphs: Any, name: str, preset: str) -> None:
    free, pinned = plan_with(graphs[name], None), plan_with(graphs[name], preset)
    assert pinned.step_time_s >= free.step_time_s * (1 - 1e-9)
    assert any("preset" in origin or "scheme" in origin for origin in pinned.hints)


def test_data_and_tensor_axes_together(graphs: Any) -> None:
    """`preset` binds the data axis, the tensor mode the other one."""
    parallel = {"data": 2, "tensor": {"size": 2, "mode": "1d"}}
    plan = plan_with(graphs["llama"], "fsdp", parallel=parallel)
    assert plan.axes == ("data", "tensor")
    for path, row in parameters(plan).items():
        assert Layout.parse(row.layout)[0] in (S(0), S(1)), path
        assert Layout.parse(row.use)[0] == BP, path
    assert plan.layout("input_ids") == (S(0), B)
    for path, choices in products(plan).items():
        assert all(choice.split(" | ")[1] in ("i", "o") for choice in choices), path


def test_user_hints_go_before_a_preset(graphs: Any) -> None:
    """A hint narrows what the preset leaves; against it there is an error, not a silent choice."""
    hints = {"model.layers.*.mlp.up_proj.weight": "S(1)"}
    plan = plan_with(graphs["llama"], "fsdp", hints=hints)
    assert plan.layout("model.layers.1.mlp.up_proj.weight") == (S(1),)
    with pytest.raises(autoplan.HintError, match="preset 'ddp'"):
        plan_with(graphs["llama"], "ddp", hints=hints)


def test_a_batch_that_leaves_most_ranks_without_rows_is_refused() -> None:
    ids = token_ids(3, 16)
    with pytest.raises(autoplan.HintError, match=r"3 rows.*devices 8.*multiple of 8"):
        autoplan.plan(gpt2(), (ids,), {"labels": ids}, devices=8, cluster="cpu", preset="ddp")
