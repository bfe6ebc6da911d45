"""One fuzzed case: a random module, a random mesh, a random legal plan; compared in float64."""

from __future__ import annotations

import contextlib
import copy
import random
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import autoplan
import autoplan.planning
from autoplan.differences import relative_error
from autoplan.plan import Baseline
from autoplan.replay import objective
from autoplan.runtime.reference import run_reference
from tests.end_to_end.arbitrary import any_choice
from tests.fuzz.draft import Program
from tests.fuzz.generator import Example, build, random_module
from tests.models import ideal_cluster

TOLERANCE = 1e-9
MESHES: tuple[tuple[tuple[int, ...], float, int], ...] = (
    ((2,), 3, 20),
    ((3,), 3, 20),
    ((4,), 3, 20),
    ((8,), 0.7, 14),
    ((2, 2), 3, 14),
    ((2, 3), 1.5, 12),
    ((2, 4), 0.5, 8),
    ((2, 2, 2), 0.4, 4),
)
"""Sizes of the axes, how often, and the longest program: more candidates take more time."""

WAYS = {
    "verify": 10,
    "verify steps": 2,
    "solved": 2.5,
    "called": 3,
    "microbatches": 2,
    "saved": 1,
    "eval": 1,
    "both modes": 1,
    "two sizes": 1,
    "inference": 0.7,
    "single precision": 1,
}
"""How a case is planned and compared, and how often."""


@dataclass(frozen=True)
class Case:
    """All that a case is; `number` says the rest."""

    number: int
    mesh: tuple[int, ...]
    way: str
    length: int

    @property
    def axes(self) -> dict[str, int]:
        return dict(zip("abc", self.mesh, strict=False))

    @property
    def rowwise(self) -> bool:
        return self.way in ("microbatches", "two sizes")

    def __str__(self) -> str:
        return f"case {self.number}: {self.way} on {self.axes}, {self.length} lines"


@dataclass(frozen=True)
class Outcome:
    """`text`: what differs, or why nothing was compared."""

    kind: Literal["equal", "skipped", "failed"]
    text: str = ""
    error: str = ""
    plan: str = ""


def case_of(number: int) -> Case:
    draw = random.Random(number)
    mesh, _, longest = draw.choices(MESHES, [weight for _, weight, _ in MESHES])[0]
    [way] = draw.choices(list(WAYS), list(WAYS.values()))
    return Case(number, mesh, way, draw.randint(min(4, longest), longest))


def program_of(case: Case) -> Program:
    return random_module(case.number, case.length, case.rowwise)[-1]


def run_case(case: Case, program: Program | None = None, seed: int | None = None) -> Outcome:
    """Plan and compare; `program` and `seed` stand for those of the case where they are given."""
    program = program_of(case) if program is None else program
    draws = [case.number * 8 + k for k in range(4)] if seed is None else [seed]
    model, example = build(program)
    for draw in draws:
        module: list[autoplan.ParallelModule] = []
        try:
            text = _compare(case, model, example, draw, module)
        except RuntimeError as error:
            if "dead end" in str(error):
                continue
            text, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        except autoplan.CaptureError as error:
            return Outcome("skipped", f"{type(error).__name__}: {error}")
        except Exception as error:
            text, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        else:
            trace = ""
        if not text:
            return Outcome("equal")
        if not trace and _ill_conditioned(model, example):
            return Outcome("skipped", f"ill conditioned: {text}")
        plan = _layouts(module[0]) if module else ""
        return Outcome("failed", text, trace, plan)
    return Outcome("skipped", "the draws of a plan met dead ends")


# -- comparing ----------------------------------------------------------------------------------


def _compare(
    case: Case,
    model: nn.Module,
    example: Example,
    seed: int,
    seen: list[autoplan.ParallelModule],
) -> str:
    """What differs; empty if nothing. `seen` receives the planned module."""
    args, kwargs = example
    devices = autoplan.Mesh.of(**case.axes).num_devices
    options: dict[str, Any] = {"devices": devices, "parallel": {"mesh": case.axes}}
    if case.way in ("eval", "inference"):
        model.eval()
    if case.way == "inference":
        options["training"] = False
    if case.way == "single precision":
        model.float()
        args, kwargs = pytree.tree_map(_single, (args, kwargs))
    if case.way == "called":
        args, kwargs = pytree.tree_map(_with_gradient, (args, kwargs))
    if case.way == "microbatches":
        args, kwargs = pytree.tree_map(_doubled, (args, kwargs))
        options["microbatches"] = 2
    if case.way == "solved":
        options |= {"cluster": ideal_cluster(devices), "time_limit_s": 5}
    with _planning(case, seed):
        module = autoplan.parallelize(model, args, kwargs, **options)
        seen.append(module)
        return _differences(case, module, model, (args, kwargs))


def _differences(
    case: Case, module: autoplan.ParallelModule, model: nn.Module, example: Example
) -> str:
    args, kwargs = example
    if case.way == "called":
        return _called(module, model, example)
    if case.way == "microbatches":
        return _trained(module, model, example)
    if case.way == "saved":
        with tempfile.TemporaryDirectory() as folder:
            module.plan.save(Path(folder) / "plan.json")
            module = autoplan.parallelize(model, args, kwargs, plan=Path(folder) / "plan.json")
    steps = 2 if case.way == "verify steps" else 0
    checks = [module.verify(args, kwargs, steps=steps, optimizer=_sgd)]
    if case.way == "both modes":
        module.eval()
        checks.append(module.verify(args, kwargs))
    if case.way == "two sizes":
        checks.append(module.verify(*pytree.tree_map(_doubled, example)))
    return "; ".join(str(each) for each in checks if not each.ok)


