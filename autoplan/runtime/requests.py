"""What the ranks of a blockwise algorithm ask of one another, and how it is done.

Between real ranks bytes travel over the process group of an axis; in one process the requests of a
whole group are answered at once. An axis has two ranks or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shift:
    """Send `values` to the rank `by` further along `axis`; the last ones send to the first ones.

    Result: the tuple that the rank `by` before has sent. `shapes` are those of what arrives, by
    default those of `values`.
    """

    values: tuple[Tensor, ...]
    axis: str
    by: int = 1
    shapes: tuple[Shape, ...] | None = None

    kind = "send"

    @property
    def num_bytes(self) -> int:
        return _bytes_of(self.values)

    @property
    def arriving(self) -> tuple[Shape, ...]:
        """The shapes of the result."""
        return self.shapes or tuple(tuple(each.shape) for each in self.values)


@dataclass(frozen=True)
class Broadcast:
    """The `value` of rank `root` of `axis`, on all; the other ranks give None."""

    value: Tensor | None
    axis: str
    root: int
    shape: Shape
    dtype: torch.dtype

    kind = "broadcast"

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Reduce:
    """The sum of all ranks' `value` at rank `root` of `axis`; None on the others."""

    value: Tensor
    axis: str
    root: int

    kind = "reduce"

    @property
    def num_bytes(self) -> int:
        return _bytes_of((self.value,))


@dataclass(frozen=True)
class Exchange:
    """A part for every rank of `axis`, which may be empty; all of one type.

    Result: the tuple of what every rank has sent to this one, of shapes `shapes`. Counted as an
    all-to-all of a tensor of which every rank holds as much as this one.
    """

    parts: tuple[Tensor, ...]
    shapes: tuple[Shape, ...]
    axis: str

    kind = "all_to_all"

    @property
    def num_bytes(self) -> int:
        return len(self.parts) * _bytes_of(self.parts)


Request = Shift | Broadcast | Reduce | Exchange
"""`kind` and `num_bytes` are what is observed and priced, as `CostModel.collective_time_s` says."""

KINDS = ("send", "broadcast", "reduce", "all_to_all")
"""The collectives that requests are counted as."""


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


# -- between real ranks ---------------------------------------------------------------------


def perform_on_group(
    request: Request, group: dist.ProcessGroup, index: int, device: torch.device
) -> Any:
    """Meet the other ranks of `group`, where this one is rank `index`; blocks until they have."""
    if isinstance(request, Shift):
        return _shift(request, group, index)
    if isinstance(request, Broadcast):
        value = request.value
        if value is None:
            value = torch.empty(request.shape, dtype=request.dtype, device=device)
        value = value.contiguous()
        if value.numel():
            dist.broadcast(_as_bytes(value), group=group, group_src=request.root)
        return value
    if isinstance(request, Reduce):
        total = request.value.clone(memory_format=torch.contiguous_format)
        if total.numel():
            wire = torch.view_as_real(total) if total.is_complex() else total
            dist.reduce(wire, group=group, group_dst=request.root)
        return total if index == request.root else None
    return _exchange(request, group)


def _shift(request: Shift, group: dist.ProcessGroup, index: int) -> tuple[Tensor, ...]:
    size = group.size()
    to, source = (index + request.by) % size, (index - request.by) % size
    results = tuple(
        value.new_empty(shape)
        for value, shape in zip(request.values, request.arriving, strict=True)
    )
    sent = [_as_bytes(each.contiguous()) for each in request.values if each.numel()]
    received = [_as_bytes(each) for each in results if each.numel()]
    ops = [dist.P2POp(dist.isend, each, group=group, group_peer=to) for each in sent]
    ops += [dist.P2POp(dist.irecv, each, group=group, group_peer=source) for each in received]
    for work in dist.batch_isend_irecv(ops) if ops else ():
        work.wait()
    return results


def _exchange(request: Exchange, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    first = request.parts[0]
    sent = [_as_bytes(each.contiguous()) for each in request.parts]
    lengths = [math.prod(shape) * first.element_size() for shape in request.shapes]
    arrived = torch.empty(sum(lengths), dtype=torch.uint8, device=first.device)
    dist.all_to_all_single(
        arrived, torch.cat(sent), lengths, [each.numel() for each in sent], group=group
    )
    pieces = zip(torch.split(arrived, lengths), request.shapes, strict=True)
    return tuple(piece.view(first.dtype).view(shape) for piece, shape in pieces)


def _as_bytes(tensor: Tensor) -> Tensor:
    """A flat view of a contiguous tensor, of the one type that every backend sends."""
    return tensor.detach().resolve_conj().resolve_neg().view(-1).view(torch.uint8)


# -- in one process -------------------------------------------------------------------------


def perform_in_one_process(requests: Sequence[Request]) -> list[Any]:
    """What the requests of one group's ranks give each of them, in coordinate order."""
    results: list[Any] = []
    for index, request in enumerate(requests):
        if isinstance(request, Shift):
            given: Any = requests[(index - request.by) % len(requests)]
            results.append(_checked(given.values, request.arriving))
        elif isinstance(request, Broadcast):
            given = requests[request.root]
            results += _checked((given.value,), (request.shape,))
        elif isinstance(request, Reduce):
            everyone: Any = requests
            root = index == request.root
            results.append(_sum([each.value for each in everyone]) if root else None)
        else:
            everyone = requests
            sent = tuple(each.parts[index] for each in everyone)
            results.append(_checked(sent, request.shapes))
    return results


def _checked(values: Sequence[Tensor], shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Copies of what was sent; RuntimeError where the receiver makes other room for it."""
    found = [tuple(each.shape) for each in values]
    if found != list(shapes):
        raise RuntimeError(f"a rank sends tensors of {found} where one of {list(shapes)} is due.")
    return tuple(each.clone(memory_format=torch.contiguous_format) for each in values)


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0].clone(memory_format=torch.contiguous_format)
    for value in values[1:]:
        total += value
    return total
