"""Checkpoints of pipelines on real ranks: what every rank of `test_pipeline_state` runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

import autoplan
from tests.capabilities.pipeline_ranks import TOKENS, WIDTH, Block, batch
from tests.models import ideal_cluster

BY_PARAMETER = StateDictOptions(flatten_optimizer_state_dict=True)
"""The optimizer's list of parameters is another on every rank of a pipeline."""
BEFORE = 2

PLANS: dict[str, dict[str, Any]] = {
    "4 stages": {"parallel": {"pipeline": 4}},
    "2 stages": {"parallel": {"pipeline": 2, "data": 2}},
    "2 x 2 stages": {
        "parallel": {
            "pipeline": {"size": 2, "schedule": "interleaved-1f1b", "chunks": 2},
            "tensor": {"size": 2, "mode": "free"},
        }
    },
    "no pipeline": {"preset": "fsdp"},
}


class Tied(nn.Module):
    """Blocks with dropout whose head is the embedding, and two of which share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH) for _ in range(4))
        self.blocks[3].up.weight = self.blocks[1].up.weight  # type: ignore[union-attr]
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = self.dropout(block(x))
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def start(name: str, seed: int = 0, device: str = "cpu") -> tuple[Any, torch.optim.AdamW]:
    """A module under one of the plans, and its optimizer; `seed`: of weights and masks."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = Tied().double()
    module = autoplan.parallelize(
        model, *batch(), devices=4, microbatches=4, seed=seed, cluster=ideal_cluster(4),
        **PLANS[name],
    )  # fmt: skip
    return module, torch.optim.AdamW(module.parameters(), lr=1e-3, eps=1e-6)


def step(module: Any, optimizer: torch.optim.Optimizer) -> float:
    loss = float(module.train_step(*batch()).loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def optimizer_state(module: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Whole, of the parameters that are here."""
    paths = {id(parameter): path for path, parameter in module.named_parameters()}
    return {
        f"{paths[id(parameter)]}.{name}": whole(value).clone()
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
    }


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def save(folder: str) -> None:
    """Train 4 stages, save by shards, and what the truth is; then one step more."""
    module, optimizer = start("4 stages")
    for _ in range(BEFORE):
        step(module, optimizer)
    weights, state = get_state_dict(module, optimizer, options=BY_PARAMETER)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    here = optimizer_state(module, optimizer)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, here)
    before = module.full_state_dict()
    loss = step(module, optimizer)
    truth = {
        "weights": before,
        "optimizer": {path: value for each in everywhere for path, value in each.items()},
        "loss": loss,
        "after": module.full_state_dict(),
    }
    if dist.get_rank() == 0:
        torch.save(truth, Path(folder) / "truth.pt")
    dist.barrier()


@dataclass(frozen=True)
class Resumed:
    """What differs from who saved, by path, and how far the next step is off."""

    weights: list[str]
    optimizer: list[str]
    states: int
    rate: float
    loss_error: float
    after_error: float


def resume(name: str, folder: str, device: str = "cpu") -> Resumed:
    """Another module of other weights, masks and stages, from the checkpoint."""
    truth = torch.load(Path(folder) / "truth.pt")
    module, optimizer = start(name, 7, device)
    optimizer.param_groups[0]["lr"] = 0.5
    weights, state = get_state_dict(module, optimizer, options=BY_PARAMETER)
    both = {"model": weights, "optimizer": state}
    checkpoint.load(both, checkpoint_id=folder)
    set_state_dict(
        module,
        optimizer,
        model_state_dict=both["model"],
        optim_state_dict=both["optimizer"],
        options=BY_PARAMETER,
    )
    loaded, found = module.full_state_dict(), optimizer_state(module, optimizer)
    rate = optimizer.param_groups[0]["lr"]
    loss, after = step(module, optimizer), module.full_state_dict()
    return Resumed(
        [path for path, value in truth["weights"].items() if not torch.equal(loaded[path], value)],
        [path for path, value in found.items() if not torch.equal(truth["optimizer"][path], value)],
        len(found),
        rate,
        abs(loss - truth["loss"]) / truth["loss"],
        max(float((after[path] - value).abs().max()) for path, value in truth["after"].items()),
    )


def given_by_one(giver: int) -> bool:
    """A model without values takes whole weights that one rank has."""
    torch.manual_seed(giver)
    state = Tied().double().state_dict()
    module, _ = start("4 stages", 7, "meta")
    mine = not dist.is_initialized() or dist.get_rank() == giver
    module.load_full_state_dict(state if mine else None)
    loaded = module.full_state_dict()
    return all(torch.equal(loaded[path], value) for path, value in state.items())


def everything(rank: int, folder: str) -> dict[str, Any]:
    """Saved by 4 stages; resumed under each plan, once from the meta device."""
    save(folder)
    found: dict[str, Any] = {
        name: resume(name, folder, "meta" if name == "2 x 2 stages" else "cpu") for name in PLANS
    }
    found["given"] = [given_by_one(giver) for giver in (0, 3)]
    return found
