"""Models on grids of ranks, and what a rank sees while it runs one; every rank imports this."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode  # documented by its use in torch

import autoplan
from tests.end_to_end.training import error
from tests.models import Example, Mlp, ideal_cluster


class Attention(nn.Module):
    """A causal attention block with a residual stream; the mean square of what it gives."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, dtype=torch.float64)
        self.queries, self.keys, self.values, self.out = (
            # Whatever a bias adds to all keys leaves the softmax as it is: its gradient is noise.
            nn.Linear(width, width, bias=number == 3, dtype=torch.float64)
            for number in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        q, k, v = (
            layer(normal).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return (x + self.out(found.transpose(1, 2).flatten(2))).square().mean()


class Squared(nn.Module):
    """One linear layer; the mean square of what it gives."""

    def __init__(self, width: int = 8, columns: int = 16, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(width, columns, bias, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).square().mean()


class Chain(nn.Module):
    """Looked-up rows through square products as large as they are."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.table = nn.Embedding(64, width)
        self.fc = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.fc:
            x = layer(x)
        return x.square().mean()


def sequences(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


MODELS: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "linear": (Squared, (sequences(4, 4, 8),)),
    "mlp": (lambda: Mlp(8, 16), (sequences(4, 4, 8), sequences(4, 4, 8, seed=1))),
    "attention": (Attention, (sequences(4, 8, 16),)),
    # Nothing divides evenly.
    "uneven linear": (lambda: Squared(7, 5), (sequences(5, 3, 7),)),
    "uneven mlp": (lambda: Mlp(11, 18), (sequences(7, 11), sequences(7, 11, seed=1))),
}

GRIDS: dict[str, int] = {"1d": 4, "2d": 4, "2.5d": 8, "3d": 8}
"""Modes of tensor parallelism, and the ranks that they are tested on."""


def model_of(name: str) -> tuple[nn.Module, Example]:
    build, args = MODELS[name]
    torch.manual_seed(0)
    model: nn.Module = build()
    return model, (args, {})


def parallel_on(mode: str, size: int) -> dict[str, Any]:
    return {"tensor": {"size": size, "mode": mode}}


def on_grid(name: str, mode: str, size: int, **options: Any) -> autoplan.ParallelModule:
    model, example = model_of(name)
    parallel = parallel_on(mode, size)
    return autoplan.parallelize(model, *example, devices=size, parallel=parallel, **options)


def verified(name: str, mode: str, size: int) -> str:
    """What verify says of forward, gradients and three steps of AdamW."""
    module, (_, example) = on_grid(name, mode, size), model_of(name)
    return str(module.verify(*example, steps=3))


def trained(name: str, mode: str, size: int, steps: int = 3) -> dict[str, float]:
    """The worst relative errors of a model trained on a grid beside one device, by hand."""
    model, (args, _) = model_of(name)
    truth, module = copy.deepcopy(model), on_grid(name, mode, size)
    worst = {"loss": 0.0, "gradient": 0.0, "weight": 0.0}
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (truth, module)]
    for _ in range(steps):
        losses = [each(*args) for each in (truth, module)]
        for loss in losses:
            loss.backward()
        worst["loss"] = max(worst["loss"], error(losses[1], losses[0]))
        worst["gradient"] = max(worst["gradient"], *_errors(module, truth, gradients=True))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        worst["weight"] = max(worst["weight"], *_errors(module, truth, gradients=False))
    return worst


def _errors(module: nn.Module, truth: nn.Module, gradients: bool) -> list[float]:
    expected = dict(truth.named_parameters())
    found = []
    for path, parameter in module.named_parameters():
        value = parameter.grad if gradients else parameter
        value = value.full_tensor() if isinstance(value, DTensor) else value
        assert value is not None
        other = expected[path].grad if gradients else expected[path]
        found.append(error(value.detach(), other))
    return found


class Sizes(TorchDispatchMode):
    """Bytes of the largest storage that an op returns, but for those given."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.largest = 0
        self.given = {each.untyped_storage()._cdata for each in given}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor) and not isinstance(each, DTensor):
                held = each.untyped_storage()
                if held._cdata not in self.given:
                    self.largest = max(self.largest, held.nbytes())
        return result


# -- what ranks run -------------------------------------------------------------------------


def ranks_run(rank: int, mode: str, size: int) -> dict[str, Any]:
    """Training and checks of every model on real ranks."""
    found: dict[str, Any] = {name: trained(name, mode, size) for name in ("mlp", "attention")}
    found["verified"] = verified("linear", mode, size)
    if mode == "2d":
        found["largest"] = largest_tensor(size)
    return found


def largest_tensor(size: int) -> int:
    """Bytes of the largest tensor that an op makes in a training step of an MLP in 2D.

    What slices an argument, whole on every rank, is a view of it and not counted. On links so fast
    that the planner splits everything else too.
    """
    x, y = sequences(8, 4, 24), sequences(8, 4, 24, seed=1)
    model, parallel = Mlp(24, 40), parallel_on("2d", size)
    module = autoplan.parallelize(
        model, (x, y), devices=size, parallel=parallel, cluster=ideal_cluster(size)
    )
    optimizer = torch.optim.AdamW(module.parameters())
    with Sizes(x, y) as sizes:
        module(x, y).backward()
        optimizer.step()
    return sizes.largest
