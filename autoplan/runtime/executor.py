"""Executors: where an emitted program runs. Real ranks here hold one value; simulated ones all."""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from autoplan.boxing import Step
from autoplan.layouts import B, Layout, Partial, Split
from autoplan.mesh import Mesh
from autoplan.runtime.communicator import Communicator, DistributedCommunicator, Observer
from autoplan.runtime.handlers import GradientHandler, handled, handled_on_all
from autoplan.runtime.leaves import owned
from autoplan.runtime.program import Program
from autoplan.runtime.regather import keeping_shards, stored_as
from autoplan.runtime.simulation import Simulator, gather, scatter, shard

Watch = Callable[[fx.Node, list[Any]], None]


class Executor(abc.ABC):
    """Runs the parts of a program on `mesh`; values between parts are opaque to the caller."""

    mesh: Mesh
    device: torch.device

    @abc.abstractmethod
    def parameter(self, whole: Tensor, layout: Layout, requires_grad: bool) -> nn.Parameter:
        """A parameter with the logical value `whole`, stored in `layout`.

        Of a value on the meta device only its shape and type are known: no value is written.
        """

    @abc.abstractmethod
    def replicas(self, whole: Tensor, layout: Layout, requires_grad: bool) -> list[nn.Parameter]:
        """A parameter for every rank that is present, each with a gradient of its own."""

    @abc.abstractmethod
    def local(self, tensor: Tensor) -> Tensor:
        """What this rank holds of a replica, or of its gradient."""

    @abc.abstractmethod
    def summed(self, values: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        """Values of the ranks that are present, with the addends of P entries summed."""

    @abc.abstractmethod
    def stored(self, parameter: Tensor, layout: Layout, taken: set[int]) -> Any:
        """The value of a parameter as the prologue takes it; `taken`: one set for all of a run."""

    @abc.abstractmethod
    def give(self, tensor: Tensor, layout: Layout) -> Any:
        """The value of an argument or buffer as the program takes it."""

    @abc.abstractmethod
    def take(self, value: Any) -> Tensor:
        """The logical tensor of a value that every rank holds whole."""

    @abc.abstractmethod
    def tensors(self, value: Any) -> list[Tensor]:
        """The local tensors of a value that are present in this process."""

    @abc.abstractmethod
    def rebuild(self, value: Any, tensors: Sequence[Tensor]) -> Any:
        """A value with other local tensors."""

    @abc.abstractmethod
    def run(
        self,
        part: str,
        programs: Sequence[Program],
        inputs: Sequence[Any],
        watch: Watch | None = None,
    ) -> list[Any]:
        """Run one part. `programs`: one for each rank that is present here."""

    @property
    @abc.abstractmethod
    def ranks(self) -> Sequence[int]:
        """The ranks that are present in this process."""

    @property
    @abc.abstractmethod
    def comms(self) -> Sequence[Communicator]:
        """The communicators of `ranks`."""

    @abc.abstractmethod
    def handled(
        self, value: Any, path: str, steps: Sequence[Sequence[Step]], handler: GradientHandler
    ) -> Any:
        """A stored parameter as it is read, its gradient reduced by `handler`; steps by rank."""

    @abc.abstractmethod
    def whole(self, parameter: Tensor, layout: Layout) -> Tensor:
        """The logical value of a parameter or of its gradient, gathered; detached."""

    def set_step(self, step: int) -> None:
        """Position in the sequence of random numbers: one number a body run."""
        for comm in self.comms:
            comm.step = step

    def observe(self, observer: Observer | None) -> None:
        """Have `observer` called for every collective of the first rank present here."""
        self.comms[0].observer = observer


def placements(layout: Layout) -> tuple[Placement, ...]:
    """DTensor placements of a storage layout (splits and broadcasts)."""
    return tuple(Shard(e.dim) if isinstance(e, Split) else Replicate() for e in layout)


def _copied(value: Tensor, device: torch.device) -> Tensor:
    """A contiguous copy on `device`; of a value on the meta device, room for it."""
    if value.is_meta:
        return torch.empty(value.shape, dtype=value.dtype, device=device)
    return value.to(device, copy=True).contiguous()


def _quiet_redistribution(record: logging.LogRecord) -> bool:
    """Gradient norms and whole parameters on two axes take one collective an axis; no news."""
    return "While redistributing from" not in record.getMessage()


class DistributedExecutor(Executor):
    """One real rank of a torch.distributed job: gloo on CPU, NCCL on CUDA.

    Ranks count from the first of its pipeline rank.
    """

    def __init__(
        self, mesh: Mesh, device: torch.device, seed: int, device_mesh: DeviceMesh
    ) -> None:
        """`device_mesh`: `mesh` over all ranks of the job, or over those of one pipeline rank."""
        self.mesh, self.device, self.device_mesh = mesh, device, device_mesh
        # The logger of torch's private module, as of torch 2.11; a missing one does no harm.
        redistribution = logging.getLogger("torch.distributed.tensor._redistribute")
        redistribution.addFilter(_quiet_redistribution)
        self.rank = torch.distributed.get_rank() % mesh.num_devices
        groups = {axis: self.device_mesh.get_group(axis) for axis in mesh.axes}
        self.comm = DistributedCommunicator(mesh, mesh.coordinates(self.rank), groups, seed)
        self.comm.device = device

    @property
    def ranks(self) -> Sequence[int]:
        return (self.rank,)

    @property
    def comms(self) -> Sequence[Communicator]:
        return (self.comm,)

    def parameter(self, whole: Tensor, layout: Layout, requires_grad: bool) -> nn.Parameter:
        local = _copied(shard(whole.detach(), layout, self.mesh, self.rank), self.device)
        return nn.Parameter(self._dtensor(local, layout, whole), requires_grad=requires_grad)

    def _dtensor(self, local: Tensor, layout: Layout, whole: Tensor) -> DTensor:
        contiguous = torch.empty(whole.shape, device="meta").stride()
        return DTensor.from_local(
            local,
            self.device_mesh,
            placements(layout) or (Replicate(),),
            run_check=False,
            shape=whole.shape,
            stride=contiguous,
        )

    def replicas(self, whole: Tensor, layout: Layout, requires_grad: bool) -> list[nn.Parameter]:
        return [self.parameter(whole, layout, requires_grad)]

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def summed(self, values: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        total = values[0].clone()
        for axis, entry in zip(self.mesh.axes, layout, strict=True):
            if isinstance(entry, Partial):
                group = self.device_mesh.get_group(axis)
                torch.distributed.all_reduce(total, group=group)
        return [total]

    def stored(self, parameter: Tensor, layout: Layout, taken: set[int]) -> Any:
        assert isinstance(parameter, DTensor)
        value = owned(parameter.to_local(), taken)
        stored_as(parameter, [value])
        return value

    def give(self, tensor: Tensor, layout: Layout) -> Any:
        tensor = tensor.to(self.device)
        return owned(tensor, set()) if tensor.requires_grad else tensor

    def take(self, value: Any) -> Tensor:
        assert isinstance(value, Tensor)
        return value

    def tensors(self, value: Any) -> list[Tensor]:
        return [value]

    def rebuild(self, value: Any, tensors: Sequence[Tensor]) -> Any:
        return tensors[0]

    def run(
        self,
        part: str,
        programs: Sequence[Program],
        inputs: Sequence[Any],
        watch: Watch | None = None,
    ) -> list[Any]:
        module: fx.GraphModule = getattr(programs[0], part)
        with keeping_shards(programs[0].gathers):
            if watch is None:
                return list(module(self.comm, *inputs))
            return _interpret(module, [self.comm, *inputs], watch)

    def handled(
        self, value: Any, path: str, steps: Sequence[Sequence[Step]], handler: GradientHandler
    ) -> Any:
        return handled(value, path, steps[0], self.comm._run, handler)

    def whole(self, parameter: Tensor, layout: Layout) -> Tensor:
        value = parameter.detach()
        assert isinstance(value, DTensor)
        whole: Tensor = value.full_tensor()
        return whole


def _interpret(module: fx.GraphModule, inputs: Sequence[Any], watch: Watch) -> list[Any]:
    """Run a module node by node, showing each value to `watch`."""

    class Shown(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            watch(n, [result])
            return result

        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            # As if it were not recomputed, so that its values are seen, and their gradients kept.
            part: Any = module.get_submodule(target)
            return tuple(_interpret(part.part, args, watch))

    return list(Shown(module).run(*inputs))


class SimulatedExecutor(Executor):
    """All ranks of a mesh in this process, in lockstep; parameters are logical tensors."""

    def __init__(self, mesh: Mesh, device: torch.device, seed: int) -> None:
        self.mesh, self.device = mesh, device
        self.simulator = Simulator(mesh, seed)
        for comm in self.comms:
            comm.device = device

    @property
    def ranks(self) -> Sequence[int]:
        return range(self.mesh.num_devices)

    @property
    def comms(self) -> Sequence[Communicator]:
        return self.simulator.comms

    def parameter(self, whole: Tensor, layout: Layout, requires_grad: bool) -> nn.Parameter:
        copy = _copied(whole.detach(), self.device)
        return nn.Parameter(copy, requires_grad=requires_grad)

    def replicas(self, whole: Tensor, layout: Layout, requires_grad: bool) -> list[nn.Parameter]:
        whole = whole.to(self.device)
        shards = (shard(whole, layout, self.mesh, rank).clone() for rank in self.ranks)
        return [nn.Parameter(each, requires_grad=requires_grad) for each in shards]

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def summed(self, values: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        totals = list(values)
        for axis, entry in zip(self.mesh.axes, layout, strict=True):
            if isinstance(entry, Partial):
                for group in self.mesh.groups(axis):
                    total = torch.stack([totals[rank] for rank in group]).sum(0)
                    for rank in group:
                        totals[rank] = total
        return totals

    def stored(self, parameter: Tensor, layout: Layout, taken: set[int]) -> Any:
        if self.mesh.num_devices == 1:
            return [owned(parameter, taken)]  # as it lies: a copy would be another model
        values = scatter(parameter, layout, self.mesh)
        stored_as(parameter, values)
        return values

    def give(self, tensor: Tensor, layout: Layout) -> Any:
        tensor = tensor.to(self.device)
        if all(entry == B for entry in layout) and not tensor.requires_grad:
            return [tensor] * self.mesh.num_devices
        return scatter(tensor, layout, self.mesh)

    def take(self, value: Any) -> Tensor:
        return gather(value)

    def tensors(self, value: Any) -> list[Tensor]:
        return list(value)

    def rebuild(self, value: Any, tensors: Sequence[Tensor]) -> Any:
        return list(tensors)

    def run(
        self,
        part: str,
        programs: Sequence[Program],
        inputs: Sequence[Any],
        watch: Watch | None = None,
    ) -> list[Any]:
        modules = [getattr(program, part) for program in programs]
        with keeping_shards(programs[0].gathers):
            return list(self.simulator.run(modules, inputs, watch))

    def handled(
        self, value: Any, path: str, steps: Sequence[Sequence[Step]], handler: GradientHandler
    ) -> Any:
        def move(values: Sequence[Tensor], each: Sequence[Step]) -> Sequence[Tensor]:
            return self.simulator.move([values], [each])[0]

        return handled_on_all(value, path, list(zip(*steps, strict=True)), move, handler)

    def whole(self, parameter: Tensor, layout: Layout) -> Tensor:
        return parameter.detach()
