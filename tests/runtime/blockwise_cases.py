"""Requests and small algorithms to run: in one process, or on real ranks, which import this."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from autoplan.mesh import Mesh
from autoplan.runtime.blockwise import Backward, Forward, View, run, run_all
from autoplan.runtime.communicator import DistributedCommunicator
from autoplan.runtime.requests import Exchange, Request, Shift, perform_on_group
from autoplan.runtime.simulation import Simulator

Traffic = list[tuple[str, int, str]]


@dataclass(frozen=True)
class Asked:
    """One request of every rank of `mesh`."""

    mesh: Mesh
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Turned:
    """w times what the rank before has: an algorithm whose backward meets others too.

    `again`: sent by an exchange instead, which must bring the same.
    """

    axis: str
    again: bool = False

    def forward(self, view: View, *tensors: Tensor) -> Forward:
        x, weight = tensors
        moved = yield from self._moved(view, x, 1)
        return weight * moved, (moved, weight)

    def backward(self, view: View, kept: tuple[Tensor, ...], grad: Tensor) -> Backward:
        moved, weight = kept
        own = None
        if view.wants[0]:
            own = yield from self._moved(view, grad * weight, -1)
        return own, (grad * moved).sum() if view.wants[1] else None

    def _moved(self, view: View, x: Tensor, by: int) -> Any:
        if not self.again:
            (came,) = yield Shift((x,), self.axis, by)
            return came
        size, index = view.size(self.axis), view.index(self.axis)
        to, source = (index + by) % size, (index - by) % size
        parts = tuple(x.reshape(-1) if rank == to else x.new_empty(0) for rank in range(size))
        shapes = tuple((x.numel(),) if rank == source else (0,) for rank in range(size))
        found = yield Exchange(parts, shapes, self.axis)
        return found[source].view(x.shape)


@dataclass(frozen=True)
class Outcome:
    """What one rank got, the gradients of its tensors, and what it saw."""

    value: Tensor
    grads: tuple[Tensor | None, ...]
    observed: Traffic


def in_simulation(mesh: Mesh, algorithm: Any, values: Sequence[Tensor], weight: bool) -> list[Any]:
    """`algorithm` on one value a rank, with gradients of ones."""
    simulator, seen = observed(mesh)
    given = [(x.clone().requires_grad_(), _weight(weight)) for x in values]
    views = [View(mesh, comm.coordinates) for comm in simulator.comms]
    found = run_all([algorithm] * len(values), views, given, simulator._perform)
    torch.autograd.backward(found, [torch.ones_like(each) for each in found])
    return [
        Outcome(value.detach(), tuple(each.grad for each in tensors), traffic)
        for value, tensors, traffic in zip(found, given, seen, strict=True)
    ]


def observed(mesh: Mesh) -> tuple[Simulator, list[Traffic]]:
    """A simulator, and what its ranks see."""
    simulator = Simulator(mesh)
    seen: list[Traffic] = [[] for _ in simulator.comms]
    for comm, traffic in zip(simulator.comms, seen, strict=True):
        comm.observer = lambda *call, traffic=traffic: traffic.append(call)
    return simulator, seen


def _weight(wanted: bool) -> Tensor:
    return torch.tensor(3.0, dtype=torch.float64, requires_grad=wanted)


def on_this_rank(
    rank: int, asked: Sequence[Asked], turned: Sequence[tuple[Mesh, Any, list[Tensor], bool]]
) -> tuple[list[Any], list[Outcome]]:
    """The answers to this rank's requests, and the outcomes of algorithms."""
    meshes = dict.fromkeys([*(each.mesh for each in asked), *(each[0] for each in turned)])
    comms = {mesh: communicator(mesh, rank) for mesh in meshes}
    answers = [comms[each.mesh]._perform(each.requests[rank]) for each in asked]
    outcomes = []
    for mesh, algorithm, values, weight in turned:
        comm, seen = comms[mesh], []
        comm.observer = lambda *call, seen=seen: seen.append(call)
        x, w = values[rank].clone().requires_grad_(), _weight(weight)
        value = run(algorithm, View(mesh, comm.coordinates), (x, w), comm._perform)
        value.backward(torch.ones_like(value))
        outcomes.append(Outcome(value.detach(), (x.grad, w.grad), seen))
        comm.observer = None
    return answers, outcomes


def communicator(mesh: Mesh, rank: int) -> DistributedCommunicator:
    devices = init_device_mesh("cpu", mesh.sizes, mesh_dim_names=mesh.axes)
    groups = {axis: devices.get_group(axis) for axis in mesh.axes}
    return DistributedCommunicator(mesh, mesh.coordinates(rank), groups)


def one_stays_away(rank: int, make: Callable[[int], Request], timeout_s: float) -> float:
    """Seconds until the other ranks raise, where rank 1 never asks."""
    group = dist.new_group(timeout=timedelta(seconds=timeout_s))
    dist.barrier()
    start = time.monotonic()
    try:
        if rank == 1:
            time.sleep(3 * timeout_s)
        else:
            perform_on_group(make(rank), group, rank, torch.device("cpu"))
            return float("inf")
    except RuntimeError:
        pass
    return time.monotonic() - start


def one_dies(rank: int, make: Callable[[int], Request]) -> None:
    """Rank 1 fails before it asks."""
    mesh = Mesh.of(x=dist.get_world_size())
    comm = communicator(mesh, rank)
    dist.barrier()
    if rank == 1:
        raise ValueError("rank 1 has had enough")
    comm._perform(make(rank))


def shift(rank: int) -> Request:
    return Shift((torch.ones(3),), "x")


def exchange(rank: int) -> Request:
    return Exchange((torch.ones(1),) * 2, ((1,),) * 2, "x")
