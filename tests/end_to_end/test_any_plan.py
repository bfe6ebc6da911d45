"""The law behind every plan: whatever the solver chooses computes what the model computes.

Each site takes a random candidate among those with a finite price, so that conversions and local
programs meet that no sensible plan would join.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import autoplan
from tests.end_to_end.arbitrary import any_choice
from tests.end_to_end.training import predicted, watched
from tests.models import Example, FreeParameters, Mlp, gpt2, language_batch, llama, vector_batch

MODELS: dict[str, Callable[[], tuple[torch.nn.Module, Example]]] = {
    "mlp": lambda: (Mlp(13, 30), vector_batch(7, 13)),
    "free parameters": lambda: (
        FreeParameters(5, 7),
        ((torch.randn(6, 5, 7, dtype=torch.float64),), {}),
    ),
    "gpt2": lambda: (gpt2(n_embd=20, n_head=5, dropout=0.1), language_batch(6, 7)),
    "llama": lambda: (
        llama(hidden_size=24, num_attention_heads=6, num_key_value_heads=3, intermediate_size=25),
        language_batch(4, 7),
    ),
}
MESHES: dict[str, dict[str, int]] = {
    "3": {"a": 3},
    "2 x 2": {"a": 2, "b": 2},
    "2 x 3": {"a": 2, "b": 3},
}


def check(model: str, mesh: str, seed: int, microbatches: int) -> None:
    torch.manual_seed(seed)
    original, (args, kwargs) = MODELS[model]()
    if microbatches > 1:
        args = tuple(torch.cat([each] * microbatches) for each in args)
        kwargs = {name: torch.cat([each] * microbatches) for name, each in kwargs.items()}
    sizes = MESHES[mesh]
    options: dict[str, Any] = {"microbatches": microbatches, "parallel": {"mesh": sizes}}
    with any_choice(seed):
        devices = autoplan.Mesh.of(**sizes).num_devices
        module = autoplan.parallelize(original, args, kwargs, devices=devices, **options)
    part = tuple(each[: len(each) // microbatches] for each in args)
    found = module.verify(part, {k: v[: len(v) // microbatches] for k, v in kwargs.items()})
    assert found.ok, str(found)
    assert found.first_difference is None
    with watched(module) as seen:
        module.train_step(args, kwargs)
    assert seen == predicted(module.plan)
    if microbatches == 1:
        with watched(module) as seen:
            outputs = module(*args, **kwargs)
            (outputs if isinstance(outputs, torch.Tensor) else outputs["loss"]).backward()
        assert seen == predicted(module.plan, outputs=True)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("mesh", "seed", "microbatches"),
    [("3", 0, 1), ("2 x 2", 1, 2), ("2 x 3", 3, 1)],
)
def test_any_choice_computes_what_the_model_computes(
    model: str, mesh: str, seed: int, microbatches: int
) -> None:
    check(model, mesh, seed, microbatches)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_choices_compute_what_the_model_computes(model: str, mesh: str, seed: int) -> None:
    check(model, mesh, seed, 1 + seed % 2)
