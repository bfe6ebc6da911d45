"""Training on real ranks beside one device: what every rank of `test_training` runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

import autoplan
from autoplan.runtime.reference import run_reference
from tests.end_to_end.arbitrary import any_choice
from tests.end_to_end.known_captures import captured_once
from tests.models import MODELS, Example, ideal_cluster, loss_of

STEPS = 3
LEARNING_RATE = 1e-2

ROUND_TRIPS = ("fsdp", "megatron")

Traffic = dict[tuple[str, int, str], int]
"""(kind, bytes, axis) -> how many."""


@dataclass(frozen=True)
class Case:
    """A model, what `parallelize` is told, and how it is trained.

    `optimizer`: "adamw", "clipped" (AdamW after clip_grad_norm_) or "momentum". `drawn`: seed of a
    random plan instead of the best one. `config`: of the model.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    rows: int = 8
    optimizer: str = "adamw"
    local_inputs: bool = False
    microbatches: int = 1
    drawn: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.model} {self.name}".strip()


@dataclass(frozen=True)
class Run:
    """What training leaves: losses, the first gradients, the norms, and the weights."""

    losses: list[float]
    gradients: dict[str, Tensor]
    norms: list[float]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """One case on one rank: how far it is from one device, and what ran.

    `step_traffic`, `call_traffic`: predicted and seen, of a train_step, and of a call with its
    backward.
    """

    losses: list[float]
    loss_error: float
    gradient_errors: dict[str, float]
    norm_error: float
    weight_errors: dict[str, float]
    mesh: str
    layouts: dict[str, str]
    step_traffic: tuple[Traffic, Traffic]
    call_traffic: tuple[Traffic, Traffic]
    verified: str


def build(case: Case, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = MODELS[case.model][0](**case.config)
    return model


def batch_of(case: Case) -> Example:
    return MODELS[case.model][1](case.rows)


def make_optimizer(name: str, parameters: Any) -> torch.optim.Optimizer:
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE)


def clip(parameters: Any, optimizer: str) -> float:
    if optimizer != "clipped":
        return 0.0
    return float(whole(torch.nn.utils.clip_grad_norm_(parameters, 0.1)))


@cache
def one_device(model: str, config: tuple[tuple[str, Any], ...], rows: int, optimizer: str) -> Run:
    """The original with the weights of rank 0."""
    case = Case(model, {}, dict(config), rows, optimizer)
    original = build(case)
    if hasattr(original, "config"):
        original.config.use_cache = False
    args, kwargs = batch_of(case)
    stepper = make_optimizer(optimizer, original.parameters())
    losses, norms, first = [], [], {}
    for step in range(STEPS):
        loss = loss_of(run_reference(original, args, kwargs, 0, step))
        loss.backward()
        if step == 0:
            first = gradients(original)
        norms.append(clip(original.parameters(), optimizer))
        stepper.step()
        stepper.zero_grad()
        losses.append(float(loss.detach()))
    return Run(losses, first, norms, original.state_dict())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Whole gradients by path; collective."""
    given = ((path, parameter.grad) for path, parameter in module.named_parameters())
    return {path: whole(grad.detach()).clone() for path, grad in given if grad is not None}


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def error(value: Tensor, truth: Tensor) -> float:
    """Largest difference over the largest magnitude of the truth."""
    if not truth.is_floating_point():
        return float(not torch.equal(value, truth))
    scale = float(truth.abs().max()) or 1.0
    return float((value - truth).abs().max()) / scale


def errors(values: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    missing = {path: float("inf") for path in values.keys() ^ truth.keys()}
    return missing | {p: error(values[p], truth[p]) for p in values.keys() & truth.keys()}


def own_rows(example: Example, rank: int, ranks: int) -> Example:
    """This rank's part of every tensor of the batch."""
    args, kwargs = example
    return (
        tuple(each.chunk(ranks)[rank] for each in args),
        {name: each.chunk(ranks)[rank] for name, each in kwargs.items()},
    )


def predicted(plan: autoplan.Plan, outputs: bool = False) -> Traffic:
    """What the plan says a training step runs; `outputs`: a call, which gathers all of them."""
    counted: Counter[tuple[str, int, str]] = Counter()
    for row in plan.collectives:
        if row.phase != "outputs" or (outputs and row.direction == "forward"):
            counted[row.kind, row.bytes, row.axis] += row.count
    return dict(counted)


