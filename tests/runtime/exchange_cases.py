"""Exchanges of rows to run: in one process, or on real ranks, which import this module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from autoplan.mesh import Mesh
from autoplan.runtime.communicator import DistributedCommunicator
from autoplan.runtime.exchange import read_exchange
from autoplan.runtime.simulation import Simulator


@dataclass(frozen=True)
class Exchange:
    """counts: per rank, [n, n] rows that the ranks of its group on `axis` send one another.

    values, grads and again: per rank, the rows, the gradient of what arrives, and the gradient of
    that gradient. lengths: per rank, rows of the result; None for what arrives.
    """

    mesh: Mesh
    axis: str
    counts: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]
    again: tuple[Tensor, ...]
    lengths: tuple[int | None, ...]
    rows: int


@dataclass(frozen=True)
class Arrived:
    """What one rank got: rows, their gradient, its gradient, and the collectives it saw."""

    value: Tensor
    grad: Tensor
    grad_grad: Tensor
    observed: list[tuple[str, int, str]]


def in_simulation(case: Exchange) -> list[Arrived]:
    """What every rank got, from one process."""
    simulator = Simulator(case.mesh)
    observed: list[list[tuple[str, int, str]]] = [[] for _ in simulator.comms]
    for comm, seen in zip(simulator.comms, observed, strict=True):
        comm.observer = lambda *call, seen=seen: seen.append(call)
    at = case.mesh.index(case.axis)
    exchanges = [
        read_exchange(counts, comm.coordinates[at], case.axis, case.rows, length)
        for comm, counts, length in zip(simulator.comms, case.counts, case.lengths, strict=True)
    ]
    inputs = [x.clone().requires_grad_() for x in case.values]
    values = simulator.exchange_rows(inputs, exchanges)
    out_grads = [g.clone().requires_grad_() for g in case.grads]
    grads = torch.autograd.grad(values, inputs, out_grads, create_graph=True)
    grad_grads = torch.autograd.grad(grads, out_grads, case.again)
    return [
        Arrived(value.detach(), grad.detach(), grad_grad, seen)
        for value, grad, grad_grad, seen in zip(values, grads, grad_grads, observed, strict=True)
    ]


def on_this_rank(rank: int, cases: Sequence[Exchange]) -> list[Arrived]:
    """What this rank got in each case; every rank runs the same cases in the same order."""
    comms = {}
    for mesh in dict.fromkeys(case.mesh for case in cases):
        devices = init_device_mesh("cpu", mesh.sizes, mesh_dim_names=mesh.axes)
        groups = {axis: devices.get_group(axis) for axis in mesh.axes}
        comms[mesh] = DistributedCommunicator(mesh, mesh.coordinates(rank), groups)
    results = []
    for case in cases:
        comm = comms[case.mesh]
        observed: list[tuple[str, int, str]] = []
        comm.observer = lambda *call, seen=observed: seen.append(call)
        given = case.values[rank].clone().requires_grad_()
        value = comm.exchange_rows(
            given, case.counts[rank], axis=case.axis, rows=case.rows, length=case.lengths[rank]
        )
        out_grad = case.grads[rank].clone().requires_grad_()
        (grad,) = torch.autograd.grad(value, given, out_grad, create_graph=True)
        (grad_grad,) = torch.autograd.grad(grad, out_grad, case.again[rank])
        results.append(Arrived(value.detach(), grad.detach(), grad_grad, observed))
    return results
