"""Links between the ranks of a pipeline: tensors on the wire, and autograd through them.

Rank i of a stage's group talks to rank i of the other groups. Every function here blocks until the
other side has done its part, or the process group's timeout has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from autoplan.layouts import local_shape
from autoplan.runtime.program import Program, TensorSpec


@dataclass(frozen=True)
class Place:
    """Where this process stands: pipeline rank `rank` of the `size` ranks that `group` connects."""

    group: dist.ProcessGroup
    size: int
    rank: int
    device: torch.device


def as_wire(tensor: Tensor) -> Tensor:
    """What travels of a tensor: contiguous, of a type that gloo knows. Shares memory if it can."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bool:
        return tensor.view(torch.uint8)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def room_for(spec: TensorSpec, program: Program, device: torch.device) -> Tensor:
    """Memory for what this rank receives as `spec`, or for the gradient of it."""
    shape = local_shape(spec.shape, spec.layout, program.mesh, program.coordinates)
    return torch.empty(shape, dtype=spec.dtype, device=device)


def start_send(tensors: Sequence[Tensor], peer: int, place: Place) -> list[dist.Work]:
    """Send to pipeline rank `peer`; what is returned is to be waited for, and holds the memory."""
    wires = [as_wire(tensor) for tensor in tensors if tensor.numel()]
    return _works(dist.isend(wire, group=place.group, group_dst=peer) for wire in wires)


def start_receive(tensors: Sequence[Tensor], peer: int, place: Place) -> list[dist.Work]:
    """Receive into `tensors`, which are contiguous."""
    wires = [as_wire(tensor) for tensor in tensors if tensor.numel()]
    return _works(dist.irecv(wire, group=place.group, group_src=peer) for wire in wires)


def check_sent(tensors: Sequence[Tensor], program: Program) -> None:
    """Raises RuntimeError where `tensors` are not what the other side makes room for."""
    for tensor, spec in zip(tensors, program.sent, strict=True):
        shape = local_shape(spec.shape, spec.layout, program.mesh, program.coordinates)
        if tuple(tensor.shape) != shape or tensor.dtype != spec.dtype:
            raise RuntimeError(
                f"a stage made {spec.name!r} as {tensor.dtype} {list(tensor.shape)}, but the next "
                f"one expects {spec.dtype} {list(shape)}."
            )


def _works(works: Any) -> list[dist.Work]:
    return [work for work in works if work is not None]


def wait(works: list[dist.Work]) -> None:
    """Wait for what was started, and forget it."""
    while works:
        works.pop(0).wait()


def share(value: Tensor | None, source: int, place: Place, spec: TensorSpec) -> Tensor:
    """The whole `value` of pipeline rank `source`, on every rank; others give None."""
    if value is None:
        value = torch.empty(spec.shape, dtype=spec.dtype, device=place.device)
    if not value.numel():
        return value
    wire = as_wire(value)
    dist.broadcast(wire, group=place.group, group_src=source)
    return value


def sum_over(value: Tensor, holders: Sequence[int], place: Place) -> None:
    """Add up `value` in place over the pipeline ranks `holders`, this one among them.

    For the gradients of parameters that several stages read. All get the same bits: the first one
    adds, in the order of `holders`.
    """
    if len(holders) == 1 or not value.numel():
        return
    first, *others = holders
    if place.rank != first:
        wait(start_send([value], first, place))
        total = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        wait(start_receive([total], first, place))
        value.copy_(total)
        return
    for other in others:
        addend = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        wait(start_receive([addend], other, place))
        value.add_(addend)
    for other in others:
        wait(start_send([value], other, place))


