"""Rows 11, 21 and 22 of the capability table: stage ids that are found, given, shown and saved."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autoplan
from autoplan.errors import PlanFileError
from autoplan.pipelining.joined import run_of
from autoplan.plan import Plan
from autoplan.runtime.reference import run_reference
from tests.models import Example, gpt2, ideal_cluster, language_batch
from tests.pipelining.plans import unhurried

pytestmark = pytest.mark.timeout(900)  # many processes, on machines of two cores

# -- 11: stage ids of every block, stray layers included ------------------------------------------


def bert(**changes: Any) -> tuple[nn.Module, Example]:
    """BERT as pretrained: a pooler, a head for words, and one for whether sentences follow."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        **{"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 6, "vocab_size": 40,
           "intermediate_size": 32, "max_position_embeddings": 16, **changes}
    )  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (8, 8))
    mask = torch.ones_like(ids)
    mask[:, -2:] = 0
    given = {"attention_mask": mask, "labels": ids, "next_sentence_label": torch.arange(8) % 2}
    return transformers.BertForPreTraining(config).double().train(), ((ids,), given)


def bert_plan(**options: Any) -> Plan:
    model, (args, kwargs) = bert()
    given = {"devices": 3, "microbatches": 4, "parallel": {"pipeline": 3}, "time_limit_s": 20}
    return autoplan.plan(model, args, kwargs, cluster=ideal_cluster(3), **given, **options)


@pytest.fixture(scope="module")
def of_bert() -> Plan:
    return bert_plan()


def test_row_11_stage_ids_of_bert(of_bert: Plan) -> None:
    """Embeddings and mask first, layers balanced, pooler and heads last; no user code."""
    plan, pipeline = of_bert, of_bert.pipeline
    assert pipeline is not None
    assert plan.hints == () or all("several stages" in hint for hint in plan.hints)
    for path in ("bert.embeddings", "bert.embeddings.word_embeddings.weight", "attention_mask"):
        assert plan.stage(path) == 0
    assert plan.stage("bert.embeddings.position_embeddings.weight") == 0
    for path in ("bert.pooler", "cls.predictions", "cls.seq_relationship", "labels"):
        assert plan.stage(path) == 2
    layers = [plan.stage(f"bert.encoder.layer.{number}") for number in range(6)]
    assert layers == sorted(layers)
    assert {layers.count(stage) for stage in range(3)} <= {1, 2, 3}
    assert set(layers) == {0, 1, 2}
    assert pipeline.actual == pipeline.automatic
    assert pipeline.imbalance < 0.25
    every = {name for stage in pipeline.stages for name in stage.pieces}
    assert every == set(pipeline.pieces) == set(plan.stage_map)
    modules = {row.path for row in plan.operations if row.path}
    assert {plan.stage(path) for path in modules} == {0, 1, 2}


def test_row_11_every_stage_computes_the_mask_itself(of_bert: Plan) -> None:
    """It depends on arguments alone, and does not travel."""
    assert of_bert.pipeline is not None
    assert all(any(row.path == "attention_mask" for row in s.tensors) for s in of_bert.stages)
    assert all(len(stage.wires) <= 2 for stage in of_bert.stages)


def test_row_11_no_cut_is_better_balanced(of_bert: Plan) -> None:
    """By hand, a layer earlier or later at either boundary is not faster."""
    first = [of_bert.stage(f"bert.encoder.layer.{number}") for number in range(6)]
    for at in range(1, 6):
        for stage in (first[at] - 1, first[at] + 1):
            moved = [*first]
            moved[at] = stage
            if moved != sorted(moved) or set(moved) != {0, 1, 2}:
                continue
            other = bert_of(moved)
            assert other.step_time_s >= of_bert.step_time_s * (1 - 1e-9)


def bert_of(stage_map: list[int]) -> Plan:
    model, (args, kwargs) = bert()
    parallel = {"pipeline": {"size": 3, "stage_map": stage_map}}
    return autoplan.plan(
        model, args, kwargs, devices=3, microbatches=4, parallel=parallel,
        cluster=ideal_cluster(3), time_limit_s=10,
    )  # fmt: skip


# -- 21: custom stage maps ------------------------------------------------------------------------

MAPS = {
    "24 layers": (4, [0] * 6 + [1] * 7 + [2] * 7 + [3] * 4),
    "4 layers": (2, [0, 0, 0, 1]),
}


