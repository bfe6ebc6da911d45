"""Dropout belongs to the model, not to the plan: the same seed gives the same loss everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import autoplan
from tests.models import gpt2, ideal_cluster, language_batch

ARGS, KWARGS = language_batch(4, 8)
PLANS: dict[str, dict[str, Any]] = {
    "ddp": {"preset": "ddp"},
    "megatron": {"preset": "megatron"},
    "mesh a x b": {"cluster": ideal_cluster(4), "parallel": {"mesh": {"a": 2, "b": 2}}},
}


def module(plan: str, seed: int = 3) -> autoplan.ParallelModule:
    torch.manual_seed(0)
    model = gpt2(dropout=0.1)
    return autoplan.parallelize(model, ARGS, KWARGS, devices=4, seed=seed, **PLANS[plan])


@pytest.mark.parametrize("plan", PLANS)
def test_a_model_with_dropout_verifies(plan: str) -> None:
    dropping = module(plan)
    found = dropping.verify(ARGS, KWARGS)
    assert found.ok, str(found)
    before = [float(dropping(*ARGS, **KWARGS).loss.detach()) for _ in range(2)]
    assert dropping.verify(ARGS, KWARGS).ok  # at a later step, with other masks
    after = [float(dropping(*ARGS, **KWARGS).loss.detach()) for _ in range(2)]
    assert len({*before, *after}) == 4


def test_plans_and_devices_drop_alike() -> None:
    losses = []
    for plan in PLANS:
        dropping = module(plan)
        losses.append([float(dropping(*ARGS, **KWARGS).loss.detach()) for _ in range(3)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-12)
    assert len(set(losses[0])) == 3  # step to step


def test_seeds_drop_differently_and_repeat() -> None:
    losses = [float(module("ddp", s)(*ARGS, **KWARGS).loss.detach()) for s in (3, 4, 3)]
    assert losses[0] == losses[2] != losses[1]


def test_microbatches_drop_differently() -> None:
    """The same rows twice: without dropout both halves would be equal."""
    dropping = module("mesh a x b")
    args = tuple(torch.cat([each, each]) for each in ARGS)
    kwargs = {name: torch.cat([each, each]) for name, each in KWARGS.items()}
    one, two = dropping.train_step(args, kwargs, microbatches=2, outputs=True).outputs or ()
    assert float((one.logits - two.logits).abs().max()) > 1e-3
    dropping.eval()
    one, two = dropping.train_step(args, kwargs, microbatches=2, outputs=True).outputs or ()
    torch.testing.assert_close(one.logits, two.logits, rtol=0, atol=0)


def test_dropped_rate_is_that_asked_for() -> None:
    """A mask with another rate would verify too: both sides draw from it."""

    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
            self.dropout = torch.nn.Dropout(0.25)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dropout(x * self.scale)

    x = torch.ones(64, 512, dtype=torch.float64)
    out = autoplan.parallelize(Dropping(), (x,), devices=4, hints={"x": "S(0)"})(x)
    kept = out != 0
    assert float(kept.double().mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.75))
    for dim in (0, 1):  # no row and no column of its own
        assert 0.5 < float(kept.double().mean(dim).min()) < 0.75


def test_dropout_inside_torchs_own_layers_is_keyed_too() -> None:
    """Encoder layers call attention and dropout from within other functions of torch."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.2, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)).train()
    x = torch.randn(6, 5, 16)
    for preset in ("ddp", "megatron"):
        module = autoplan.parallelize(model, (x,), devices=2, preset=preset)
        assert module.verify((x,)).ok
        assert not torch.equal(module(x), module(x))
