"""The proof of a rule: every way it may split an op computes what the whole op computes.

One op becomes a small model. For each of its candidates the per-rank programs are emitted, run in
lockstep, and compared with the whole op: every rank's outputs and every rank's gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # public use in torch.export's own docs

from autoplan.annotate import annotate
from autoplan.boxing import Router, Step
from autoplan.buckets import Routers
from autoplan.capture import Captured, capture
from autoplan.emit import emit
from autoplan.errors import RuleError
from autoplan.layouts import B, Layout
from autoplan.mesh import Mesh
from autoplan.runtime.program import OutputSpec
from autoplan.runtime.simulation import Simulator, Values
from autoplan.sites import Annotated
from autoplan.strategies import RULES
from autoplan.strategies.rule import Rule

TOLERANCE = 1e-10
"""Largest error of a proof, relative to the largest element; examples should be float64."""


@dataclass(frozen=True)
class Proof:
    """One candidate of an op on a mesh, against the whole op.

    error: the largest error of an output or gradient on any rank, relative to its largest element.
    reason: where that error is; empty where the candidate is right.
    """

    op: str
    mesh: Mesh
    labels: tuple[str, ...]
    error: float
    ok: bool
    reason: str = ""

    def __str__(self) -> str:
        verdict = "proven" if self.ok else f"wrong: {self.reason}"
        return f"{self.op} {' | '.join(self.labels)} on {self.mesh}: {verdict}"


@dataclass(frozen=True)
class Experiment:
    """The whole op on examples: what it was given, what it gave, and the gradients it had.

    gradients: per parameter name; outputs that carry none have None for a cotangent.
    """

    captured: Captured
    arguments: tuple[Tensor, ...]
    state: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    outputs: tuple[Tensor, ...]
    cotangents: tuple[Tensor | None, ...]
    gradients: Mapping[str, Tensor]


def prove(
    fn: Callable[..., Any],
    *examples: Tensor,
    mesh: Mesh,
    rules: Mapping[str, Rule] = RULES,
    reference: Callable[..., Any] | None = None,
) -> tuple[Proof, ...]:
    """A proof for every candidate of the one op that `fn` calls on `examples`.

    Gradients flow to floating examples, unless one is an `nn.Buffer`. `reference` stands for `fn`
    where the op draws random numbers. Raises RuleError if `fn` is not exactly one op.
    """
    return prove_on(mesh, observe(fn, *examples, reference=reference), rules)


def observe(
    fn: Callable[..., Any], *examples: Tensor, reference: Callable[..., Any] | None = None
) -> Experiment:
    """Capture `fn` and run it (or `reference`) whole; one experiment serves every mesh and rule."""
    subject = _Subject(fn, examples)
    captured = capture(subject, subject.arguments)
    if reference is not None:
        subject.fn = reference
    whole = [x for x in pytree.tree_leaves(subject(*subject.arguments)) if isinstance(x, Tensor)]
    generator = torch.Generator().manual_seed(0)
    cotangents = tuple(_few_bits(x, generator) if x.requires_grad else None for x in whole)
    parameters = dict(subject.named_parameters())
    found = _gradients(whole, cotangents, list(parameters.values()))
    return Experiment(
        captured,
        subject.arguments,
        {**dict(subject.named_buffers()), **captured.constants},
        {name: value.detach() for name, value in parameters.items()},
        tuple(x.detach() for x in whole),
        cotangents,
        dict(zip(parameters, found, strict=True)),
    )


def prove_on(
    mesh: Mesh, experiment: Experiment, rules: Mapping[str, Rule] = RULES
) -> tuple[Proof, ...]:
    """A proof for every candidate of the experiment's op on `mesh`, the lean ones too."""
    annotated = annotate(experiment.captured, mesh, rules, lean=True)
    ops = [at for at, site in enumerate(annotated.sites) if site.kind == "op"]
    if len(ops) != 1:
        names = [annotated.sites[at].name for at in ops]
        raise RuleError(f"a proof is of one op, the example calls {names or 'none'}.")
    site = annotated.sites[ops[0]]
    assert site.call is not None
    router = Router(mesh, lambda *_: 1.0)  # the fewest steps
    routers = Routers(router, router)
    choices = [_all_whole(annotated, at) for at in range(len(annotated.sites))]
    proofs = []
    for number, candidate in enumerate(site.candidates):
        choices[ops[0]] = number
        try:
            error, where = _largest_error(experiment, annotated, choices, routers)
        except Exception as failure:
            error, where = float("inf"), f"{type(failure).__name__}: {failure}"
        ok = error <= TOLERANCE
        labels = candidate.labels
        proofs.append(Proof(site.call.op, mesh, labels, error, ok, "" if ok else where))
    return tuple(proofs)