def of_map(size: int, layers: int, stage_map: list[int] | None) -> Plan:
    """A narrow GPT-2 cut as the map says, or as the solver does."""
    args, kwargs = language_batch(rows=16)
    torch.manual_seed(0)
    return autoplan.plan(
        gpt2(n_layer=layers, n_embd=8, n_head=2),
        args,
        kwargs,
        devices=size,
        microbatches=8,
        parallel={"pipeline": {"size": size, "stage_map": stage_map}},
        cluster=ideal_cluster(size),
        time_limit_s=40,
    )


@pytest.mark.parametrize("name", MAPS)
def test_row_21_custom_stage_map(name: str) -> None:
    """Every block where the map has it; imbalance shown; the solver's own cut is never worse."""
    size, stage_map = MAPS[name]
    plan, own = (of_map(size, len(stage_map), given) for given in (stage_map, None))
    blocks = [plan.stage(f"transformer.h.{number}") for number in range(len(stage_map))]
    assert blocks == stage_map
    assert plan.pipeline is not None
    loads = [
        each.forward_s + each.backward_s + each.forward_transfer_s + each.backward_transfer_s
        for each in plan.pipeline.stages
    ]
    imbalance = max(loads) * size / sum(loads) - 1
    assert plan.pipeline.imbalance == pytest.approx(imbalance, rel=1e-12)
    assert f"imbalance: the slowest rank is {imbalance:.1%} over the mean" in plan.report()
    assert own.step_time_s <= plan.step_time_s * (1 + 1e-9)
    assert run_of(plan).makespan_s == plan.step_time_s
    automatic = dict(zip(plan.pipeline.pieces, plan.pipeline.automatic, strict=True))
    moved = {name for name, stage in plan.stage_map.items() if automatic[name] != stage}
    assert moved
    assert "stage ids that the solver takes by itself differ:" in plan.report()


def test_row_21_the_automatic_ids_are_a_cut_as_good_as_the_map() -> None:
    size, stage_map = MAPS["4 layers"]
    plan = of_map(size, 4, stage_map)
    assert plan.pipeline is not None
    automatic = dict(zip(plan.pipeline.pieces, plan.pipeline.automatic, strict=True))
    given = [automatic[f"transformer.h.{number}"] for number in range(4)]
    assert given != stage_map
    assert of_map(size, 4, given).step_time_s < plan.step_time_s


# -- 22: automatic and actual stage ids saved -----------------------------------------------------

STEPS = 2


def trained(module: autoplan.ParallelModule) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and the weights after."""
    args, kwargs = language_batch()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        losses.append(float(module.train_step(args, kwargs).loss))
        optimizer.step()
        optimizer.zero_grad()
    return losses, {path: value.clone() for path, value in module.full_state_dict().items()}


def one_device(model: nn.Module) -> list[float]:
    args, kwargs = language_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        loss = run_reference(model, args, kwargs, 0, step)["loss"]
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_row_22_stage_ids_are_saved_and_reload_gives_the_same_plan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = gpt2(n_layer=4)
    args, kwargs = language_batch()
    parallel = {"pipeline": {"size": 2, "stage_map": [0, 0, 0, 1]}, "data": 2}
    first = autoplan.parallelize(
        copy.deepcopy(model), args, kwargs, devices=4, microbatches=4, parallel=parallel,
        cluster=ideal_cluster(4), time_limit_s=20,
    )  # fmt: skip
    path = tmp_path / "plan.toml"
    first.plan.save(path)
    pipeline = first.plan.pipeline
    assert pipeline is not None
    assert pipeline.actual != pipeline.automatic
    held = tomllib.loads(path.read_text())["pipeline"]
    assert held["stages"]["1"][0] == "transformer.h.3"
    assert held["automatic"]["1"][0] == "transformer.h.{2,3}"

    again = autoplan.load_plan(path)
    assert again == unhurried(first.plan)
    assert again.pipeline == pipeline
    second = autoplan.parallelize(
        copy.deepcopy(model), args, kwargs, plan=path, cluster=ideal_cluster(4)
    )
    assert unhurried(second.plan) == unhurried(first.plan)
    losses, state = trained(first)
    assert trained(second)[0] == losses
    assert losses == pytest.approx(one_device(model), rel=1e-9)
    for name, value in second.full_state_dict().items():
        assert torch.equal(value, state[name]), name


def test_row_22_the_ids_of_another_model_are_refused(tmp_path: Path) -> None:
    args, kwargs = language_batch(2)
    plan = autoplan.plan(
        gpt2(n_layer=2), args, kwargs, devices=2, parallel={"pipeline": 2}, cluster="cpu"
    )
    plan.save(tmp_path / "plan.toml")
    with pytest.raises(PlanFileError, match=r"says no stage for 'transformer\.h\.2'"):
        autoplan.parallelize(gpt2(n_layer=3), args, kwargs, plan=tmp_path / "plan.toml")
