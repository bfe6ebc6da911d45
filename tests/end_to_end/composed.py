"""Uses of a pipeline beside one device: what every rank of `test_pipeline_uses` runs."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan
from autoplan.runtime.reference import run_reference
from tests.capabilities.pipeline_ranks import Blocks, batch, blocks, gradients_of
from tests.end_to_end.pipeline_state import Tied
from tests.models import Example, ideal_cluster

FOUR: dict[str, Any] = {"parallel": {"pipeline": 4}, "microbatches": 4}
OWN: dict[str, Any] = {
    "parallel": {
        "pipeline": {"size": 2, "stages": [{"data": 2}, {"tensor": {"size": 2, "mode": "free"}}]}
    },
    "microbatches": 4,
}

Errors = dict[str, float]
"""Relative differences, by what they are of."""


def piped(model: nn.Module, example: Example, **options: Any) -> autoplan.ParallelModule:
    args, kwargs = example
    given = {"cluster": ideal_cluster(4), **FOUR, **options}
    return autoplan.parallelize(copy.deepcopy(model), args, kwargs, devices=4, **given)


def error(value: Tensor, truth: Tensor, floor: float = 1e-30) -> float:
    difference = float((value.detach().double() - truth.detach().double()).abs().max())
    return difference / max(float(truth.detach().abs().max()), floor)


def gradient_errors(module: nn.Module, model: nn.Module) -> Errors:
    """Of what is here; one that only either has is infinitely wrong."""
    truth = {path: p.grad for path, p in model.named_parameters() if p.grad is not None}
    floor = 1e-3 * max(float(grad.abs().max()) for grad in truth.values())
    found = gradients_of(module)
    here = {path for path, _ in module.named_parameters()}
    errors = {p: float("inf") for p in found.keys() ^ (truth.keys() & here)}
    return errors | {p: error(g, truth[p], floor) for p, g in found.items() if p in truth}


def frozen(names: tuple[str, ...]) -> Errors:
    """Parameters that are not trained: at the start, in the middle, at the end, a whole stage's."""
    model = blocks()
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(not path.startswith(names))
    args, _ = batch()
    module = piped(model, batch())
    truth = model(*args)["loss"]
    truth.backward()
    found = {"step": error(module.train_step(args).loss, truth)}
    found |= gradient_errors(module, model)
    module.zero_grad()
    module(*args)["loss"].backward()
    return found | {f"call: {p}": e for p, e in gradient_errors(module, model).items()}


class Outside(nn.Module):
    """Outputs without a loss, of several stages; a parameter, a layer and a buffer unread."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Blocks()
        self.unread = nn.Linear(3, 3)
        self.free = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(1))

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        logits = self.inner(ids, labels)["logits"]
        early = self.inner.blocks[0](self.inner.embed(ids))
        return logits, {"early": early, "sum": ids + labels, "number": 3}


def outside() -> Errors:
    """The loss is the user's own; of one stage alone; of two calls before one backward."""
    torch.manual_seed(0)
    model, (args, _) = Outside().double(), batch()
    module = piped(model, batch())
    found: Errors = {}

    def whole(each: nn.Module) -> Tensor:
        logits, more = each(*args)
        loss = F.cross_entropy(logits.flatten(0, 1), args[1].flatten())
        return loss + more["early"].square().mean() + (more["sum"] * more["number"]).sum()

    def first_stage(each: nn.Module) -> Tensor:
        result: Tensor = each(*args)[1]["early"].square().sum()
        return result

    def twice(each: nn.Module) -> Tensor:
        result: Tensor = each(*args)[0].square().sum() + 2 * each(*args)[1]["early"].sum()
        return result

    for name, objective in (("whole", whole), ("first stage", first_stage), ("twice", twice)):
        loss, truth = objective(module), objective(model)
        loss.backward()
        truth.backward()
        found[name] = error(loss, truth)
        errors = gradient_errors_where_there_are(module, model)
        found |= {f"{name}: {path}": each for path, each in errors.items()}
        module.zero_grad()
        model.zero_grad()
    return found


