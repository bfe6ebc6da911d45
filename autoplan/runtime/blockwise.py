"""Collective programs with a backward of their own, such as ring attention.

An algorithm is written once, as generators of one rank: they yield a request where ranks meet, and
are given its result. Two drivers run it: real ranks each their own generator, the simulation those
of all ranks in lockstep. A rank holds its own shards and what its requests bring, nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from autoplan.mesh import Mesh
from autoplan.runtime.requests import Broadcast, Exchange, Reduce, Request, Shift

__all__ = [
    "Backward",
    "Blockwise",
    "Broadcast",
    "Exchange",
    "Forward",
    "Reduce",
    "Request",
    "Shift",
    "View",
    "run",
    "run_all",
]


@dataclass(frozen=True)
class View:
    """What an algorithm knows of its rank. `wants`: which of its tensors want a gradient."""

    mesh: Mesh
    coordinates: tuple[int, ...]
    wants: tuple[bool, ...] = ()

    def size(self, axis: str) -> int:
        return self.mesh.size(axis)

    def index(self, axis: str) -> int:
        return self.coordinates[self.mesh.index(axis)]


Forward = Generator[Request, Any, tuple[Tensor, tuple[Tensor, ...]]]
Backward = Generator[Request, Any, tuple[Tensor | None, ...]]


class Blockwise(Protocol):
    """An algorithm on one rank. All ranks yield the same requests on the same axes in turn."""

    def forward(self, view: View, *tensors: Tensor) -> Forward:
        """Returns the output, and what is kept for backward, this rank's shards only."""
        ...

    def backward(self, view: View, kept: tuple[Tensor, ...], grad: Tensor) -> Backward:
        """Returns the gradients of the tensors, None for one that `view` does not want."""
        ...


Perform = Callable[[Request], Any]
"""What a communicator does to the request of one rank."""

PerformAll = Callable[[Sequence[Request]], list[Any]]
"""The same to the requests of all ranks."""


class _Final(torch.autograd.Function):
    """Gradients of the algorithm of that name, which have none of their own."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor | None) -> Any:
        ctx.name = name
        found = tensors[:count]
        return tuple(None if each is None else each.view_as(each) for each in found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            f"{ctx.name} is differentiable once only, and a gradient of its gradient was asked "
            f"for; hint its op to labels that do not run {ctx.name}."
        )


def _once_only(
    algorithm: Blockwise, grads: tuple[Tensor | None, ...], sources: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of a backward; one that is to be differentiated again says that it cannot be.

    Always, where `once_differentiable` looks at what backward was given, and not at what was kept:
    `sources` are both.
    """
    if not torch.is_grad_enabled():
        return grads
    mark = torch.empty(0, requires_grad=True)
    result: tuple[Tensor | None, ...] = _Final.apply(  # type: ignore[no-untyped-call]
        type(algorithm).__name__, len(grads), *grads, mark, *sources
    )
    return result


# -- one rank -------------------------------------------------------------------------------


def run(algorithm: Blockwise, view: View, tensors: Sequence[Tensor], perform: Perform) -> Tensor:
    """The output of `algorithm` on this rank; its gradient is the algorithm's own."""
    result: Tensor = _OnRank.apply(algorithm, view, perform, *tensors)  # type: ignore[no-untyped-call]
    return result


class _OnRank(torch.autograd.Function):
    """One rank's generators, each request performed as it comes."""

    @staticmethod
    def forward(
        ctx: Any, algorithm: Blockwise, view: View, perform: Perform, *tensors: Tensor
    ) -> Tensor:
        ctx.algorithm, ctx.perform = algorithm, perform
        ctx.view = replace(view, wants=ctx.needs_input_grad[3:])
        output, kept = _drive(algorithm.forward(ctx.view, *tensors), perform)
        ctx.save_for_backward(*kept)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        kept = ctx.saved_tensors  # once: recomputed parts give them out no second time
        program = ctx.algorithm.backward(ctx.view, kept, grad)
        with torch.no_grad():
            found = _drive(program, ctx.perform)
        return None, None, None, *_once_only(ctx.algorithm, found, (grad, *kept))


def _drive(program: Generator[Request, Any, Any], perform: Perform) -> Any:
    """What `program` returns, given the result of each of its requests."""
    answers: list[Any] = [None]
    while True:
        try:
            # Popped, so that a result lives no longer than the program wants it.
            request = program.send(answers.pop())
        except StopIteration as done:
            return done.value
        answers.append(perform(request))
        del request


# -- all ranks in one process ---------------------------------------------------------------


def run_all(
    algorithms: Sequence[Blockwise],
    views: Sequence[View],
    tensors: Sequence[Sequence[Tensor]],
    perform: PerformAll,
) -> list[Tensor]:
    """The output of every rank: one algorithm, one view, and the tensors of each."""
    flat = itertools.chain.from_iterable(tensors)
    result = _OnAllRanks.apply(tuple(algorithms), tuple(views), perform, *flat)  # type: ignore[no-untyped-call]
    return list(result)


class _OnAllRanks(torch.autograd.Function):
    """Every rank's generators in lockstep. Tensors are given rank by rank."""

    @staticmethod
    def forward(
        ctx: Any,
        algorithms: tuple[Blockwise, ...],
        views: tuple[View, ...],
        perform: PerformAll,
        *tensors: Tensor,
    ) -> Any:
        wants = [any(each) for each in zip(*_by_rank(ctx.needs_input_grad[3:], views), strict=True)]
        ctx.views = [replace(view, wants=tuple(wants)) for view in views]
        ctx.algorithms, ctx.perform = algorithms, perform
        programs = [
            algorithm.forward(view, *given)
            for algorithm, view, given in zip(
                algorithms, ctx.views, _by_rank(tensors, views), strict=True
            )
        ]
        outputs, kept = zip(*_drive_all(programs, perform), strict=True)
        ctx.save_for_backward(*itertools.chain.from_iterable(kept))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        kept = ctx.saved_tensors
        programs = [
            algorithm.backward(view, held, grad)
            for algorithm, view, held, grad in zip(
                ctx.algorithms, ctx.views, _by_rank(kept, ctx.views), grads, strict=True
            )
        ]
        with torch.no_grad():
            found = _drive_all(programs, ctx.perform)
        flat = tuple(itertools.chain.from_iterable(found))
        return None, None, None, *_once_only(ctx.algorithms[0], flat, (*grads, *kept))


def _by_rank(flat: Sequence[Any], views: Sequence[View]) -> list[tuple[Any, ...]]:
    length = len(flat) // len(views)
    return [tuple(flat[rank * length :][:length]) for rank in range(len(views))]


def _drive_all(programs: Sequence[Generator[Request, Any, Any]], perform: PerformAll) -> list[Any]:
    """What every rank's program returns, given the result of each of their requests."""
    answers: list[Any] = [None] * len(programs)
    while True:
        requests: list[Request] = []
        results: list[Any] = []
        for program in programs:
            try:
                requests.append(program.send(answers.pop(0)))
            except StopIteration as done:
                results.append(done.value)
        if not requests:
            return results
        if results:
            raise RuntimeError(
                f"{len(results)} ranks are done while {len(requests)} wait in {requests[0].kind}; "
                "the ranks of an algorithm must make the same requests."
            )
        kinds = {(each.kind, each.axis) for each in requests}
        if len(kinds) > 1:
            raise RuntimeError(
                f"ranks that should meet ask for different things, {sorted(kinds)}; the ranks of "
                "an algorithm must make the same requests."
            )
        answers = perform(requests)
        del requests