@contextmanager
def watched(module: autoplan.ParallelModule) -> Iterator[Traffic]:
    """Fills with the collectives that the first rank of this process runs."""
    seen: Traffic = {}

    def note(kind: str, size_bytes: int, axis: str) -> None:
        seen[kind, size_bytes, axis] = seen.get((kind, size_bytes, axis), 0) + 1

    module._live_executor.observe(note)
    try:
        yield seen
    finally:
        module._live_executor.observe(None)


def train(rank: int, ranks: int, case: Case) -> Outcome:
    """Three steps of one case; collective over all ranks."""
    with captured_once((case.model, *case.config.items())):
        return _train(rank, ranks, case)


def _train(rank: int, ranks: int, case: Case) -> Outcome:
    truth = one_device(case.model, tuple(case.config.items()), case.rows, case.optimizer)
    model = build(case, seed=rank)  # every rank its own weights: those of rank 0 must win
    example = batch_of(case)
    if case.local_inputs:
        example = own_rows(example, rank, ranks)
    with nullcontext() if case.drawn is None else any_choice(case.drawn):
        module = autoplan.parallelize(
            model,
            *example,
            devices=ranks,
            local_inputs=case.local_inputs,
            microbatches=case.microbatches,
            **case.options,
        )
    optimizer = make_optimizer(case.optimizer, module.parameters())
    losses, norms, first = [], [], {}
    for step in range(STEPS):
        with watched(module) as called:
            loss = one_step(module, case, example)
        if step == 0:
            first = gradients(module)
        norms.append(clip(module.parameters(), case.optimizer))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    weights = module.full_state_dict()
    with watched(module) as stepped:
        module.train_step(*example)
    return Outcome(
        losses,
        max(abs(a - b) / abs(b) for a, b in zip(losses, truth.losses, strict=True)),
        errors(first, truth.gradients),
        max(abs(a - b) / (abs(b) or 1.0) for a, b in zip(norms, truth.norms, strict=True)),
        errors(weights, truth.weights),
        str(module.plan.mesh),
        {row.path: row.layout for row in module.plan.tensors if row.kind == "parameter"},
        (predicted(module.plan), stepped),
        (predicted(module.plan, outputs=case.microbatches == 1), called),
        str(module.verify(*example)) if case.microbatches == 1 else "",
    )


def one_step(module: autoplan.ParallelModule, case: Case, example: Example) -> Tensor:
    """The loss, and the gradients in `.grad`, as a user gets them."""
    args, kwargs = example
    if case.microbatches > 1:
        return module.train_step(args, kwargs).loss
    loss = loss_of(module(*args, **kwargs))
    loss.backward()
    return loss


def round_trip(rank: int, ranks: int, preset: str) -> dict[str, Any]:
    """Whole state dicts out of a module, into the original and another's into the module."""
    case = Case("gpt2")
    (args, kwargs), model = batch_of(case), build(case, rank)
    keys = list(model.state_dict())
    module = autoplan.parallelize(model, args, kwargs, devices=ranks, preset=preset)
    state = module.full_state_dict()
    original = build(case, 7)
    original.load_state_dict(state)
    loss = module(*args, **kwargs).loss
    truth = run_reference(original, args, kwargs, 0, 0).loss
    another = build(case, 99).state_dict()
    misfit = dict(another)
    misfit["transformer.wpe.weight"] = torch.zeros(3)
    refusal = ""
    try:
        module.load_full_state_dict(misfit)
    except autoplan.InputError as refused:
        refusal = str(refused)
    unchanged = max(errors(module.full_state_dict(), state).values())
    module.load_full_state_dict(another)
    return {
        "keys equal": list(module.state_dict()) == keys == list(state),
        "loss error": float((loss - truth).detach().abs()),
        "refusal": refusal,
        "unchanged": unchanged,
        "loaded": max(errors(module.full_state_dict(), another).values()),
    }