class Twice(nn.Module):
    """The first block is read again beside the head, for the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Blocks()

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.inner(ids, labels)["loss"]
        return loss + self.inner.blocks[0](self.inner.embed(ids)).square().mean()


def another_form() -> Errors:
    """Twice as many rows, for which other stages may read a parameter than those that hold it."""
    torch.manual_seed(0)
    model = Twice().double()
    module = piped(model, batch())
    found: Errors = {}
    for rows in (8, 16):
        args, _ = batch(rows)
        truth = model(*args)
        truth.backward()
        found[f"step {rows}"] = error(module.train_step(args).loss, truth)
        found |= {f"{rows}: {path}": e for path, e in gradient_errors(module, model).items()}
        module.zero_grad()
        found[f"call {rows}"] = error(module(*args), truth)
        module(*args).backward()
        found |= {f"call {rows}: {p}": e for p, e in gradient_errors(module, model).items()}
        found[f"verify {rows}"] = 0.0 if module.verify(args, steps=2).ok else 1.0
        module.zero_grad()
        model.zero_grad()
    return found


def gradient_errors_where_there_are(module: nn.Module, model: nn.Module) -> Errors:
    """As `gradient_errors`, but a gradient of zeros may stand for none."""
    for path, parameter in module.named_parameters():
        grad = parameter.grad
        if model.get_parameter(path).grad is None and grad is not None and not grad.any():
            parameter.grad = None
    return gradient_errors(module, model)


def tied(options: dict[str, Any]) -> Errors:
    """Weights that several stages read, clipped over all stages, by two norms."""
    torch.manual_seed(0)
    model, (args, _) = Tied().double(), batch()
    module = piped(model, batch(), **options)
    both = [torch.optim.AdamW(e.parameters(), lr=1e-2, eps=1e-6) for e in (module, model)]
    found: Errors = {}
    for step, norm_type in enumerate((2.0, float("inf"), 1.0)):
        truth = torch.zeros(())
        first = module._steps
        loss = module.train_step(args).loss
        for number, rows in enumerate(torch.arange(8).chunk(4)):
            part = run_reference(model, tuple(a[rows] for a in args), {}, 0, first + number) / 4
            part.backward()
            truth = truth + part.detach()
        found[f"loss {step}"] = error(loss, truth)
        found |= {f"{step}: {p}": e for p, e in gradient_errors(module, model).items()}
        norm = module.clip_grad_norm_(0.05, norm_type)
        true = nn.utils.clip_grad_norm_(model.parameters(), 0.05, norm_type)
        found[f"norm {step}"] = error(norm, true)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
    state = module.full_state_dict()
    assert state["head.weight"] is state["embed.weight"]
    return found | {path: error(state[path], value) for path, value in model.state_dict().items()}


def modes() -> Errors:
    """eval, no_grad and inference_mode; other batch sizes, other numbers of microbatches."""
    torch.manual_seed(0)
    model = Tied().double()
    module = piped(model, batch())
    found: Errors = {}
    for rows in (8, 3):
        args, _ = batch(rows)
        module.eval()
        model.eval()
        with torch.no_grad():
            value = module(*args)
            assert not value.requires_grad
            found[f"eval {rows}"] = error(value, model(*args))
        with torch.inference_mode():
            found[f"inference {rows}"] = error(module(*args), model(*args))
        module.train()
        model.train()
        first = module._steps
        with torch.no_grad():
            value = module(*args)
            found[f"train {rows}"] = error(value, run_reference(model, args, {}, 0, first))
    for rows, microbatches in ((16, 4), (16, 8)):
        args, _ = batch(rows)
        first = module._steps
        module.train_step(args, microbatches=microbatches)
        for number, part in enumerate(torch.arange(rows).chunk(microbatches)):
            loss = run_reference(model, tuple(a[part] for a in args), {}, 0, first + number)
            (loss / microbatches).backward()
        errors = gradient_errors(module, model)
        found |= {f"{rows} / {microbatches}: {path}": each for path, each in errors.items()}
        module.zero_grad()
        model.zero_grad()
    return found


class Normalized(nn.Module):
    """Layers whose batch norms keep running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh())
            for _ in range(4)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return F.mse_loss(x, y)


def statistics(options: dict[str, Any]) -> Errors:
    """Running statistics of every microbatch in order, of a call, and read in eval mode."""
    torch.manual_seed(0)
    model = Normalized().double()
    x, y = torch.randn(2, 32, 6, dtype=torch.float64)
    module = piped(model, ((x, y), {}), **options)
    module.train_step((x, y))
    for rows in torch.arange(32).chunk(4):
        (model(x[rows], y[rows]) / 4).backward()
    found = gradient_errors(module, model)
    module(x, y)
    model(x, y)
    state = module.full_state_dict()
    found |= {path: error(state[path], value) for path, value in model.state_dict().items()}
    module.eval()
    model.eval()
    return found | {"eval": error(module(x, y), model(x, y))}


def argument() -> Errors:
    """The gradient of an argument, which the first stage reads, and the last one again."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for layer in self.layers:
                y = torch.tanh(layer(y))
            return y * x

    torch.manual_seed(0)
    model = Around().double()
    given, mine = (torch.randn(8, 6, dtype=torch.float64) for _ in range(2))
    mine.copy_(given).requires_grad_()
    given.requires_grad_()
    module = piped(model, ((given,), {}), microbatches=1)
    module(given).square().sum().backward()
    model(mine).square().sum().backward()
    assert given.grad is not None
    assert mine.grad is not None
    return {"argument": error(given.grad, mine.grad), **gradient_errors(module, model)}


USES: dict[str, Any] = {
    "frozen start": lambda: frozen(("embed", "position")),
    "frozen middle": lambda: frozen(("blocks.1", "blocks.2.up")),
    "frozen stages": lambda: frozen(("embed", "position", "blocks.0", "blocks.1")),
    "frozen end": lambda: frozen(("head", "blocks.3")),
    "outside": outside,
    "another form": another_form,
    "tied": lambda: tied({}),
    "tied on other meshes": lambda: tied(OWN),
    "modes": modes,
    "statistics": lambda: statistics({}),
    "statistics with data": lambda: statistics({"parallel": {"pipeline": 2, "data": 2}}),
    "argument": argument,
}


def everything(rank: int) -> dict[str, Errors]:
    return {name: use() for name, use in USES.items()}
