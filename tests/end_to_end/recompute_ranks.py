"""What every rank of `test_recompute` runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import autoplan
from autoplan.runtime.reference import run_reference
from tests.end_to_end.training import Case, Outcome, errors, gradients, train


class Normalised(nn.Module):
    """Blocks with batch norm and dropout, whose running statistics a call changes."""

    def __init__(self, layers: int = 3, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width, dtype=torch.float64),
                nn.BatchNorm1d(width, dtype=torch.float64),
                nn.Tanh(),
                nn.Dropout(0.2),
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x).square().mean()


def rows(number: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(number, 8, dtype=torch.float64, generator=generator)


def normalised() -> Normalised:
    torch.manual_seed(0)
    return Normalised()


def running_statistics(devices: int, options: dict[str, Any]) -> dict[str, float]:
    """Errors of losses, gradients, weights and buffers after three steps with batch norm."""
    x, truth = rows(), normalised()
    module = autoplan.parallelize(normalised(), (x,), devices=devices, **options)
    assert module.plan.recomputed == ("layers.0", "layers.1", "layers.2")
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (truth, module)]
    worst: dict[str, float] = {}

    def note(name: str, error: float) -> None:
        worst[name] = max(worst.get(name, 0.0), error)

    for step in range(3):
        loss = run_reference(truth, (x,), {}, 0, step)
        loss.backward()
        found = module.train_step((x,)).loss
        note("loss", abs(float(found - loss.detach())))
        note("gradient", max(errors(gradients(module), gradients(truth)).values()))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        note("state", max(errors(module.full_state_dict(), truth.state_dict()).values()))
    assert int(truth.state_dict()["layers.0.1.num_batches_tracked"]) == 3
    return worst


def two_calls_before_backward(devices: int) -> float:
    """Two forward passes, then the backward of both: each draws its own random numbers again."""
    x, truth = rows(), normalised()
    module = autoplan.parallelize(normalised(), (x,), devices=devices, recompute=True)
    sum(run_reference(truth, (x,), {}, 0, step) for step in range(2)).backward()
    (module(x) + module(x)).backward()
    return max(errors(gradients(module), gradients(truth)).values())


def everything(rank: int, cases: Sequence[Case]) -> dict[str, Any]:
    ranks = dist.get_world_size()
    found: dict[str, Any] = {str(case): train(rank, ranks, case) for case in cases}
    for preset in ("ddp", "fsdp"):
        found[f"statistics {preset}"] = running_statistics(
            ranks, {"preset": preset, "recompute": True}
        )
    found["two calls"] = two_calls_before_backward(ranks)
    found["verified"] = str(verified(ranks))
    return found


def verified(devices: int) -> autoplan.Check:
    x = rows()
    module = autoplan.parallelize(normalised(), (x,), devices=devices, recompute=True)
    return module.verify((x,), steps=2)


__all__ = ["Case", "Outcome"]
