"""Gathering parameters in the body: whole where they are read, shards everywhere else.

What autograd keeps of a gathered parameter for backward is replaced by how to make it again: its
storage carries that as a mark, and hooks on saved tensors put the mark in its place. So each reader
of a parameter gathers it, and its backward gathers it again, in the order of the graph, the same
one on every rank. Inside a recomputed part the second run gathers, and backward has that copy. A
backward in two halves gathers in each.

Hooks take autograd's check that nothing kept was changed in place; they have their own. A shard
does not see that its parameter was changed, as a DTensor or as a logical tensor: the parameter
that a value was stored as is a mark of its memory, too, and its version counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from autoplan.boxing import Step


class Way(Protocol):
    """From shards to wholes and back, of the ranks that are present here."""

    def there(self, shards: Sequence[Tensor]) -> Sequence[Tensor]:
        """The wholes, without a graph."""

    def again(self, shards: Sequence[Tensor], number: int) -> Tensor:
        """One of the wholes once more, for a rank whose backward asks for it."""

    def back(
        self, grads: Sequence[Tensor | None], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor | None]:
        """Gradients of the shards; differentiable. None where no gradient comes."""


@dataclass(frozen=True)
class Alone:
    """The way of one rank among others: `run` boxes without, `box` with a gradient."""

    steps: Sequence[Step]
    run: Callable[[Sequence[Tensor], Sequence[Step]], Sequence[Tensor]]
    box: Callable[..., Sequence[Tensor]]

    def there(self, shards: Sequence[Tensor]) -> Sequence[Tensor]:
        values = shards
        for step in self.steps:
            values = self.run(values, [step])
        return values

    def again(self, shards: Sequence[Tensor], number: int) -> Tensor:
        return self.there(shards)[number]

    def back(
        self, grads: Sequence[Tensor | None], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor | None]:
        (grad,) = grads
        for step in reversed(self.steps):
            if grad is not None:
                (grad,) = self.box([grad], [step.reversed], self.run)
        return [grad]


def gathered(way: Way, shards: Sequence[Tensor]) -> list[Tensor]:
    """The wholes of `shards`, of which hooks keep shards; gradients go back the same way."""
    return list(_Gathering.apply(way, *shards))  # type: ignore[no-untyped-call]


def reduced(way: Way, shards: Sequence[Tensor], wholes: Sequence[Tensor]) -> list[Tensor]:
    """`wholes`, which have no gradient of their own: it goes to the shards."""
    return list(_Reducing.apply(way, *shards, *wholes))  # type: ignore[no-untyped-call]


class _Gathering(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Way, *shards: Tensor) -> Any:
        ctx.way, ctx.shapes = way, [each.shape for each in shards]
        ctx.set_materialize_grads(False)
        wholes = tuple(way.there(shards))
        sources = [each.detach() for each in shards]
        for number, whole in enumerate(wholes):
            mark = _Mark(way, sources, number, whole.dtype, _Versions.of(sources[number]))
            setattr(whole.untyped_storage(), _NAME, mark)
        return wholes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None, *ctx.way.back(grads, ctx.shapes)


class _Reducing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Way, *values: Tensor) -> Any:
        count = len(values) // 2
        ctx.way, ctx.shapes = way, [each.shape for each in values[:count]]
        ctx.set_materialize_grads(False)
        return tuple(whole.view_as(whole) for whole in values[count:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None, *ctx.way.back(grads, ctx.shapes), *(None for _ in grads)


_NAME = "_autoplan_gathered"
"""Of the mark among a storage's attributes, which live as long as its memory (torch >= 2.1)."""

_PARAMETER = "_autoplan_parameter"
"""Of a weak reference, since a parameter holds its memory, to what `stored_as` was told."""


def stored_as(parameter: Tensor, shards: Sequence[Tensor]) -> None:
    """Have whatever shares memory with `shards` count as changed where `parameter` is."""
    for each in shards:
        setattr(each.untyped_storage(), _PARAMETER, weakref.ref(parameter))


@dataclass(frozen=True, eq=False)
class _Versions:
    """How often a tensor, and the parameter that it is stored as, had been changed in place."""

    tensor: Tensor
    parameter: Tensor | None
    counts: tuple[int, int]

    @staticmethod
    def of(tensor: Tensor) -> _Versions:
        reference = getattr(tensor.untyped_storage(), _PARAMETER, None)
        parameter = None if reference is None else reference()
        return _Versions(tensor, parameter, _counts(tensor, parameter))

    def check(self) -> None:
        """Raise RuntimeError, as autograd does, where either was changed since."""
        if _counts(self.tensor, self.parameter) == self.counts:
            return
        what, value = "a tensor", self.tensor
        if self.parameter is not None:
            what, value = "a parameter", self.parameter
        raise RuntimeError(
            f"{what} of shape {tuple(value.shape)} was changed in place between forward and "
            "backward, which needs the value that forward used; call optimizer.step() after "
            "backward(), and clone() what else changes."
        )


def _counts(tensor: Tensor, parameter: Tensor | None) -> tuple[int, int]:
    return tensor._version, 0 if parameter is None else parameter._version


@dataclass(eq=False)
class _Mark:
    """How a gathered parameter is made again; `versions`: of its shard, which must not change.

    Several views of it may be kept, by ops side by side: the first that is wanted in a backward
    has it gathered, and the last lets it go. By count, not by who holds what: all ranks alike.
    """

    way: Way
    shards: Sequence[Tensor]
    number: int
    dtype: torch.dtype
    versions: _Versions
    kept: int = 0
    wanted: int = 0
    whole: Tensor | None = None

    def made(self) -> Tensor:
        self.versions.check()
        whole = self.whole
        if whole is None:
            with torch.no_grad():
                whole = self.way.again(self.shards, self.number)
        self.wanted = (self.wanted + 1) % self.kept
        self.whole = whole if self.wanted else None
        return whole


@dataclass(frozen=True, eq=False)
class _Kept:
    """A tensor in the memory of a gathered parameter, as backward will want it."""

    mark: _Mark
    size: torch.Size
    stride: tuple[int, ...]
    offset: Any


def keeping_shards(wanted: bool) -> AbstractContextManager[Any]:
    """Where ops keep, of what is gathered, its shards, and backward checks what they keep.

    wanted: whether anything is gathered, or a parameter is not the tensor that ops read.
    """
    return saved_tensors_hooks(_pack, _unpack) if wanted else nullcontext()


def _pack(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return tensor
    mark = getattr(tensor.untyped_storage(), _NAME, None)
    if mark is None or mark.dtype != tensor.dtype:
        return _Versions.of(tensor)
    mark.kept += 1
    return _Kept(mark, tensor.size(), tensor.stride(), tensor.storage_offset())


def _unpack(kept: Any) -> Tensor:
    if isinstance(kept, _Kept):
        return kept.mark.made().as_strided(kept.size, kept.stride, kept.offset)
    if isinstance(kept, _Versions):
        kept.check()
        return kept.tensor
    assert isinstance(kept, Tensor)
    return kept
