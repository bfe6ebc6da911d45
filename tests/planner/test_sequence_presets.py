"""Presets of sequence parallelism: what they pin and refuse; and where a ring wins freely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan
from autoplan.errors import HintError
from autoplan.layouts import S
from autoplan.plan import Plan
from tests.planner.models import gpt2, llama, token_ids

MODELS = {"gpt2": gpt2, "llama": llama}


def plan_of(
    name: str, preset: str | None, devices: int = 4, length: int = 32, **config: Any
) -> Plan:
    ids = token_ids(2, length)
    model = MODELS[name](**config)
    return autoplan.plan(
        model, (ids,), {"labels": ids}, devices=devices, cluster="cpu", preset=preset
    )


def attention_choices(plan: Plan) -> set[str]:
    return {row.choice for row in plan.operations if "scaled_dot_product" in row.op}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("preset", "labels"), [("ulysses", {"h", "g"}), ("ring", {"ring"})])
def test_tokens_are_split_and_parameters_whole(name: str, preset: str, labels: set[str]) -> None:
    plan = plan_of(name, preset)
    assert plan.layout("input_ids") == plan.layout("labels") == (S(1),)
    assert attention_choices(plan) <= labels
    for row in plan.tensors:
        if row.kind == "parameter":
            assert row.use == "(B/P)", row.path
    assert any("preset" in origin for origin in plan.hints)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", ["ulysses", "ring"])
def test_no_preset_is_faster_than_a_free_plan(name: str, preset: str) -> None:
    free, pinned = plan_of(name, None), plan_of(name, preset)
    assert pinned.step_time_s >= free.step_time_s * (1 - 1e-9)


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "fewer heads than ranks": (
        {"preset": "ulysses", "devices": 8},
        ["'ulysses'", "4 heads", "8 ranks", "at most 4 ranks", "'ring'"],
    ),
    "heads that leave a rank none": (
        {"preset": "ulysses", "devices": 4, "n_head": 6, "n_embd": 48},
        ["6 heads", "4 ranks"],
    ),
    "no half-parts": (
        {"preset": "ring", "length": 12},
        ["'ring'", "12 tokens", "4 ranks", "multiple of 8", "half-parts"],
    ),
    "fewer tokens than ranks": (
        {"preset": "ring", "length": 3},
        ["'ring'", "'input_ids'", "3 tokens", "4 ranks"],
    ),
    "dropout": (
        {"preset": "ring", "attn_pdrop": 0.1},
        ["'ring'", "dropout of 0.1", "to 0", "'ulysses'"],
    ),
    "no attention op": (
        {"preset": "ring", "attn_implementation": "eager"},
        ["'ring'", "scaled_dot_product_attention", "sdpa"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_sizes_are_refused_with_the_reason(case: str) -> None:
    given, words = REFUSED[case]
    with pytest.raises(HintError) as refused:
        plan_of("gpt2", **given)
    for word in words:
        assert word in str(refused.value)


def test_ulysses_takes_what_a_ring_refuses() -> None:
    """Dropout, and a length that has no two halves for each rank."""
    assert attention_choices(plan_of("gpt2", "ulysses", attn_pdrop=0.1, length=12)) == {"h"}


class Block(nn.Module):
    """Causal attention of a few wide heads, between projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in self.into(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2)).float().square().mean()


@pytest.mark.parametrize(("heads", "choice"), [(2, "ring"), (16, "h")])
def test_a_free_plan_finds_rings_for_long_sequences_of_few_heads(heads: int, choice: str) -> None:
    """One sequence of 131,072 tokens on 8 x H100: two heads keep two devices busy, a ring all.

    With as many heads as devices all-to-alls move fewer bytes than a ring, and heads win.
    """
    with torch.device("meta"):
        model = Block(256, heads).to(torch.bfloat16)
        x = torch.randn(1, 1 << 17, 256, dtype=torch.bfloat16)
    plan = autoplan.plan(model, (x,), devices=8, cluster="h100", parallel={"mesh": {"x": 8}})
    assert attention_choices(plan) == {choice}
    if choice == "ring":
        kinds = {row.kind for row in plan.collectives if row.path == ""}
        assert {"send", "all_to_all"} <= kinds
