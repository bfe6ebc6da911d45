"""A stage's step: every schedule's events on simulated ranks give the unsplit model's gradients."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.pipelining.schedules import SCHEDULES, Event, read_schedule
from autoplan.runtime.executor import SimulatedExecutor
from autoplan.runtime.pipeline import in_sequence
from autoplan.runtime.program import Program, TensorSpec
from autoplan.runtime.stage_step import StageStep
from tests.runtime.live_bytes import LiveBytes
from tests.runtime.pipeline_steps import Case, check, in_memory
from tests.runtime.stage_programs import ALONE, DTYPE, PAIR, SEED, program, traced

MICROBATCHES = {name: 1 if name == "naive" else 4 for name in SCHEDULES}


@pytest.mark.parametrize("mesh", [ALONE, PAIR], ids=["alone", "pair"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_gradients_are_those_of_the_unsplit_model(name: str, mesh: Mesh) -> None:
    case = Case(name, 2, MICROBATCHES[name], mesh)
    one = in_memory(case)
    check(case, [one], [0])
    schedule = read_schedule(name)
    orders = schedule.orders(2, case.microbatches)
    assert [event for event in one.trace if event in orders[0]] == list(orders[0])
    held = schedule.in_flight(2, case.microbatches)
    assert tuple(one.most[stage] for stage in sorted(one.most)) == held


@pytest.mark.parametrize("name", ["gpipe", "zbv"])
def test_forward_only_keeps_nothing(name: str) -> None:
    case = Case(name, 2, 4, PAIR, forward_only=True)
    one = in_memory(case)
    check(case, [one], [0])
    assert set(one.most.values()) == {0}
    assert {event.kind for event in one.trace} == {"forward"}


@pytest.mark.parametrize("name", ["1f1b", "zero-bubble"])
def test_recomputed_parts_run_twice(name: str) -> None:
    case = Case(name, 2, 4, PAIR, recompute=True)
    check(case, [in_memory(case)], [0])


def test_orders_that_wait_for_each_other() -> None:
    orders = ((Event("backward", 0, 0), Event("forward", 0, 0)), (Event("forward", 1, 0),))
    with pytest.raises(RuntimeError, match="wait for each other at: backward of microbatch 0"):
        list(in_sequence(orders))


# -- memory ---------------------------------------------------------------------------------

ROWS, WIDTH = 64, 32
SIZE = ROWS * WIDTH * 8
"""Bytes of everything but the weights here."""


class Nothing:
    def inputs(self, microbatch: int) -> list[Any]:
        return []

    def take(self, microbatch: int, outputs: list[Any], buffers: list[Any]) -> None:
        pass


def stage_of(body: Callable[..., tuple[Any, ...]], weights: int) -> tuple[Program, list[Tensor]]:
    """A middle stage that runs `body(comm, *weights, received)`, and its weights."""
    names = [f"w{number}" for number in range(weights)]
    value = TensorSpec("h", (ROWS, WIDTH), DTYPE, Layout(), True)
    middle = replace(
        program(1, 3),
        prologue=traced(lambda comm, *w: w, ["comm", *names]),
        body=traced(body, ["comm", *names, "received"]),
        received=(value,),
        sent=(value,),
    )
    torch.manual_seed(0)
    return middle, [torch.randn(WIDTH, WIDTH, dtype=DTYPE).requires_grad_() for _ in names]


def begin(middle: Program, weights: list[Tensor]) -> StageStep:
    executor = SimulatedExecutor(ALONE, torch.device("cpu"), SEED)
    values = executor.run("prologue", [middle], [[w] for w in weights])
    return StageStep(executor, [middle], values, Nothing(), microbatches=2)


@pytest.fixture
def without_collection() -> Iterator[None]:
    """What is in a cycle stays, and shows."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def plain(comm: Any, w0: Any, w1: Any, received: Any) -> tuple[Any, ...]:
    """Two products: each saves what it multiplies; what is received or sent nobody saves."""
    first = torch.matmul(received * 2.0, w0)
    return (torch.matmul(first, w1) + 1.0,)


def value() -> list[Any]:
    return [[torch.ones(ROWS, WIDTH, dtype=DTYPE)]]


@pytest.mark.usefixtures("without_collection")
def test_a_microbatch_holds_what_its_backward_needs() -> None:
    middle, weights = stage_of(plain, 2)
    step = begin(middle, weights)
    with LiveBytes(weights) as meter:
        start = meter.live_bytes
        step.forward(0, value())
        step.forward(1, value())
        assert meter.live_bytes - start == 4 * SIZE
        step.backward(0, value())
        grads = sum(w.nbytes for w in weights)
        assert meter.live_bytes - start == 2 * SIZE + grads
        step.backward(1, value())
        assert meter.live_bytes - start == grads
        step.end()
        assert meter.live_bytes - start == grads


