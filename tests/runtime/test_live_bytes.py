"""The meter counts what is alive: programs whose peaks are known by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.live_bytes import LiveBytes

KILO = 250
"""Elements of float32 that take a thousand bytes."""


def test_a_tensor_lives_from_its_op_to_its_last_reference() -> None:
    with LiveBytes() as meter:
        x = torch.zeros(KILO)
        y = x + 1
        view = y[1:]
        del x, y
        assert meter.live_bytes == 1000  # the view holds its base
        del view
        assert meter.live_bytes == 0
    peak = meter.peak()
    assert (peak.num_bytes, peak.op) == (2000, "aten.add.Tensor")
    assert sorted(each.op for each in peak.held) == ["aten.add.Tensor", "aten.zeros.default"]


def test_what_was_alive_before_counts_where_it_is_given_or_read() -> None:
    given_one, read, unknown = (torch.zeros(KILO) for _ in range(3))
    with LiveBytes({"a": [given_one]}) as meter:
        read.sum()
    assert meter.start_bytes == 2000
    del unknown


def test_backward_is_seen() -> None:
    """At the product's backward: factors, the square kept, its gradient, and two new ones."""
    x = torch.zeros(KILO, requires_grad=True)
    w = torch.zeros(KILO, requires_grad=True)
    with LiveBytes(x, w) as meter:
        meter.mark("forward")
        loss = ((x * w) ** 2).sum()
        meter.mark("backward")
        loss.backward()
    assert meter.peak("forward").num_bytes == 4004  # x, w, the product, its square; the sum
    assert meter.live_bytes == 4004  # x, w and their gradients; the loss
    peak = meter.peak("backward")
    assert peak.backward
    # x, w, the product, three of the square's gradient formula; the loss and its gradient.
    assert peak.num_bytes == 6008


def test_the_optimizer_is_seen() -> None:
    """AdamW, one parameter at a time: itself, its gradient, two states, and two temporaries."""
    w = torch.zeros(KILO, requires_grad=True)
    optimizer = torch.optim.AdamW([w], foreach=False)
    w.grad = torch.ones(KILO)
    optimizer.step()
    with LiveBytes(w, w.grad, optimizer.state_dict()["state"]) as meter:
        optimizer.step()
    assert meter.peak().num_bytes == pytest.approx(6000, abs=16)


def test_phases_have_peaks_of_their_own() -> None:
    with LiveBytes() as meter:
        meter.mark("large")
        torch.zeros(4 * KILO)
        meter.mark("small")
        torch.zeros(KILO)
    assert meter.peak("large").num_bytes == meter.peak().num_bytes == 4000
    assert meter.peak("small").num_bytes == 1000


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=30))
def test_any_order_of_births_and_deaths(steps: list[tuple[bool, int]]) -> None:
    """Against a count by hand: a step makes a tensor, or drops the oldest."""
    held: list[torch.Tensor] = []
    alive = most = 0
    with LiveBytes() as meter:
        for makes, size in steps:
            if makes or not held:
                held.append(torch.zeros(size))
                alive += 4 * size
            else:
                alive -= 4 * held.pop(0).numel()
            most = max(most, alive)
            assert meter.live_bytes == alive
    assert meter.peak().num_bytes == most
