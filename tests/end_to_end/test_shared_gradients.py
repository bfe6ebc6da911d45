"""Parameters whose gradients are one tensor in autograd: each has its own memory on real ranks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoplan
from tests.runtime.launch import run_ranks


class Sum(nn.Module):
    """Two parameters that an addition gives one gradient, and one that it is multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abc":
            setattr(self, name, nn.Parameter(torch.randn(6, 8, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = (self.a + self.b) * self.c
        return ((x @ weight.t()) ** 2).mean()


def clipped(rank: int, way: str) -> dict[str, float]:
    """Two steps that accumulate, then a clip: largest differences of gradients."""
    torch.manual_seed(0)
    model = Sum()
    original, x = copy.deepcopy(model), torch.randn(8, 8, dtype=torch.float64)
    module = autoplan.parallelize(model, (x,), devices=2, cluster="cpu", hints={"*": "B"})
    for _ in range(2):
        if way == "train_step":
            module.train_step((x,))
        else:
            module(x).backward()
        original(x).backward()
    for each in (module, original):
        torch.nn.utils.clip_grad_norm_(each.parameters(), 1e-3)
    return {
        name: float((_whole(parameter.grad) - original.get_parameter(name).grad).abs().max())
        for name, parameter in module.named_parameters()
    }


def _whole(grad: Any) -> Tensor:
    whole: Tensor = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return whole


@pytest.mark.parametrize("way", ["train_step", "backward"])
def test_two_parameters_never_share_the_memory_of_a_gradient(way: str) -> None:
    for differences in run_ranks(clipped, 2, way):
        assert max(differences.values()) < 1e-12, differences


class Unused(nn.Module):
    """A layer that nothing uses, beside a tied weight, one used three times, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for _ in range(3):
            x = x + self.linear(self.norm(x) * self.scale).tanh()
        return self.head(x + self.frozen(x)).square().mean()


def unreached(rank: int) -> list[str]:
    """Unused parameters that have a gradient after a step."""
    torch.manual_seed(0)
    ids = torch.randint(0, 13, (4, 6))
    module = autoplan.parallelize(Unused(), (ids,), devices=2, cluster="cpu", preset="fsdp")
    module.train_step((ids,))
    return [
        name
        for name, parameter in module.named_parameters()
        if "unused" in name and parameter.grad is not None
    ]


def test_what_no_gradient_reaches_has_none() -> None:
    assert run_ranks(unreached, 2) == [[], []]