@pytest.mark.usefixtures("without_collection")
def test_a_split_backward_holds_gradients_until_its_second_half() -> None:
    middle, weights = stage_of(plain, 2)
    step = begin(middle, weights)
    with LiveBytes(weights) as meter:
        start = meter.live_bytes
        step.forward(0, value())
        (gradient,) = step.backward_input(0, value())
        assert all(w.grad is None for w in weights)
        # What both products saved, the gradients that reach them, and the one that is returned.
        assert meter.live_bytes - start == 5 * SIZE
        del gradient
        assert meter.live_bytes - start == 4 * SIZE
        step.backward_weight(0)
        assert step.in_flight == 0
        assert meter.live_bytes - start == sum(w.nbytes for w in weights)
        step.end()


@pytest.mark.usefixtures("without_collection")
def test_a_gradient_is_spent_where_it_was_read() -> None:
    """When the second product's backward is over, the gradient that was given is gone."""

    def watched(comm: Any, w0: Any, w1: Any, received: Any) -> tuple[Any, ...]:
        first = comm.watched(torch.matmul(received * 2.0, w0))
        return (torch.matmul(first, w1),)

    middle, weights = stage_of(watched, 2)
    step = begin(middle, weights)
    live: list[int] = []
    with LiveBytes(weights) as meter:

        def watch(x: Tensor) -> Tensor:
            x.register_hook(lambda grad: live.append(meter.live_bytes - start))
            return x

        step.executor.comms[0].watched = watch  # type: ignore[attr-defined]
        start = meter.live_bytes
        step.forward(0, value())
        step.backward(0, value())
    # What the first product saved, the gradient of its result, and that of the second's weight.
    assert live == [2 * SIZE + weights[1].nbytes]


# -- the two halves of a backward -----------------------------------------------------------


def shared(comm: Any, w0: Any, w1: Any, received: Any) -> tuple[Any, ...]:
    """w0 is read twice, the second time behind itself; w1 through its transpose."""
    first = torch.tanh(torch.matmul(received, w0))
    return (torch.matmul(torch.matmul(first, w0), w1.t()) + received,)


def beside(comm: Any, w0: Any, w1: Any, received: Any) -> tuple[Any, ...]:
    """What w0 makes meets the way of what is received only at the end, and w1 never."""
    return (torch.matmul(w0, w0).sum() + received.sin(),)


def alone(comm: Any, w0: Any, w1: Any, received: Any) -> tuple[Any, ...]:
    """Nothing of what is received is read."""
    return (torch.cat([torch.matmul(w0, w1), w0]),)


def through(comm: Any, w0: Any, w1: Any, received: Any) -> tuple[Any, ...]:
    return (received,)


def alike(comm: Any, w0: Any, w1: Any, received: Any) -> tuple[Any, ...]:
    """One gradient for all three: whoever adds to it must have its own."""
    return (torch.cat([w0, w1]) + received,)


@pytest.mark.parametrize("body", [plain, shared, beside, alone, through, alike])
@pytest.mark.parametrize("kind", ["whole", "halves", "halves later"])
def test_halves_are_the_whole(body: Callable[..., tuple[Any, ...]], kind: str) -> None:
    middle, weights = stage_of(body, 2)
    step = begin(middle, weights)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=DTYPE)
    seeds = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=DTYPE)
    again = [w.detach().clone().requires_grad_() for w in weights]
    inputs = [each.clone().requires_grad_() for each in values]
    for given, seed in zip(inputs, seeds, strict=True):
        (body(None, *again, given)[0] * seed).sum().backward()
    found: list[Any] = []
    for number, given in enumerate(values):
        step.forward(number, [[given.clone()]])
    for number, seed in enumerate(seeds):
        run = step.backward if kind == "whole" else step.backward_input
        found += run(number, [[seed.clone()]])
        if kind == "halves":
            step.backward_weight(number)
    for number in range(2) if kind == "halves later" else ():
        step.backward_weight(number)
    assert step.in_flight == 0
    step.end()
    for ours, theirs in zip(weights, again, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    for ours, reference in zip(found, inputs, strict=True):
        assert (ours is None) == (reference.grad is None)
        if ours is not None:
            torch.testing.assert_close(ours[0], reference.grad, rtol=1e-9, atol=1e-12)
