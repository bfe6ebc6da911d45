"""What the ranks of row 33 run: training steps whose gradients a handler reduces."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

import autoplan
from tests.capabilities.pipeline_ranks import batch, blocks, gradients_of, piped
from tests.models import Mlp, ideal_cluster, vector_batch

MODES: dict[str, dict[str, Any]] = {
    "data": {"data": 4},
    "data and tensor": {"data": 2, "tensor": {"size": 2, "mode": "1d"}},
    "pipeline and data": {"pipeline": 2, "data": 2},
}
MICROBATCHES = 2
STORED = {"data": "ddp", "data and tensor": "fsdp", "pipeline and data": "ddp"}


@dataclass
class Handled:
    """What a handler was called with, and how far gradients are from where they should be.

    calls: by path, on the ranks that are present here. here: ranks that are present of those that
    hold a parameter.
    """

    calls: Counter[str] = field(default_factory=Counter)
    paths: frozenset[str] = frozenset()
    here: int = 1
    errors: dict[str, float] = field(default_factory=dict)
    calls_after: int = 0


def handle(mode: str) -> Handled:
    """Steps of one module: without a handler, with the default's own, with another, without."""
    torch.manual_seed(0)
    module = piped(
        blocks(2), {"size": MODES[mode].get("pipeline", 1)}, MICROBATCHES, beside=_beside(mode),
        devices=4, preset=STORED[mode],
    )  # fmt: skip
    seen = Handled(paths=frozenset(path for path, _ in module.named_parameters()))
    seen.here = len(next(iter(module._executors.values())).ranks)
    args, kwargs = batch()

    def step() -> dict[str, Tensor]:
        module.zero_grad()
        module.train_step(args, kwargs)
        return gradients_of(module)

    def default(path: str, gradient: Tensor, reduce: Any) -> Tensor:
        seen.calls[path] += 1
        return reduce(gradient)

    plain = step()
    handle = module.register_gradient_handler(default)
    seen.errors["the default"] = _distance(step(), plain, 1.0)
    handle.remove()
    other = module.register_gradient_handler(lambda path, g, reduce: reduce(3.0 * g) / 2)
    seen.errors["another"] = _distance(step(), plain, 1.5)
    other.remove()
    calls = seen.calls.total()
    seen.errors["removed"] = _distance(step(), plain, 1.0)
    seen.calls_after = seen.calls.total() - calls
    return seen


def _beside(mode: str) -> dict[str, Any]:
    return {axis: size for axis, size in MODES[mode].items() if axis != "pipeline"}


def _distance(found: dict[str, Tensor], plain: dict[str, Tensor], times: float) -> float:
    """The largest relative error of gradients that should be `times` the plain ones."""
    assert found.keys() == plain.keys()
    scale = max(float(each.abs().max()) for each in plain.values())
    return max(float((found[p] - times * plain[p]).abs().max()) for p in plain) / scale


def addends() -> dict[str, list[Tensor]]:
    """Data parallelism on 4 ranks: by path, what the handlers here got, then the gradient whole."""
    torch.manual_seed(0)
    args, kwargs = vector_batch(8)
    module = autoplan.parallelize(
        Mlp(), args, kwargs, devices=4, cluster=ideal_cluster(4), preset="ddp"
    )
    found: dict[str, list[Tensor]] = {}

    def keep(path: str, gradient: Tensor, reduce: Any) -> Tensor:
        found.setdefault(path, []).append(gradient.clone())
        return reduce(gradient)

    module.register_gradient_handler(keep)
    module(*args, **kwargs).backward()
    for path, parameter in module.named_parameters():
        grad = parameter.grad
        assert grad is not None
        found[path].append(grad.full_tensor() if isinstance(grad, DTensor) else grad.clone())
    return found


def modes_on_four(rank: int) -> tuple[dict[str, Handled], dict[str, list[Tensor]]]:
    """Everything above on one rank of four."""
    torch.set_num_threads(1)
    return {mode: handle(mode) for mode in MODES}, addends()