def input_gradients(rank: int, ranks: int, options: dict[str, Any]) -> float:
    """Error of an argument's gradient, and of the weights' gradients of a gradient penalty."""
    case = Case("mlp")
    (x, y), _ = batch_of(case)
    x.requires_grad_()
    slopes, penalties = [], []
    for model in (
        autoplan.parallelize(build(case), (x, y), devices=ranks, **options),
        build(case),
    ):
        [slope] = torch.autograd.grad(model(x, y), x, create_graph=True)
        slope.square().sum().backward()
        slopes.append(slope.detach())
        penalties.append(gradients(model))
    return max(error(*slopes), *errors(*penalties).values())


def from_file(rank: int, ranks: int, folder: str) -> str:
    """A plan that rank 0 saved, followed by all; what verify says."""
    case, path = Case("gpt2"), Path(folder) / "plan.json"
    example = batch_of(case)
    if rank == 0:
        options: dict[str, Any] = {"preset": "megatron", "hints": {"lm_head": "S(2)"}}
        autoplan.plan(build(case), *example, devices=ranks, **options).save(path)
    dist.barrier()
    module = autoplan.parallelize(build(case, rank), *example, plan=autoplan.load_plan(path))
    return str(module.verify(*example))


def checkpointed(rank: int, ranks: int, folder: str) -> dict[str, float]:
    """Save after one step, go on, come back, go on again: the same second step."""
    case = Case("gpt2", optimizer="adamw")
    args, kwargs = batch_of(case)

    def start(seed: int) -> tuple[autoplan.ParallelModule, torch.optim.Optimizer]:
        module = autoplan.parallelize(build(case, seed), args, kwargs, devices=ranks, preset="fsdp")
        return module, make_optimizer("adamw", module.parameters())

    def step(module: autoplan.ParallelModule, optimizer: torch.optim.Optimizer) -> None:
        module.train_step(args, kwargs)
        optimizer.step()
        optimizer.zero_grad()

    module, optimizer = start(seed=0)
    step(module, optimizer)
    saved = module.full_state_dict()
    checkpoint.save(module.state_dict(), checkpoint_id=str(Path(folder) / "weights"))
    weights, state = get_state_dict(module, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=str(Path(folder) / "all"))
    step(module, optimizer)
    gone_on = module.full_state_dict()

    module, optimizer = start(seed=5)
    values = module.state_dict()
    checkpoint.load(values, checkpoint_id=str(Path(folder) / "weights"))
    module.load_state_dict(values)
    loaded = module.full_state_dict()

    module, optimizer = start(seed=6)
    step(module, optimizer)  # so that the optimizer has a state to be replaced
    weights, state = get_state_dict(module, optimizer)
    both = {"model": weights, "optimizer": state}
    checkpoint.load(both, checkpoint_id=str(Path(folder) / "all"))
    set_state_dict(
        module, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"]
    )
    step(module, optimizer)
    return {
        "loaded": max(errors(loaded, saved).values()),
        "gone on": max(errors(module.full_state_dict(), gone_on).values()),
        "moved": max(errors(gone_on, saved).values()),
    }


def wrong_number(rank: int, ranks: int) -> str:
    """What autoplan says to a plan for more devices than there are processes."""
    case = Case("mlp")
    try:
        autoplan.parallelize(build(case), *batch_of(case), devices=2 * ranks)
    except autoplan.AutoplanError as failure:
        return f"{type(failure).__name__}: {failure}"
    return "no error"


def everything(rank: int, cases: list[Case], folder: str) -> dict[str, Any]:
    """All of the above on one set of processes; an error of a case is kept as its text."""
    ranks = dist.get_world_size()
    results: dict[str, Any] = {}
    for case in cases:
        try:
            results[str(case)] = train(rank, ranks, case)
        except autoplan.AutoplanError as failure:  # alike on all ranks
            results[str(case)] = f"{type(failure).__name__}: {failure}"
    for preset in ROUND_TRIPS:
        results[f"round trip {preset}"] = round_trip(rank, ranks, preset)
    results["input gradients"] = [
        input_gradients(rank, ranks, options)
        for options in (
            {"preset": "ddp"},
            {"preset": "megatron"},
            {"cluster": ideal_cluster(ranks)},
        )
    ]
    results["from file"] = from_file(rank, ranks, folder)
    results["checkpoint"] = checkpointed(rank, ranks, folder)
    results["wrong number"] = wrong_number(rank, ranks)
    return results