class _Subject(nn.Module):
    """`fn` as a model: floating examples are parameters, `nn.Buffer`s buffers, others arguments."""

    def __init__(self, fn: Callable[..., Any], examples: Sequence[Tensor]) -> None:
        super().__init__()
        self.fn = fn
        self.names: list[str | None] = []
        arguments: list[Tensor] = []
        for number, each in enumerate(examples):
            name = f"example_{number}"
            if isinstance(each, nn.Buffer):
                self.register_buffer(name, each.detach().clone())
            elif each.is_floating_point():
                self.register_parameter(name, nn.Parameter(each.detach().clone()))
            else:
                arguments.append(each)
                self.names.append(None)
                continue
            self.names.append(name)
        self.arguments = tuple(arguments)

    def forward(self, *arguments: Tensor) -> Any:
        given = iter(arguments)
        return self.fn(
            *(next(given) if name is None else getattr(self, name) for name in self.names)
        )


class _AddendSimulator(Simulator):
    """A simulator in which every rank's addend is something: x on one rank and zero on the others
    would pass through many an op that is not linear. Small integer multiples of x sum to x exactly.
    """

    def move(
        self, tensors: Sequence[Sequence[Tensor]], steps: Sequence[Sequence[Step]]
    ) -> list[Values]:
        results = super().move(tensors, steps)
        for values, step, moved in zip(tensors, steps, results, strict=True):
            if step[0].forward != "keep_one" or values[0].dtype == torch.bool:
                continue
            for group in self.mesh.groups(step[0].axis):
                addends = _addends(values[group[0]], len(group))
                for rank, addend in zip(group, addends, strict=True):
                    moved[rank] = addend
        return results


def _few_bits(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers that stay exact in any type, so that a cast is not a difference."""
    return torch.randint(-32, 33, like.shape, generator=generator).to(like.dtype) / 32


def _addends(x: Tensor, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(x.numel() + count)
    signs = [torch.randint(0, 2, x.shape, generator=generator) * 2 - 1 for _ in range(count - 1)]
    weights = [torch.ones(x.shape, dtype=torch.int64) - sum(signs), *signs]
    return [x * weight.to(x.dtype) for weight in weights]


def _all_whole(annotated: Annotated, at: int) -> int:
    """The candidate of site `at` that keeps its tensor whole, with the whole gradient."""
    whole = Layout((B,) * annotated.mesh.ndim)
    return next(
        number
        for number, each in enumerate(annotated.sites[at].candidates)
        if each.outputs[0] == whole and each.storage in (None, whole)
    )


def _largest_error(
    experiment: Experiment, annotated: Annotated, choices: Sequence[int], routers: Routers
) -> tuple[float, str]:
    """The largest relative error of any output or gradient on any rank, and where it is."""
    ranks = range(annotated.mesh.num_devices)
    programs = [emit(annotated, choices, routers, rank) for rank in ranks]
    first = programs[0]
    leaves = {
        spec.name: [experiment.parameters[spec.name].clone().requires_grad_() for _ in ranks]
        for spec in first.parameters
    }
    state = [[experiment.state[spec.name]] * len(ranks) for spec in first.state]
    inputs = [[experiment.arguments[at]] * len(ranks) for at, _ in first.inputs]
    simulator = _AddendSimulator(annotated.mesh)
    values = simulator.run([each.prologue for each in programs], [*leaves.values(), *state])
    values = simulator.run([each.body for each in programs], [*values, *inputs])
    values = simulator.run([each.epilogue for each in programs], values)
    outputs = [values[each.position] for each in first.outputs if isinstance(each, OutputSpec)]

    errors = {}
    for number, (found, expected) in enumerate(zip(outputs, experiment.outputs, strict=True)):
        for rank in ranks:
            error = _relative_error(found[rank].detach(), expected)
            errors[f"output {number} on rank {rank}"] = error
    gradients = _gradients(
        [value for found in outputs for value in found],
        [each for each in experiment.cotangents for _ in ranks],
        [value for held in leaves.values() for value in held],
    )
    each_gradient = iter(gradients)
    for name in leaves:
        for rank in ranks:
            error = _relative_error(next(each_gradient), experiment.gradients[name])
            errors[f"gradient of {name} on rank {rank}"] = error
    where = max(errors, key=lambda each: errors[each])
    return errors[where], f"{where} is off by {errors[where]:.1e}"


def _gradients(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], leaves: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of the outputs that carry one; zero where none arrives."""
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if cotangent is not None and output.requires_grad
    ]
    if not pairs or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    carried, given = zip(*pairs, strict=True)
    found = torch.autograd.grad(carried, leaves, given, allow_unused=True)
    return [
        torch.zeros_like(leaf) if grad is None else grad
        for leaf, grad in zip(leaves, found, strict=True)
    ]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest finite element; infinite where shape, type or a nan differs."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    same = (found == expected) | ((found != found) & (expected != expected))
    if bool(same.all()):
        return 0.0
    if not expected.is_floating_point() and not expected.is_complex():
        return float("inf")
    difference = torch.where(same, 0.0, (found - expected).abs()).max()
    largest = torch.where(expected.isfinite(), expected.abs(), 0.0).max()
    error = float(difference / (largest if largest > 0 else 1.0))
    return error if error == error else float("inf")
