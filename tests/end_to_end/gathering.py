"""Gather policies on real ranks: what every rank of `test_gathering` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import autoplan
from tests.end_to_end.training import (
    Case,
    Outcome,
    batch_of,
    build,
    errors,
    make_optimizer,
    one_device,
    train,
)

ZERO = ("zero1", "zero2", "zero3")
HSDP = {"parallel": {"data": {"size": 4, "mode": "hsdp", "shard": 2, "zero": 3}}}
MIXED = {"parallel": {"data": {"size": 2, "zero": 3}, "tensor": {"size": 2, "mode": "1d"}}}


def cases() -> list[Case]:
    """Every policy with and without microbatches, and zero3 with all that it has to live with."""
    zero3, dropout = {"preset": "zero3"}, {"dropout": 0.1}
    again = {"preset": "zero3", "recompute": "all"}
    return [
        *(Case("gpt2", {"preset": name}, dropout, name=name) for name in ZERO),
        *(Case("gpt2", {"preset": n}, microbatches=2, name=f"{n} in 2") for n in ZERO),
        Case("llama", zero3, microbatches=2, name="zero3 in 2"),
        Case("gpt2", again, dropout, name="zero3 recomputed"),
        Case("gpt2", again, microbatches=2, name="zero3 recomputed in 2"),
        Case("gpt2", HSDP, dropout, name="hsdp"),
        Case("gpt2", HSDP, microbatches=2, name="hsdp in 2"),
        Case("llama", MIXED, microbatches=2, name="zero3 x tensor in 2"),
        Case("gpt2", zero3, optimizer="clipped", name="zero3 clipped"),
        Case("free", zero3, name="zero3 frozen"),
        Case("gpt2", zero3, local_inputs=True, name="zero3 local inputs"),
    ]


def everything(rank: int, ranks: int, folder: str) -> dict[str, Any]:
    """Outcomes by case, and how far a training goes that was saved in between."""
    outcomes: dict[str, Any] = {str(case): train(rank, ranks, case) for case in cases()}
    return outcomes | {"resumed": resumed(ranks, folder)}


def resumed(ranks: int, folder: str) -> dict[str, float]:
    """Weights after two steps under zero3 and a third under zero2, loaded from a checkpoint."""
    first, second = (Case("gpt2", {"preset": name}) for name in ("zero3", "zero2"))
    for number, (case, steps) in enumerate(((first, 2), (second, 1))):
        args, kwargs = batch_of(case)
        module = autoplan.parallelize(
            build(case, number), args, kwargs, devices=ranks, **case.options
        )
        optimizer = make_optimizer("adamw", module.parameters())
        if number:
            model, state = get_state_dict(module, optimizer)
            held = {"model": model, "optimizer": state}
            checkpoint.load(held, checkpoint_id=str(Path(folder) / "zero3"))
            set_state_dict(
                module,
                optimizer,
                model_state_dict=held["model"],
                optim_state_dict=held["optimizer"],
            )
        for _ in range(steps):
            module.train_step(args, kwargs)
            optimizer.step()
            optimizer.zero_grad()
        if not number:
            model, state = get_state_dict(module, optimizer)
            held = {"model": model, "optimizer": state}
            checkpoint.save(held, checkpoint_id=str(Path(folder) / "zero3"))
    truth = one_device("gpt2", (), 8, "adamw")
    return errors(module.full_state_dict(), truth.weights)


PIPELINES: dict[str, dict[str, Any]] = {
    name: {
        "parallel": {
            "pipeline": {"size": 2, "schedule": name},
            "data": {"size": 2, "zero": 3},
        },
        "microbatches": 4,
    }
    for name in ("1f1b", "gpipe", "zero-bubble")
}


def pipelined(rank: int, ranks: int, names: Sequence[str]) -> dict[str, Outcome]:
    """zero3 inside the stages of pipelines, tied embeddings at both ends."""
    found = {}
    for name in names:
        options = dict(PIPELINES[name])
        count = options.pop("microbatches")
        found[name] = train(rank, ranks, Case("gpt2", options, microbatches=count, name=name))
    return found
