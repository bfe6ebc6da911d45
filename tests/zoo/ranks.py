"""What the ranks of the zoo run: one step of every family, beside one device."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import autoplan
from autoplan.capture import without_key_value_cache
from autoplan.replay import objective
from autoplan.runtime.reference import run_reference
from tests.end_to_end.training import gradients
from tests.models import ideal_cluster
from tests.zoo.families import seeded


@dataclass(frozen=True)
class Outcome:
    """How far one family is from one device, on one rank.

    `objective_error`: of the loss, or of a weighted sum of all outputs; `failure`: a traceback.
    """

    objective_error: float = float("inf")
    gradient_errors: dict[str, float] = field(default_factory=dict)
    splits: bool = False
    failure: str = ""


def train_all(rank: int, names: tuple[str, ...]) -> dict[str, Outcome]:
    """Forward and backward of every family in float64; collective."""
    return {name: one_step(name, number) for number, name in enumerate(names)}


def _double(leaf: Any) -> Any:
    floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.double() if floating else leaf


def one_step(name: str, number: int) -> Outcome:
    """One family, on one axis or on two by turns."""
    ranks = dist.get_world_size()
    mesh = {"a": ranks} if number % 2 else {"a": 2, "b": ranks // 2}
    model, args, kwargs = seeded(name)
    model, (args, kwargs) = model.double(), pytree.tree_map(_double, (args, kwargs))
    truth, true_gradients = on_one_device(model, args, kwargs)
    model.zero_grad()
    try:
        module = autoplan.parallelize(
            model,
            args,
            kwargs,
            devices=ranks,
            parallel={"mesh": mesh},
            cluster=ideal_cluster(ranks),
            time_limit_s=20,
        )
        found = reduced(module(*args, **kwargs))
        if found.requires_grad:
            found.backward()
    except autoplan.AutoplanError:  # alike on all ranks
        return Outcome(failure=traceback.format_exc())
    scale = abs(float(truth.detach())) or 1.0
    return Outcome(
        float((found - truth).detach().abs()) / scale,
        relative_errors(gradients(module), true_gradients) if true_gradients else {},
        bool(module.plan.collectives),
    )


def relative_errors(values: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """By path; a gradient that is zero but for rounding (a key's bias) is measured by others."""
    assert values.keys() == truth.keys()
    largest = {path: float(each.abs().max()) for path, each in truth.items()}
    floor = 1e-6 * max(largest.values())
    return {
        path: float((values[path] - truth[path]).abs().max()) / max(largest[path], floor)
        for path in truth
    }


def on_one_device(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The original's loss and gradients, with the dropout of the first step."""
    with without_key_value_cache(model, True, []):
        truth = reduced(run_reference(model, args, kwargs, 0, 0))
    if truth.requires_grad:
        truth.backward()
    return truth, gradients(model)


def reduced(outputs: Any) -> Tensor:
    """The loss, or a weighted sum of all outputs."""
    leaves = pytree.tree_leaves(outputs)
    loss = getattr(outputs, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    scalars = [x for x in leaves if isinstance(x, Tensor) and x.ndim == 0]
    if len(scalars) == 1:
        return scalars[0]
    total = objective(leaves, None)
    assert total is not None
    return total
