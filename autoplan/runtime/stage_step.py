"""One stage during one step: forwards and backwards of microbatches on the ranks present here.

A model without a pipeline is one stage that receives nothing and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from autoplan.runtime.executor import Executor
from autoplan.runtime.leaves import Handover, backward, leaf_of
from autoplan.runtime.program import OutputSpec, Program, TensorSpec
from autoplan.runtime.recompute import parts_of
from autoplan.runtime.split_backward import Halves

Value = Any
"""What an executor passes between the parts of a program: the local tensors of a logical one."""


class Feed(Protocol):
    """What a stage is given of the outside, and what it gives, a microbatch at a time."""

    def inputs(self, microbatch: int) -> list[Value]:
        """The changing buffers and the arguments, as the body takes them; asked for just before."""

    def take(self, microbatch: int, outputs: list[Value], buffers: list[Value]) -> None:
        """The body's outputs, detached, and the new buffers; what nobody keeps is freed."""


class StageStep:
    """Runs the microbatches of a step: `forward` of each, `backward` (or its halves), then `end`.

    number: of the stage in its pipeline.
    values: what the prologue returned; its graph waits for `end`.
    first_step: the position in the sequence of random numbers of microbatch 0.
    grad: without it nothing is kept for a backward, and none may be asked for.
    losses: by microbatch, detached, of the stage whose program has the loss.
    """

    def __init__(
        self,
        executor: Executor,
        programs: Sequence[Program],
        values: Sequence[Value],
        feed: Feed,
        *,
        number: int = 0,
        microbatches: int = 1,
        first_step: int = 0,
        grad: bool = True,
    ) -> None:
        self.number, self.executor, self.grad = number, executor, grad
        self.losses: dict[int, Tensor] = {}
        self._programs, self._feed = programs, feed
        self._microbatches, self._first_step = microbatches, first_step
        self._leaves = [self._leaf(value) for value in values]
        self._handovers = [[Handover(each) for each in executor.tensors(v)] for v in values]
        self._flights: dict[int, _Flight] = {}
        self._rest: dict[int, Callable[[], object]] = {}
        self._recomputes = any(True for _ in parts_of(programs[0].body))

    @property
    def received(self) -> tuple[TensorSpec, ...]:
        """What `forward` takes from the stage before."""
        return self._programs[0].received

    @property
    def sent(self) -> tuple[TensorSpec, ...]:
        """What `forward` gives to the next stage."""
        return self._programs[0].sent

    @property
    def program(self) -> Program:
        """Of the first rank that is present here."""
        return self._programs[0]

    @property
    def in_flight(self) -> int:
        """Microbatches of which something is kept for a backward."""
        return len(self._flights.keys() | self._rest.keys())

    # -- a microbatch -----------------------------------------------------------------------

    def forward(self, microbatch: int, received: list[Value] | None = None) -> list[Value]:
        """What is sent, detached.

        Keeps the graph for a backward, and no memory of what is received or sent beside it.
        """
        executor, program = self.executor, self.program
        given = received or []
        with torch.set_grad_enabled(self.grad):
            entered = [self._enter(*each) for each in zip(given, self.received, strict=True)]
            doors = [each for _, each in entered]
            executor.set_step(self._first_step + microbatch)
            inputs = [*self._leaves, *self._feed.inputs(microbatch), *(v for v, _ in entered)]
            del entered
            results = executor.run("body", self._programs, inputs)
            del inputs
            loss = None
            if program.loss is not None:
                place = program.outputs[program.loss]
                assert isinstance(place, OutputSpec)
                loss = executor.take(results[place.position])
                self.losses[microbatch] = loss.detach()
            last = len(results) - len(program.updates)
            first = last - len(self.sent)
            if self.grad:
                roots = self._roots(results[first:last])
                flight = _Flight(doors, roots, None if loss is None else _Root(loss))
                self._flights[microbatch] = flight
            del loss
        results = [self._detached(value) for value in results]
        sent = results[first:last]
        self._feed.take(microbatch, results[:first], results[last:])
        return sent

    def backward(
        self, microbatch: int, gradients: list[Value | None] | None = None
    ) -> list[Value | None]:
        """The gradients of what was received, None where there is none; empties `gradients`.

        gradients: of what was sent, None where there is none. Gradients of the prologue's values
        add up until `end`; what was kept of the microbatch is freed.
        """
        flight = self._flights.pop(microbatch)
        backward([root.give(grad) for root, grad in self._seeds(microbatch, flight, gradients)])
        return self._caught(flight)

    def backward_input(
        self, microbatch: int, gradients: list[Value | None] | None = None
    ) -> list[Value | None]:
        """As `backward`, but leaves the gradients of the prologue's values to `backward_weight`.

        A stage that recomputes has them all at once here, since every further backward would run
        its parts again; one that receives nothing differentiable does everything later.
        """
        flight = self._flights[microbatch]
        doors = [door for doors in flight.doors for door in doors]
        if self._recomputes:
            self._rest[microbatch] = _nothing
            return self.backward(microbatch, gradients)
        if not doors:
            given = [None] * len(flight.roots) if gradients is None else list(gradients)
            self._rest[microbatch] = partial(self.backward, microbatch, given)
            ([] if gradients is None else gradients).clear()
            return [None] * len(flight.doors)
        del self._flights[microbatch]
        seeds = self._seeds(microbatch, flight, gradients)
        halves = Halves([(root.edge, grad) for root, grad in seeds if grad is not None])
        del seeds
        self._rest[microbatch] = halves.leaves
        for door, grad in zip(doors, halves.inputs([door.edge for door in doors]), strict=True):
            door.caught.append(grad)
        return self._caught(flight)

    def backward_weight(self, microbatch: int) -> None:
        """The rest of a `backward_input`; frees what was kept of the microbatch."""
        self._rest.pop(microbatch)()

    def end(self) -> None:
        """The backward of the prologue, after all microbatches; the step is over."""
        backward(self.roots())

    def roots(self) -> list[Tensor | None]:
        """Where the backward of the prologue starts; empties what waits for it.

        Of several stages on one rank they start together, since they may share parameters.
        """
        tensors = self.executor.tensors
        roots = [
            handover.take(each)
            for given, leaf in zip(self._handovers, self._leaves, strict=True)
            for handover, each in zip(given, tensors(leaf), strict=True)
        ]
        self._leaves.clear()  # gathered values are spent
        self._handovers.clear()
        return roots

    # -- values with and without graphs -----------------------------------------------------

    def _leaf(self, value: Value) -> Value:
        executor = self.executor
        return executor.rebuild(value, [leaf_of(each) for each in executor.tensors(value)])

    def _detached(self, value: Value) -> Value:
        executor = self.executor
        return executor.rebuild(value, [each.detach() for each in executor.tensors(value)])

    def _enter(self, value: Value, spec: TensorSpec) -> tuple[Value, list[_Door]]:
        """A received value as the body takes it, and where its gradient comes out."""
        if not (self.grad and spec.requires_grad):
            return value, []
        doors = [_Door(each) for each in self.executor.tensors(value)]
        return self.executor.rebuild(value, [door.inside() for door in doors]), doors

    def _roots(self, sent: Sequence[Value]) -> list[list[_Root]]:
        return [[_Root(each) for each in self.executor.tensors(value)] for value in sent]

    def _seeds(
        self, microbatch: int, flight: _Flight, gradients: list[Value | None] | None
    ) -> list[tuple[_Root, Tensor | None]]:
        """Where a backward starts, and with which gradients; empties `gradients`."""
        seeds: list[tuple[_Root, Tensor | None]] = []
        given = [] if gradients is None else gradients
        for roots, gradient in zip(flight.roots, given or [None] * len(flight.roots), strict=True):
            if gradient is not None:
                seeds += zip(roots, self.executor.tensors(gradient), strict=True)
        given.clear()
        if flight.loss is not None:
            one = torch.ones_like(self.losses[microbatch])
            seeds.append((flight.loss, one / self._microbatches))
        return [(root, grad) for root, grad in seeds if root.exists]

    def _caught(self, flight: _Flight) -> list[Value | None]:
        """What came out at the doors."""
        results: list[Value | None] = []
        for doors in flight.doors:
            grads: list[Any] = [door.take() for door in doors]
            none = all(grad is None for grad in grads)
            results.append(None if none else self.executor.rebuild(None, grads))
        return results


