"""Schemes: each preset's plan is called by its name, and what is otherwise in a plan is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

import autoplan
from autoplan.capture import Captured, capture
from autoplan.plan import Plan
from autoplan.planning import plan_captured
from autoplan.request import make_request
from tests.planner.models import gpt2, llama

SIZES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: gpt2(vocab_size=8192, n_embd=1024, n_head=16, n_positions=512),
    "llama": lambda: llama(
        vocab_size=8192, hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "mixtral": lambda: mixtral(),
}  # fmt: skip
"""Wide enough that to split a layer pays; without weights."""


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        num_hidden_layers=2, hidden_size=1024, intermediate_size=2048, num_attention_heads=16,
        num_key_value_heads=8, vocab_size=8192, num_local_experts=8, use_cache=False,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def graph(name: str, batch: int) -> Captured:
    with torch.device("meta"):
        model = SIZES[name]().to(torch.bfloat16)
        ids = torch.zeros(batch, 512, dtype=torch.long)
    return capture(model, (ids,), {"labels": ids})


@pytest.fixture(scope="module")
def graphs() -> Callable[[str, int], Captured]:
    made: dict[tuple[str, int], Captured] = {}

    def get(name: str, batch: int) -> Captured:
        if (name, batch) not in made:
            made[name, batch] = graph(name, batch)
        return made[name, batch]

    return get


def plan_of(captured: Captured, devices: int, **options: Any) -> Plan:
    return plan_captured(captured, make_request(devices, "h100", **options), "model").plan


PRESETS = {
    "ddp": "DDP 4",
    "fsdp": "FSDP 4",
    "megatron": "Megatron-TP 4",
    "megatron-sp": "Megatron-TP 4 with sequence parallelism",
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_preset_is_named(graphs: Any, name: str, preset: str) -> None:
    plan = plan_of(graphs(name, 8), 4, preset=preset)
    assert (plan.scheme, plan.departures) == (PRESETS[preset], ())


MIXTURES = {
    "ddp": "DDP 4",
    "fsdp": "FSDP 4",
    "megatron": "Megatron-TP 4 with expert parallelism",
    "megatron-sp": "Megatron-TP 4 with sequence and expert parallelism",
    "expert": "expert parallelism 4 (other parameters FSDP)",
}
"""Tensor parallelism pins nothing of experts, which the solver spreads."""


@pytest.mark.parametrize("preset", MIXTURES)
def test_a_preset_is_named_on_a_mixture(graphs: Any, preset: str) -> None:
    plan = plan_of(graphs("mixtral", 8), 4, preset=preset)
    assert (plan.scheme, plan.departures) == (MIXTURES[preset], ())


@pytest.mark.parametrize(
    ("preset", "said"), [("ulysses", "Ulysses 4"), ("ring", "ring attention 4")]
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_presets_of_the_sequence_are_named(graphs: Any, name: str, preset: str, said: str) -> None:
    for rows in (1, 8):
        plan = plan_of(graphs(name, rows), 4, preset=preset)
        assert (plan.scheme, plan.departures) == (said, ())


@pytest.mark.parametrize(
    ("preset", "said"), [("zero1", "ZeRO-1 4"), ("zero2", "ZeRO-2 4"), ("zero3", "FSDP 4")]
)
def test_stages_of_zero_differ_over_microbatches(graphs: Any, preset: str, said: str) -> None:
    """With one microbatch nothing is done between microbatches, and all are FSDP."""
    plan = plan_of(graphs("llama", 8), 4, preset=preset, microbatches=2)
    assert (plan.scheme, plan.departures) == (said, ())
    assert plan_of(graphs("llama", 8), 4, preset=preset).scheme == "FSDP 4"


GRIDS = {
    "2d": (4, "2D tensor parallelism 4 (SUMMA 2 × 2)"),
    "2.5d": (8, "2.5D tensor parallelism 8 (depth 2, SUMMA 2 × 2)"),
    "3d": (8, "3D tensor parallelism 8 (2 × 2 × 2)"),
}


@pytest.mark.parametrize("mode", GRIDS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_grids_are_named(graphs: Any, name: str, mode: str) -> None:
    devices, said = GRIDS[mode]
    plan = plan_of(graphs(name, 8), devices, parallel={"tensor": {"size": devices, "mode": mode}})
    assert (plan.scheme, plan.departures) == (said, ())


MEGATRON = {"size": 4, "mode": "1d", "sequence_parallel": True}
TOGETHER: list[tuple[dict[str, Any], str]] = [
    (
        {"data": {"size": 2, "mode": "fsdp"}, "tensor": MEGATRON},
        "FSDP 2 × Megatron-TP 4 with sequence parallelism",
    ),
    ({"data": {"size": 8, "mode": "hsdp", "shard": 4}}, "HSDP 2 × 4"),
    (
        {"data": {"size": 2, "mode": "ddp"}, "tensor": {"size": 4, "mode": "2d"}},
        "DDP 2 × 2D tensor parallelism 4 (SUMMA 2 × 2)",
    ),
    ({"mesh": {"a": {"size": 2, "preset": "ddp"}, "b": {"size": 4, "preset": "ddp"}}}, "DDP 8"),
]


@pytest.mark.parametrize(("parallel", "said"), TOGETHER)
def test_axes_together_are_named(graphs: Any, parallel: dict[str, Any], said: str) -> None:
    plan = plan_of(graphs("llama", 8), 8, parallel=parallel)
    assert (plan.scheme, plan.departures) == (said, ())


PIPED: list[tuple[dict[str, Any], str]] = [
    ({"pipeline": 2}, "pipeline 2 (1F1B, 4 microbatches)"),
    (
        {"pipeline": {"size": 2, "schedule": "gpipe"}, "data": {"size": 2, "mode": "ddp"}},
        "pipeline 2 (GPipe, 4 microbatches) × DDP 2",
    ),
    (
        {"pipeline": 2, "data": {"size": 2, "mode": "ddp"}, "tensor": {**MEGATRON, "size": 2}},
        "pipeline 2 (1F1B, 4 microbatches) × DDP 2 × Megatron-TP 2 with sequence parallelism",
    ),
]


@pytest.mark.parametrize(("parallel", "said"), PIPED)
def test_pipelines_are_named(graphs: Any, parallel: dict[str, Any], said: str) -> None:
    sizes = [each["size"] if isinstance(each, dict) else each for each in parallel.values()]
    devices = int(torch.tensor(sizes).prod())
    plan = plan_of(graphs("llama", 2), devices, parallel=parallel, microbatches=4)
    assert plan.scheme == said
    assert plan.departures == ()


def test_one_device_and_replicas_of_everything() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    alone = autoplan.plan(model, (torch.randn(4, 4),), devices=1, cluster="cpu")
    assert alone.scheme == "one device"
    tiny = autoplan.plan(model, (torch.randn(4, 4),), devices=2, cluster="cpu")
    assert not tiny.collectives
    assert (tiny.scheme, tiny.departures) == ("replicated 2", ())


# -- departures ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(graphs: Any) -> Plan:
    return plan_of(graphs("llama", 8), 4, preset="fsdp")


def changed(plan: Plan, path: str, **values: str) -> Plan:
    """The plan with other layouts of one parameter, and of the product that reads it."""
    choice = values.pop("result", None)
    tensors = [
        msgspec.structs.replace(row, **values) if row.path == path else row for row in plan.tensors
    ]
    module = path.removesuffix(".weight")
    operations = [
        msgspec.structs.replace(row, layout=choice) if choice and row.path == module else row
        for row in plan.operations
    ]
    return msgspec.structs.replace(plan, tensors=tuple(tensors), operations=tuple(operations))


def test_a_vocabulary_parallel_head_is_told(sharded: Plan) -> None:
    plan = changed(sharded, "lm_head.weight", use="(S(0))", result="(S(2))")
    assert plan.scheme == "FSDP 4"
    assert plan.departures == ("lm_head.weight split by rows (vocabulary-parallel head)",)


def test_parameters_stored_whole_are_told(sharded: Plan) -> None:
    plan = sharded
    for layer in range(2):
        plan = changed(plan, f"model.layers.{layer}.mlp.up_proj.weight", layout="(B)")
    count = sum(row.kind == "parameter" for row in plan.tensors)
    said = f"2 of {count} parameters stored whole: model.layers.{{0,1}}.mlp.up_proj.weight"
    assert (plan.scheme, plan.departures) == ("FSDP 4", (said,))


def test_layers_that_every_rank_computes_are_told(sharded: Plan) -> None:
    path = "model.layers.0.mlp.down_proj.weight"
    plan = changed(sharded, path, result="(B)")
    said = "model.layers.0.mlp.down_proj computed whole on every rank"
    assert (plan.scheme, plan.departures) == ("FSDP 4", (said,))


def test_an_embedding_cut_by_rows_is_told(sharded: Plan) -> None:
    plan = changed(sharded, "model.embed_tokens.weight", use="(S(0))")
    said = "model.embed_tokens.weight split by rows (vocabulary-parallel embedding)"
    assert plan.departures == (said,)


def test_what_has_no_majority_is_mixed(sharded: Plan) -> None:
    """A quarter of the products each way: the name says how much of the weights goes which."""
    plan = sharded
    linears = [row.path for row in plan.operations if row.op == "aten.linear.default"]
    for number, module in enumerate(linears):
        result = ("(S(0))", "(S(1))", "(S(2))", "(B)")[number % 4]
        plan = changed(plan, f"{module}.weight", result=result)
    assert plan.scheme.startswith("mixed 4 (of the weights ")
    for way in ("over the batch", "over the sequence", "over output features", "whole on every"):
        assert way in plan.scheme
    assert sum(map(int, re.findall(r"(\d+)%", plan.scheme))) == pytest.approx(100, abs=2)


def test_a_free_plan_tells_what_its_name_does_not(graphs: Any) -> None:
    """Unpinned, some products work otherwise than most; they are told, none is told falsely."""
    plan = plan_of(graphs("llama", 8), 4, parallel={"mesh": {"x": 4}})
    results = {row.path: row.layout for row in plan.operations if row.op == "aten.linear.default"}
    over_batch = {path for path, layout in results.items() if layout == "(S(0))"}
    data = plan.scheme.startswith(("DDP", "FSDP"))
    others = {path for path in results if (path in over_batch) != data}
    said = " ".join(plan.departures)
    assert bool(others) == any(word in said for word in ("split over", "split by", "whole on"))


# -- what it is read from -----------------------------------------------------------------------


def test_a_plan_that_was_read_is_called_the_same(graphs: Any, tmp_path: Path) -> None:
    parallel = {"data": {"size": 2, "mode": "fsdp"}, "tensor": MEGATRON}
    plan = plan_of(graphs("llama", 8), 8, parallel=parallel)
    plan.save(tmp_path / "plan.toml")
    read = autoplan.load_plan(tmp_path / "plan.toml")
    assert (read.scheme, read.departures) == (plan.scheme, plan.departures)


def test_names_of_axes_say_nothing(sharded: Plan) -> None:
    renamed = msgspec.structs.replace(sharded, axes=("tensor",))
    assert (renamed.scheme, renamed.departures) == (sharded.scheme, sharded.departures)


def test_the_report_says_it(sharded: Plan) -> None:
    lines = sharded.report().splitlines()
    assert "scheme: FSDP 4" in lines
    plan = changed(sharded, "lm_head.weight", use="(S(0))", result="(S(2))")
    text = plan.report()
    assert "scheme: FSDP 4\n  but lm_head.weight split by rows (vocabulary-parallel head)" in text
