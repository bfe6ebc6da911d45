"""Parameters changed between forward and backward: what every rank of the test runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import autoplan
from tests.models import Mlp, vector_batch

PRESETS = ("zero1", "zero2", "zero3")
OUTCOMES = {"zero1": "the old", "zero2": "the old", "zero3": "refused"}
"""zero3 gathers shards again; the others keep what they gathered."""


def backward_after_a_change(ranks: int, preset: str) -> str:
    """What backward makes of it: refused, the gradient at the old weights, or another."""
    gradients = []
    for change in (False, True):
        torch.manual_seed(0)
        args, kwargs = vector_batch(8, 12)
        module = autoplan.parallelize(
            Mlp(), args, kwargs, devices=ranks, cluster="cpu", preset=preset
        )
        loss = module(*args, **kwargs)
        if change:
            with torch.no_grad():
                for each in module.parameters():
                    each.mul_(2.0)
        try:
            loss.backward()
        except RuntimeError as error:
            if not change:
                raise
            return "refused" if "changed in place between forward and" in str(error) else str(error)
        gradients.append(_gradients(module))
    same = all(torch.equal(old, new) for old, new in zip(*gradients, strict=True))
    return "the old" if same else "another"


def _gradients(module: Any) -> list[torch.Tensor]:
    grads = (each.grad for each in module.parameters())
    return [each.full_tensor() if hasattr(each, "full_tensor") else each for each in grads]


def everywhere(rank: int, ranks: int, presets: Sequence[str]) -> dict[str, str]:
    """The outcome by preset."""
    return {each: backward_after_a_change(ranks, each) for each in presets}


class Turning(torch.nn.Module):
    """Two layers and a buffer for each of them that no state dict has, and one that none reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        for name in ("turn_first", "turn_second", "unread"):
            self.register_buffer(name, torch.randn(6), persistent=False)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x * self.turn_first).tanh()
        return self.second(x * self.turn_second).square().mean()


def verified(rank: int) -> tuple[bool, str]:
    """What verify says of two stages, of which each knows its own buffers alone."""
    torch.manual_seed(0)
    args = (torch.randn(4, 6, dtype=torch.float64),)
    module = autoplan.parallelize(
        Turning(), args, devices=2, cluster="cpu", microbatches=2, parallel={"pipeline": 2}
    )
    module.train_step(args)
    found = module.verify(args, steps=1)
    return found.ok, str(found)