class _Entrance(torch.autograd.Function):
    """A received tensor at the head of a stage's graph, which does not hold its memory.

    A leaf would: what nothing saves may go when the forward is over.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, caught: list[Tensor | None]) -> Tensor:
        ctx.caught = caught
        ctx.set_materialize_grads(False)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        ctx.caught.append(grad)
        return None, None, None


class _Door:
    """Where a received local tensor comes in, and its gradient out, once."""

    def __init__(self, tensor: Tensor) -> None:
        anchor = torch.empty(0, requires_grad=True)
        self.caught: list[Tensor | None] = []
        self._entered = [_Entrance.apply(anchor, tensor, self.caught)]  # type: ignore[no-untyped-call]
        self.edge = get_gradient_edge(self._entered[0])

    def inside(self) -> Tensor:
        """The tensor at the head of the stage's graph, given away."""
        tensor: Tensor = self._entered.pop()
        return tensor

    def take(self) -> Tensor | None:
        """The gradient, given away; None where there is none."""
        return self.caught.pop() if self.caught else None


class _Root(Handover):
    """A value that a backward starts from: its graph without its memory."""

    @property
    def exists(self) -> bool:
        """Whether anything that the value depends on wants a gradient."""
        return self._root is not None

    @property
    def edge(self) -> GradientEdge:
        """Of the value itself."""
        assert self._root is not None
        (node, number), *_ = get_gradient_edge(self._root).node.next_functions
        assert node is not None
        return GradientEdge(node, number)

    def give(self, gradient: Tensor | None) -> Tensor | None:
        """Have `gradient` wait; the root of the backward that hands it on."""
        if self._root is None or gradient is None:
            return None
        self._waiting.append(gradient)
        return self._root


@dataclass
class _Flight:
    """What is kept of a microbatch: a list of local tensors' doors or roots a value."""

    doors: list[list[_Door]]
    roots: list[list[_Root]]
    loss: _Root | None


def _nothing() -> None:
    pass
