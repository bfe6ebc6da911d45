"""Conversions to run: every rank's values and gradients, and the moves that lead there.

`in_simulation` runs a case in one process; `on_this_rank` runs it inside a real rank. Both return
the same `Outcome`s. Ranks import this module: it stays light.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from autoplan.boxing import Move, Step
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.runtime.communicator import DistributedCommunicator
from autoplan.runtime.simulation import Simulator
from tests.runtime.logical import meaning, numbers, spread


@dataclass(frozen=True)
class Case:
    """`moves` lead from `source` to `target`; `grads` and `grad_grads` are empty without gradient.

    values: in `source`; grads: in dual(`target`); grad_grads: in `source`, for the second
    derivative. One tensor per rank. `strided`: the tensors are not contiguous.
    """

    mesh: Mesh
    source: Layout
    target: Layout
    moves: tuple[Move, ...]
    whole: Tensor
    whole_grad: Tensor
    values: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]
    grad_grads: tuple[Tensor, ...]
    strided: bool

    def __str__(self) -> str:
        shape, dtype = tuple(self.whole.shape), self.whole.dtype
        return f"{self.source} -> {self.target} of {dtype}{shape} on {self.mesh}"

    def steps(self, rank: int) -> list[Step]:
        shape, at = tuple(self.whole.shape), self.mesh.coordinates(rank)
        return [move.bind(shape, self.mesh, at) for move in self.moves]


@dataclass(frozen=True)
class Outcome:
    """What one rank got: the value, its gradients, and the collectives it saw."""

    value: Tensor
    grad: Tensor | None
    grad_grad: Tensor | None
    observed: list[tuple[str, int, str]]


def make_case(
    mesh: Mesh,
    moves: Sequence[Move],
    ends: tuple[Layout, Layout],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
    *,
    gradient: bool = True,
    strided: bool = False,
) -> Case:
    """A case of random whole numbers; `ends` are its source and target layout."""
    draw = random.Random(seed)
    source, target = ends
    whole, grad, again = (numbers(shape, dtype, draw) for _ in range(3))
    values, grads, grad_grads = (
        tuple(_strided(x) if strided else x for x in spread(whole, layout, mesh, draw))
        if layout is not None
        else ()
        for whole, layout in (
            (whole, source),
            (grad, target.dual if gradient else None),
            (again, source if gradient else None),
        )
    )
    return Case(mesh, source, target, tuple(moves), whole, grad, values, grads, grad_grads, strided)


def _strided(x: Tensor) -> Tensor:
    """An equal tensor whose dimensions lie in memory the other way round."""
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


def in_simulation(case: Case) -> list[Outcome]:
    """Every rank's outcome, from one process."""
    simulator = Simulator(case.mesh)
    observed: list[list[tuple[str, int, str]]] = [[] for _ in simulator.comms]
    for comm, seen in zip(simulator.comms, observed, strict=True):
        comm.observer = lambda *call, seen=seen: seen.append(call)
    gradient = bool(case.grads)
    inputs = [x.clone().requires_grad_(gradient) for x in case.values]
    values: list[Tensor] = list(inputs)
    steps = [case.steps(rank) for rank in range(case.mesh.num_devices)]
    for each in zip(*steps, strict=True):
        values = simulator.box(values, each)
    if not gradient:
        return [Outcome(v, None, None, o) for v, o in zip(values, observed, strict=True)]
    out_grads = [g.clone().requires_grad_() for g in case.grads]
    grads = torch.autograd.grad(values, inputs, out_grads, create_graph=True)
    grad_grads = torch.autograd.grad(grads, out_grads, case.grad_grads)
    return [
        Outcome(v.detach(), g.detach(), gg, o)
        for v, g, gg, o in zip(values, grads, grad_grads, observed, strict=True)
    ]


def on_this_rank(case: Case, comm: DistributedCommunicator, rank: int) -> Outcome:
    """This rank's outcome; every rank runs the same cases in the same order."""
    observed: list[tuple[str, int, str]] = []
    comm.observer = lambda *call: observed.append(call)
    gradient = bool(case.grads)
    given = case.values[rank].clone().requires_grad_(gradient)
    value = given
    for step in case.steps(rank):
        value = comm.box(value, f"{step.source} -> {step.target}", axis=step.axis, sizes=step.sizes)
    if not gradient:
        return Outcome(value, None, None, observed)
    out_grad = case.grads[rank].clone().requires_grad_()
    (grad,) = torch.autograd.grad(value, given, out_grad, create_graph=True)
    (grad_grad,) = torch.autograd.grad(grad, out_grad, case.grad_grads[rank])
    return Outcome(value.detach(), grad.detach(), grad_grad, observed)