class Chain:
    """What one forward of this process sends and receives; backward does it in reverse.

    Stages run one after the other, without microbatches. A token goes from each step to the next
    one, so that autograd, on every rank, reverses exactly this order, whatever stages a rank has:
    no rank waits for one that waits for it. `backward()` must be called on every rank, of values
    that depend on the outputs of `join`; `torch.autograd.grad` of some inputs would leave steps
    out, and is not supported. Works without gradients too.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._token = torch.empty(0, requires_grad=True)

    @property
    def token(self) -> Tensor:
        """A root that every step so far waits for, where a backward starts before `join`.

        Given on every rank, it has steps run even where no gradient reaches what they gave.
        """
        return self._token

    def tie(self, values: Sequence[Tensor], holders: Sequence[Sequence[int]]) -> list[Tensor]:
        """Parameters of which other pipeline ranks hold copies, `holders` those of each.

        Their gradients are summed over these ranks, one after the other, in one order on all.
        """
        tied: list[Tensor]
        holding = tuple(map(tuple, holders))
        self._token, *tied = _Tie.apply(self._place, holding, self._token, *values)  # type: ignore[no-untyped-call]
        return tied

    def enter(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The differentiable arguments, given to every rank, as stages here read them.

        Their gradients are summed over all ranks, since each stage knows only its own share.
        Before any stage.
        """
        results = _Enter.apply(self._place, self._token, *arguments)  # type: ignore[no-untyped-call]
        self._token = results[0]
        return list(results[1:])

    def receive(self, program: Program, peer: int) -> list[Tensor]:
        """`program.received`, from pipeline rank `peer`."""
        results = _Receive.apply(self._place, program, peer, self._token)  # type: ignore[no-untyped-call]
        self._token = results[0]
        return list(results[1:])

    def send(self, values: Sequence[Tensor], program: Program, peer: int) -> None:
        """`program.sent`, to pipeline rank `peer`."""
        self._token = _Send.apply(self._place, program, peer, self._token, *values)  # type: ignore[no-untyped-call]

    def join(
        self, values: Sequence[Tensor | None], owners: Sequence[int], specs: Sequence[TensorSpec]
    ) -> list[Tensor]:
        """Outputs, whole on their owner, on every rank. The last step of a chain.

        values: None where another pipeline rank has it; owners: these ranks. Every rank has the
        whole gradient of an output, and the owner uses its own.
        """
        joined: tuple[Tensor, ...] = _Join.apply(  # type: ignore[no-untyped-call]
            self._place, tuple(owners), tuple(specs), self._token, *values
        )
        return list(joined)


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, place: Place, holders: Sequence[Sequence[int]], token: Tensor, *values: Tensor
    ) -> Any:
        ctx.place, ctx.holders = place, holders
        ctx.likes = [(v.shape, v.dtype, v.device, v.requires_grad) for v in values]
        ctx.set_materialize_grads(False)
        return torch.empty(0), *(each.view_as(each) for each in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor | None, *grads: Tensor | None) -> Any:
        results: list[Tensor | None] = []
        for grad, holders, like in zip(grads, ctx.holders, ctx.likes, strict=True):
            shape, dtype, device, trained = like
            if not trained:
                results.append(None)
                continue
            total = torch.zeros(shape, dtype=dtype, device=device)
            if grad is not None:
                total.copy_(grad)
            sum_over(total, holders, ctx.place)
            results.append(total)
        return None, None, torch.empty(0), *results


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, place: Place, token: Tensor, *arguments: Tensor) -> Any:
        ctx.place = place
        ctx.likes = [(a.shape, a.dtype, a.device) for a in arguments]
        ctx.set_materialize_grads(False)
        return torch.empty(0), *(each.detach() for each in arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor | None, *grads: Tensor | None) -> Any:
        group = ctx.place.group
        found = torch.tensor([grad is not None for grad in grads], device=ctx.place.device)
        reached = found.to(torch.uint8)
        if grads:
            dist.all_reduce(reached, dist.ReduceOp.MAX, group=group)
        results: list[Tensor | None] = []
        for grad, any_rank, (shape, dtype, device) in zip(
            grads, reached.tolist(), ctx.likes, strict=True
        ):
            if not any_rank:
                results.append(None)
                continue
            total = torch.zeros(shape, dtype=dtype, device=device)
            if grad is not None:
                total.copy_(grad)
            if total.numel():
                dist.all_reduce(as_wire(total), group=group)
            results.append(total)
        return None, None, *results


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, place: Place, program: Program, peer: int, token: Tensor) -> Any:
        ctx.place, ctx.program, ctx.peer = place, program, peer
        ctx.set_materialize_grads(False)
        values = [room_for(spec, program, place.device) for spec in program.received]
        wait(start_receive(values, peer, place))
        pairs = zip(values, program.received, strict=True)
        ctx.mark_non_differentiable(*(v for v, spec in pairs if not spec.requires_grad))
        return torch.empty(0), *values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor | None, *grads: Tensor | None) -> Any:
        pairs = zip(grads, ctx.program.received, strict=True)
        wanted = [grad for grad, spec in pairs if spec.requires_grad]
        if wanted:
            found = torch.tensor([grad is not None for grad in wanted], device=ctx.place.device)
            present = [grad for grad in wanted if grad is not None]
            wait(start_send([found, *present], ctx.peer, ctx.place))
        return None, None, None, torch.empty(0)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, place: Place, program: Program, peer: int, token: Tensor, *values: Tensor
    ) -> Any:
        ctx.place, ctx.program, ctx.peer = place, program, peer
        ctx.set_materialize_grads(False)
        check_sent(values, program)
        wait(start_send(values, peer, place))
        return torch.empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor | None) -> Any:
        place, program = ctx.place, ctx.program
        results: list[Tensor | None] = [None] * len(program.sent)
        wanted = [number for number, spec in enumerate(program.sent) if spec.requires_grad]
        if wanted:
            found = torch.empty(len(wanted), dtype=torch.bool, device=place.device)
            wait(start_receive([found], ctx.peer, place))
            for number, there in zip(wanted, found.tolist(), strict=True):
                if there:
                    results[number] = room_for(program.sent[number], program, place.device)
            wait(start_receive([r for r in results if r is not None], ctx.peer, place))
        return None, None, None, torch.empty(0), *results


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        place: Place,
        owners: Sequence[int],
        specs: Sequence[TensorSpec],
        token: Tensor,
        *values: Tensor | None,
    ) -> Any:
        ctx.mine = [owner == place.rank for owner in owners]
        ctx.set_materialize_grads(False)
        joined = []
        for value, owner, spec in zip(values, owners, specs, strict=True):
            own = value.detach() if value is not None and owner == place.rank else None
            joined.append(share(own, owner, place, spec))
        pairs = zip(joined, specs, strict=True)
        ctx.mark_non_differentiable(*(v for v, spec in pairs if not spec.requires_grad))
        return tuple(joined)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        own = (grad if mine else None for grad, mine in zip(grads, ctx.mine, strict=True))
        return None, None, None, torch.empty(0), *own
