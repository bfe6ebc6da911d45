"""Sizes that the number of ranks does not divide: right numbers, priced at the largest shard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan
from tests.models import gpt2, ideal_cluster, language_batch


class Heads(nn.Module):
    """Attention over given heads, and a scale for each."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(heads, 1, 1, dtype=torch.float64) + 0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(q * self.scale, k, v * self.scale)
        return attended.square().mean()


def _heads(heads: int, batch: int = 1) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    torch.manual_seed(0)
    shape = (batch, heads, 5, 4)
    return tuple(torch.randn(shape, dtype=torch.float64) for _ in range(3)), {}


@pytest.mark.parametrize("mesh", [{"x": 8}, {"a": 2, "b": 4}], ids=["8", "2x4"])
def test_twelve_heads_on_eight_ranks(mesh: dict[str, int]) -> None:
    """As torch.chunk cuts: two each on six ranks, none on two."""
    args, kwargs = _heads(12)
    module = autoplan.parallelize(
        Heads(12),
        args,
        kwargs,
        devices=8,
        parallel={"mesh": mesh},
        hints={"scale": f"({', '.join(['S(0)'] * len(mesh))})"},
        cluster=ideal_cluster(8),
    )
    [entry] = module._entries.values()
    sites = entry.planned.annotated.sites
    [labels] = [
        site.candidates[choice].labels
        for site, choice in zip(sites, entry.planned.choices, strict=True)
        if site.call is not None and "attention" in site.call.op
    ]
    assert set(labels) == {"h"}
    check = module.verify(args, kwargs, steps=2)
    assert check.ok, check


@pytest.mark.parametrize("vocabulary", [50257, 30522])
@pytest.mark.parametrize("mesh", [{"x": 8}, {"a": 2, "b": 4}], ids=["8", "2x4"])
def test_published_vocabularies(vocabulary: int, mesh: dict[str, int]) -> None:
    torch.manual_seed(0)
    args, kwargs = language_batch(2, 5)
    model = gpt2(vocab_size=vocabulary, n_embd=4, n_head=2)
    split = "S(0)" if len(mesh) == 1 else "(B, S(0))"
    module = autoplan.parallelize(
        model,
        args,
        kwargs,
        devices=8,
        parallel={"mesh": mesh},
        hints={"transformer.wte.weight": split},
    )
    assert autoplan.S(0) in module.plan.layout("transformer.wte.weight")
    check = module.verify(args, kwargs)
    assert check.ok, check


def test_the_largest_shard_is_what_costs() -> None:
    """12 heads on 8 ranks take as long as 16, and longer than 8."""
    times = {}
    for heads in (8, 12, 16):
        plan = autoplan.plan(
            Heads(heads), *_heads(heads), devices=8, parallel={"mesh": {"x": 8}},
            hints={"scale": "S(0)"}, cluster=ideal_cluster(8),
        )  # fmt: skip
        times[heads] = plan.step_time_s
    assert times[8] < times[12]
    assert times[12] == pytest.approx(times[16], rel=1e-6)