Bucket = Sequence[Case]
"""Cases of one move, which is the same action for all, forward and backward, on one axis."""


def bucket_in_simulation(bucket: Bucket) -> list[Outcome]:
    """All cases by one collective: per case and rank (rank fastest), without second derivative."""
    simulator = Simulator(bucket[0].mesh)
    count = bucket[0].mesh.num_devices
    observed: list[list[tuple[str, int, str]]] = [[] for _ in range(count)]
    for comm, seen in zip(simulator.comms, observed, strict=True):
        comm.observer = lambda *call, seen=seen: seen.append(call)
    inputs = [[x.clone().requires_grad_() for x in case.values] for case in bucket]
    steps = [[case.steps(rank)[0] for rank in range(count)] for case in bucket]
    values = [x for boxed in simulator.box_many(inputs, steps) for x in boxed]
    seeds = [grad for case in bucket for grad in case.grads]
    grads = torch.autograd.grad(values, [x for each in inputs for x in each], seeds)
    return [
        Outcome(value.detach(), grad, None, observed[at % count])
        for at, (value, grad) in enumerate(zip(values, grads, strict=True))
    ]


def bucket_on_this_rank(bucket: Bucket, comm: DistributedCommunicator, rank: int) -> list[Outcome]:
    """All cases by one collective: this rank's outcome per case, without second derivative."""
    observed: list[tuple[str, int, str]] = []
    comm.observer = lambda *call: observed.append(call)
    inputs = [case.values[rank].clone().requires_grad_() for case in bucket]
    steps = [case.steps(rank)[0] for case in bucket]
    values = comm.box_many(
        inputs,
        [f"{step.source} -> {step.target}" for step in steps],
        axis=steps[0].axis,
        sizes=[step.sizes for step in steps],
    )
    grads = torch.autograd.grad(values, inputs, [case.grads[rank] for case in bucket])
    return [
        Outcome(value.detach(), grad, None, observed)
        for value, grad in zip(values, grads, strict=True)
    ]


def check(case: Case, outcomes: list[Outcome]) -> None:
    """The outcomes mean the case's logical value in `target`, and its gradients where they go."""
    shape, mesh = tuple(case.whole.shape), case.mesh
    assert torch.equal(meaning([o.value for o in outcomes], case.target, mesh, shape), case.whole)
    if case.grads:
        grads = [o.grad for o in outcomes if o.grad is not None]
        grad = meaning(grads, case.source.dual, mesh, shape)
        assert torch.equal(grad, case.whole_grad)
        again = [o.grad_grad for o in outcomes if o.grad_grad is not None]
        expected = meaning(list(case.grad_grads), case.source, mesh, shape)
        assert torch.equal(meaning(again, case.target, mesh, shape), expected)


@dataclass(frozen=True)
class RankReport:
    """Outcomes of the cases and buckets on one rank; per mesh and axis, the group and a maximum."""

    outcomes: list[Outcome]
    buckets: list[list[Outcome]]
    groups: dict[tuple[Mesh, str], list[int]]
    maxima: dict[tuple[Mesh, str], tuple[Tensor, list[tuple[str, int, str]]]]


def run_cases(
    rank: int, cases: Sequence[Case], buckets: Sequence[Bucket], ranked: Sequence[Tensor]
) -> RankReport:
    """Run all cases, then the buckets, as `rank`.

    ranked: one tensor per rank, for all_reduce_max.
    """
    comms: dict[Mesh, DistributedCommunicator] = {}
    groups: dict[tuple[Mesh, str], list[int]] = {}
    for mesh in dict.fromkeys(case.mesh for case in cases):
        devices = init_device_mesh("cpu", mesh.sizes, mesh_dim_names=mesh.axes)
        by_axis = {axis: devices.get_group(axis) for axis in mesh.axes}
        comms[mesh] = DistributedCommunicator(mesh, mesh.coordinates(rank), by_axis)
        for axis, group in by_axis.items():
            groups[mesh, axis] = dist.get_process_group_ranks(group)
    outcomes = []
    for case in cases:
        try:
            outcomes.append(on_this_rank(case, comms[case.mesh], rank))
        except Exception as error:
            error.add_note(f"in case {case}")
            raise
    maxima = {}
    for mesh, comm in comms.items():
        for axis in mesh.axes:
            observed: list[tuple[str, int, str]] = []
            comm.observer = lambda *call, seen=observed: seen.append(call)
            maxima[mesh, axis] = comm.all_reduce_max(ranked[rank], axis), observed
    together = [bucket_on_this_rank(bucket, comms[bucket[0].mesh], rank) for bucket in buckets]
    return RankReport(outcomes, together, groups, maxima)
