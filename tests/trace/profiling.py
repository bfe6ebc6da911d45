"""What ranks run to be profiled: a step with and without a profile, of equal modules."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import autoplan
from autoplan.trace.measured import Profile
from tests.models import ideal_cluster
from tests.planner.models import Residual

MEGATRON = {"layers.*.up.weight": "S(0)", "layers.*.down.weight": "S(1)"}
CASES: dict[str, dict[str, Any]] = {
    "megatron": {"parallel": {"mesh": {"x": 2}}, "hints": MEGATRON, "microbatches": 2},
    "zero3": {"preset": "zero3", "microbatches": 2, "recompute": ["layers.1"]},
    "pipeline": {"parallel": {"pipeline": 2}, "microbatches": 4},
}


@dataclass(frozen=True)
class Steps:
    """Losses and gradients of both steps on one rank, the profile, and what is left installed."""

    losses: tuple[Tensor, Tensor]
    gradients: tuple[dict[str, Tensor], dict[str, Tensor]]
    profile: Profile
    left: list[str]


class Dropping(nn.Module):
    """Blocks with dropout between: random numbers follow the position of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Residual(2, 8).layers
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.drop(layer(x))
        return x.square().mean()


def both_steps(case: str, folder: str | None = None) -> Steps:
    """A plain step and a profiled one, from the same weights; on rank 0 saves the trace."""
    torch.manual_seed(0)
    model = Dropping().double()
    x = torch.randn(8, 8, dtype=torch.float64)
    losses, gradients, left = [], [], []
    for profile in (False, True):
        module = autoplan.parallelize(
            copy.deepcopy(model), (x,), devices=2, cluster=ideal_cluster(2), **CASES[case]
        )
        result = module.train_step((x,), profile=profile)
        losses.append(result.loss)
        gradients.append({path: _local(p.grad) for path, p in module.named_parameters()})
        assert (result.profile is None) == (not profile)
        for executor in module._executors.values():
            left += [type(executor).__name__] * (type(executor).__module__ != _EXECUTORS)
            held = [*executor.comms, getattr(executor, "simulator", None)]
            own = [vars(each).items() for each in held if each is not None]
            left += [name for pairs in own for name, value in pairs if callable(value)]
    found = result.profile
    assert found is not None
    if folder is not None:
        found.save_trace(Path(folder) / "trace.json")
    return Steps(tuple(losses), tuple(gradients), found, left)


_EXECUTORS = "autoplan.runtime.executor"


def _local(gradient: Any) -> Tensor:
    found: Tensor = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return found


def on_rank(rank: int, folder: str) -> dict[str, Steps]:
    """Every case on a real rank; the trace of each is written by rank 0."""
    found = {}
    for case in CASES:
        place = Path(folder) / case
        if rank == 0:
            place.mkdir()
        found[case] = both_steps(case, str(place) if rank == 0 else None)
    return found