@contextlib.contextmanager
def _planning(case: Case, seed: int) -> Iterator[None]:
    """Plans made inside are drawn, or for some cases solved as users' are."""
    if case.way == "solved":
        yield
        return
    nothing = Baseline("data parallel", None, None, "left out")
    baseline = mock.patch.object(autoplan.planning, "baselines", return_value=(nothing,))
    with any_choice(seed), baseline:
        yield


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Without weight decay, which tells a gradient of zeros from one that is missing.

    A parameter that the loss does not depend on, but another output does, has none on one device,
    and zeros where it is boxed together with others.
    """
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def _single(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _doubled(leaf: Any) -> Any:
    """Twice as many rows, the second half not like the first."""
    return torch.cat([leaf, leaf.flip(0)]) if isinstance(leaf, Tensor) else leaf


def _called(module: autoplan.ParallelModule, model: nn.Module, example: Example) -> str:
    """As a user calls it, twice: outputs, gradients of parameters and of arguments, buffers."""
    found, truth = (
        pytree.tree_map(_with_gradient, example),
        pytree.tree_map(_with_gradient, example),
    )
    original = copy.deepcopy(model)  # before a call may change its buffers
    errors: dict[str, float] = {}
    for step in range(2):
        outputs = pytree.tree_leaves(module(*found[0], **found[1]))
        expected = pytree.tree_leaves(run_reference(original, *truth, 0, step))
        for each in (outputs, expected):
            total = objective(each, None)
            if total is not None:
                total.backward()
        errors |= {
            f"output {at} of step {step}": relative_error(value, true)
            for at, (value, true) in enumerate(zip(outputs, expected, strict=True))
            if isinstance(true, Tensor)
        }
    errors |= _state_errors(module, original)
    leaves = zip(pytree.tree_leaves(found), pytree.tree_leaves(truth), strict=True)
    pairs = [(a.grad, b.grad) for a, b in leaves if b.requires_grad]
    largest = max((float(b.abs().max()) for _, b in pairs if b is not None), default=0.0)
    for at, pair in enumerate(pairs):
        errors[f"gradient of argument {at}"] = relative_error(*pair, floor=1e-6 * largest)
    return _worst(errors)


def _trained(module: autoplan.ParallelModule, model: nn.Module, example: Example) -> str:
    """A step over microbatches: the loss, gradients, and buffers."""
    original = copy.deepcopy(model)
    losses = []
    for step, (args, kwargs) in enumerate(module._cut(example, 2)):
        outputs = pytree.tree_leaves(run_reference(original, args, kwargs, 0, step))
        loss = outputs[module._first.programs[0].loss]
        (loss / 2).backward()
        losses.append(loss.detach())
    result = module.train_step(*example)
    errors = {"loss": relative_error(result.loss, torch.stack(losses).mean())}
    return _worst(errors | _state_errors(module, original))


def _state_errors(module: autoplan.ParallelModule, original: nn.Module) -> dict[str, float]:
    """Gradients of parameters, and buffers."""
    truth = {path: p.grad for path, p in original.named_parameters()}
    largest = max((float(g.abs().max()) for g in truth.values() if g is not None), default=0.0)
    errors = {}
    for path, parameter in module.named_parameters():
        found = parameter.grad
        errors[f"gradient of {path}"] = relative_error(found, truth[path], floor=1e-6 * largest)
    held = dict(module.named_buffers())
    for path, buffer in original.named_buffers():
        errors[f"buffer {path}"] = relative_error(held[path], buffer)
    return errors


def _with_gradient(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.clone().requires_grad_(leaf.is_floating_point())


def _worst(errors: dict[str, float]) -> str:
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    return ", ".join(f"{name} by {error:.3g}" for name, error in wrong.items())


def _ill_conditioned(model: nn.Module, example: Example) -> bool:
    """Whether rounding alone, in weights and arguments, moves the original by so much."""

    def run(relative: float) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            return leaf.detach().double() * (1 + relative * noise)

        other = copy.deepcopy(model).double()
        args, kwargs = pytree.tree_map(moved, example)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(moved(parameter))
        leaves = pytree.tree_leaves(run_reference(other, args, kwargs, 0, 0))
        total = objective(leaves, None)
        if total is not None:
            total.backward()
        outputs = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        return outputs + [p.grad for p in other.parameters() if p.grad is not None]

    pairs = list(zip(run(0.0), run(1e-14), strict=True))
    return any(relative_error(moved, true, floor=1e-12) > 1e-10 for true, moved in pairs)


def _layouts(module: autoplan.ParallelModule) -> str:
    planned = list(module._entries.values())[-1].planned
    lines = []
    for site, choice in zip(planned.annotated.sites, planned.choices, strict=True):
        each = site.candidates[choice]
        inputs = ", ".join(map(str, each.inputs))
        lines.append(f"{site.name}: {inputs} -> {', '.join(map(str, each.outputs))}")
    return "\n".join(lines)
