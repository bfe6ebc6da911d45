"""Rows 14, 16, A, B and D of the capability table, simulated and on real gloo ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

import autoplan
from autoplan.runtime.reference import run_reference
from tests.capabilities.ranks import models_on_four
from tests.models import Mlp, gpt2, ideal_cluster, language_batch, vector_batch
from tests.runtime.launch import run_ranks
from tests.zoo.families import every_family, seeded


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Any]]:
    return run_ranks(models_on_four, 4, timeout_s=200)


def check(name: str, **options: Any) -> autoplan.ParallelModule:
    """Plan the family on 8 simulated ranks so that it is split, and verify with two steps."""
    if every_family()[name].source == "transformers":
        pytest.importorskip("transformers")
    model, args, kwargs = seeded(name)
    keys = list(model.state_dict())
    options = {"parallel": {"mesh": {"a": 2, "b": 4}}, "cluster": ideal_cluster(8), **options}
    module = autoplan.parallelize(model, args, kwargs, devices=8, time_limit_s=20, **options)
    found = module.verify(args, kwargs, steps=2)
    assert found.ok, str(found)
    assert found.tolerance == 1e-9
    assert module.plan.collectives
    assert [key for key in module.full_state_dict() if not key.startswith("autoplan")] == keys
    return module


# -- 14: model zoo ------------------------------------------------------------------------------

SIZES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", {"hidden_size": 40, "num_attention_heads": 5,
             "num_hidden_layers": 3, "intermediate_size": 50, "vocab_size": 97}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 21, "n_head": 7, "n_layer": 3,
             "n_positions": 16, "vocab_size": 113, "bos_token_id": 0, "eos_token_id": 0}),
    "t5": ("T5ForConditionalGeneration", "T5Config", {"d_model": 20, "num_heads": 5, "d_kv": 3,
           "num_layers": 2, "d_ff": 30, "vocab_size": 97, "decoder_start_token_id": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "t5"])
def test_row_14_model_zoo(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_row_14_model_zoo_at_other_sizes(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model, config, given = SIZES[name]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**given)).train()
    ids = torch.randint(3, 97, (5, 9))
    kwargs = {"input_ids": ids, "labels": ids}
    module = autoplan.parallelize(built, (), kwargs, devices=8, cluster=ideal_cluster(8))
    found = module.verify((), kwargs, steps=2)
    assert found.ok, str(found)


# -- 16: pure modes on 8 ------------------------------------------------------------------------

MODES: dict[str, dict[str, Any]] = {
    "data": {"data": 8},
    "tensor": {"tensor": {"size": 8, "mode": "1d"}},
    "pipeline": {"pipeline": 8},
}


@pytest.mark.parametrize("mode", MODES)
def test_row_16_pure_modes_on_8(mode: str) -> None:
    """Pure data, tensor and pipeline parallelism; a pipeline of 8 has a block for each stage."""
    torch.manual_seed(0)
    layers = 8 if mode == "pipeline" else 1
    model = gpt2(n_head=8, n_embd=32, n_layer=layers, dropout=0.1)
    args, kwargs = language_batch(8, 7)
    module = autoplan.parallelize(model, args, kwargs, devices=8, parallel=MODES[mode])
    found = module.verify(args, kwargs, steps=3)
    assert found.ok, str(found)
    plan = module.plan
    assert str(plan.mesh) == f"{mode} 8"
    weight = plan.tensor("transformer.h.0.mlp.c_fc.weight")
    hidden = plan.tensor("transformer.h.0.mlp.c_fc")
    if mode == "data":  # the plan may store weights in shards
        assert hidden.local_shape == (1, 7, 128)
    elif mode == "pipeline":
        assert plan.pipeline is not None
        assert [stage.ranks for stage in plan.pipeline.stages] == [(rank,) for rank in range(8)]
        assert plan.pipeline.size == len(plan.stages) == 8
    else:
        assert weight.local_shape == (32, 16)
        assert hidden.local_shape == (8, 7, 16)


def test_row_16_pure_modes_on_real_ranks(four_ranks: list[dict[str, Any]]) -> None:
    for results in four_ranks:
        for mode in MODES:
            assert results[f"16 {mode}"].startswith("equal within 1e-09")


# -- A: any nn.Module, no special layers --------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mixtral_grouped_mm", "resnet"])
def test_row_a_models_as_they_are(name: str) -> None:
    """BERT, GPT-2, ViT and T5 are row 14."""
    check(name)


@pytest.mark.parametrize("name", ["lstm", "unet_with_group_norm", "recommender", "structured"])
def test_row_a_plain_modules_as_they_are(name: str) -> None:
    check(name)


def test_row_a_on_real_ranks(four_ranks: list[dict[str, Any]]) -> None:
    for results in four_ranks:
        assert results["A"].startswith("equal within 1e-09")


# -- B: verify() --------------------------------------------------------------------------------


def broken(nodes: list[fx.Node]) -> None:
    """A GELU of another kind on every rank."""
    for node in nodes:
        node.kwargs = {"approximate": "tanh"}


def test_row_b_verify() -> None:
    """Forward, every gradient and k steps, in float64; the first node that differs is named."""
    torch.manual_seed(0)
    args, kwargs = vector_batch(6)
    model = Mlp(dtype=torch.float32)
    args = tuple(each.float() for each in args)
    module = autoplan.parallelize(model, args, kwargs, devices=4, preset="megatron")
    found = module.verify(args, kwargs, steps=3)
    assert found.ok
    assert found.precision == "float64"
    paths = {path for path, _ in model.named_parameters()}
    assert set(found.gradient_errors) == set(found.weight_errors) == paths
    assert max(found.output_errors.values()) < 1e-12
    [entry] = module._entries.values()
    for program in entry.programs:
        broken([n for n in program.body.graph.nodes if str(n.target).startswith("aten.gelu")])
        program.body.recompile()
    found = module.verify(args, kwargs)
    assert not found.ok
    assert found.first_difference is not None
    assert "gelu" in found.first_difference.node
    assert "models.py" in found.first_difference.source


def test_row_b_on_real_ranks(four_ranks: list[dict[str, Any]]) -> None:
    for results in four_ranks:
        assert results["B"].startswith("equal within 1e-09")
        assert "weight after 3 steps" in results["B"]


# -- D: simulation ------------------------------------------------------------------------------


def test_row_d_real_values_of_every_rank_in_one_process() -> None:
    """No process group: 8 ranks in lockstep train as one device does, step by step."""
    assert not torch.distributed.is_initialized()
    torch.manual_seed(0)
    args, kwargs = language_batch(6, 7)
    model, original = gpt2(dropout=0.1), gpt2(dropout=0.1)
    original.load_state_dict(model.state_dict())
    original.config.use_cache = False
    module = autoplan.parallelize(
        model, args, kwargs, devices=8, cluster=ideal_cluster(8),
        parallel={"mesh": {"a": 2, "b": 4}},
    )  # fmt: skip
    assert list(module._live_executor.ranks) == list(range(8))
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (module, original)]
    for step in range(3):
        loss = module(*args, **kwargs).loss
        truth = run_reference(original, args, kwargs, 0, step).loss
        torch.testing.assert_close(loss, truth, rtol=1e-9, atol=0.0)
        loss.backward()
        truth.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    state = module.full_state_dict()
    for path, value in original.state_dict().items():
        torch.testing.assert_close(state[path], value, rtol=1e-9, atol=1e-9)
