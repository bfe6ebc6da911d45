"""Pipelines under other forms of arguments, and what ranks must share: run by every rank."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan

ONE = {"pipeline": {"size": 2, "schedule": "1f1b"}, "data": 1}


class Stack(nn.Module):
    """Residual blocks and a head."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.h = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6)) for _ in range(blocks)
        )
        self.head = nn.Linear(6, 3)
        self.double()

    def body(self, x: Tensor) -> Tensor:
        for block in self.h:
            x = x + block(x)
        return x


class Skip(Stack):
    """The argument is read by the first stage and by the last."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.body(x) + x * x), y)


class Beside(Stack):
    """The last blocks feed an output that the loss does not depend on."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        early = self.h[0](x)
        loss = F.cross_entropy(self.head(early), y)
        for block in self.h:
            early = early + block(early)
        return {"loss": loss, "features": early}


class Auxiliary(Stack):
    """A scalar comes before the one that is called the loss."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        out = self.body(x)
        return {"aux": out.square().mean(), "loss": F.cross_entropy(self.head(out), y)}


class Tasks(Stack):
    """Another head for another task."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 3).double()

    def forward(self, x: Tensor, y: Tensor, task: int = 0) -> Tensor:
        head = self.other if task else self.head
        return F.cross_entropy(head(self.body(x)), y)


class Running(Stack):
    """A mean that every block reads, and that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(6, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.h:
            x = x + block(x) * self.mean
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return F.cross_entropy(self.head(x), y)


class TwiceBody(nn.Module):
    """One module, called four times between two others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(4):
            x = x + self.shared(torch.tanh(x))
        return F.cross_entropy(self.head(x), y)


def batch(rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return x, torch.arange(rows) % 3


def planned(model: nn.Module, parallel: Any = ONE, **options: Any) -> Any:
    options = {"devices": 2, "microbatches": 2, **options}
    return autoplan.parallelize(model, batch(), parallel=parallel, **options)


def argument_gradient() -> dict[str, float]:
    """Of an argument that two stages read, in a training step."""
    model, (x, y) = Skip(), batch()
    mine, true = x.clone().requires_grad_(), x.clone().requires_grad_()
    planned(model).train_step((mine, y))
    for part in (slice(0, 4), slice(4, 8)):
        (model(true[part], y[part]) / 2).backward()
    assert mine.grad is not None
    return {"x": float((mine.grad - true.grad).abs().max())}


def gradients_that_are_none() -> dict[str, float]:
    """Blocks that the loss does not reach keep no gradient, and AdamW leaves them."""
    model = Beside()
    module = planned(model)
    module.train_step(batch())
    reached = {"h.0.0", "h.0.2", "head"}
    return {
        path: 0.0 if (p.grad is not None) == (path.rpartition(".")[0] in reached) else 1.0
        for path, p in module.named_parameters()
    }


def named_loss() -> dict[str, float]:
    """The output called loss is trained on."""
    model, (x, y) = Auxiliary(), batch()
    found = planned(model).train_step((x, y)).loss
    parts = (slice(0, 4), slice(4, 8))
    true = sum(float(model(x[p], y[p])["loss"].detach()) for p in parts) / 2
    return {"loss": abs(float(found) - true)}


def clipped_copies() -> dict[str, float]:
    """The clipped gradients are the plain model's, whatever the default type."""
    model, (x, y) = Skip(), batch()
    module, plain = planned(copy.deepcopy(model)), model
    module.train_step((x, y))
    norm = module.clip_grad_norm_(0.01)
    for part in (slice(0, 4), slice(4, 8)):
        (plain(x[part], y[part]) / 2).backward()
    true = nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
    grads = dict(plain.named_parameters())
    errors = {"norm": abs(float(norm - true))}
    for path, p in module.named_parameters():
        errors[path] = float((p.grad.full_tensor() - grads[path].grad).abs().max())
    return errors


def other_forms() -> dict[str, float]:
    """Another batch, eval mode, and a module that is called several times."""
    errors = {}
    for name, model in {"skip": Skip(), "twice": TwiceBody()}.items():
        chunks = {"pipeline": {"size": 2, "schedule": "interleaved"}, "data": 1}
        module = planned(copy.deepcopy(model), chunks)
        module.train_step(batch())
        x, y = batch(12)
        errors[name] = abs(float(module.train_step((x, y)).loss) - _mean(model, x, y))
        module.eval()
        errors[f"{name} eval"] = abs(float(module(x, y)) - float(model(x, y)))
    return errors


def _mean(model: nn.Module, x: Tensor, y: Tensor) -> float:
    half = len(x) // 2
    parts = (slice(0, half), slice(half, None))
    return sum(float(model(x[p], y[p]).detach()) for p in parts) / 2


def refused() -> list[str]:
    """What later forms cannot have, by every rank."""
    x, y = batch()
    texts = []
    module = planned(Tasks())
    for call in (lambda: module(x, y, task=1), lambda: _in_train_mode(x, y)):
        try:
            call()
        except autoplan.AutoplanError as error:
            texts.append(str(error))
    return texts


def _in_train_mode(x: Tensor, y: Tensor) -> None:
    module = planned(Running().eval())
    module.train()
    module.train_step((x, y))


def everything(rank: int) -> dict[str, Any]:
    """All checks on this rank."""
    torch.set_num_threads(1)
    checks = (
        argument_gradient,
        gradients_that_are_none,
        named_loss,
        clipped_copies,
        other_forms,
    )
    return {**{check.__name__: check() for check in checks}, "refused": refused()}
