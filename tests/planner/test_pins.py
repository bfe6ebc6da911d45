"""The price of a pin: exactly what a plan without it saves."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from autoplan.capture import Captured, capture
from autoplan.errors import InfeasibleError
from autoplan.hints.demands import Demand
from autoplan.hints.inside import hint
from autoplan.hints.pins import PinPrice, price_pins
from autoplan.planning import plan_captured
from autoplan.report import _hints
from autoplan.units import seconds, size
from tests.planner.demanded import Demanded, demanded
from tests.planner.models import MLP, Residual

ONE: dict[str, Any] = {"devices": 4, "parallel": {"mesh": {"x": 4}}}


class Pinned(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(hint(self.up(x), "B"))).square().mean()


@pytest.fixture(scope="module")
def graphs() -> dict[str, Captured]:
    return {
        "mlp": capture(MLP(64, 256), (torch.randn(32, 64),)),
        "pinned": capture(Pinned(64, 256), (torch.randn(32, 64),)),
        "blocks": capture(Residual(3), (torch.randn(8, 16),)),
    }


def prices(problem: Demanded, **options: Any) -> tuple[PinPrice, ...]:
    return price_pins(problem.plan(problem.demands), problem.demands, problem.plan, **options)


@pytest.mark.parametrize(
    ("model", "hints", "options"),
    [
        ("mlp", {"up.weight": "use: S(1)"}, ONE),
        ("mlp", {"up.weight": "use: S(1)", "x": "S(1)", "down.bias": "B"}, ONE),
        ("mlp", {"up": "S(0)", "down.weight": "!S", "up.weight": "S(0)"}, {}),
        ("mlp", {"up.weight": "S(1)"}, {"devices": 4, "parallel": None, "preset": "fsdp"}),
        ("mlp", {"up": "S(1)"},
         {"parallel": {"data": 2, "tensor": {"size": 2, "mode": "1d"}}}),
        ("blocks", {"layers.*.up.weight": "B", "layers.1": "S(1)"}, ONE),
        ("pinned", {"up.weight": "S(1)"}, ONE),
    ],
    ids=str,
)  # fmt: skip
def test_a_price_is_what_planning_without_it_saves(
    graphs: dict[str, Captured], model: str, hints: dict[str, Any], options: dict[str, Any]
) -> None:
    problem = demanded(graphs[model], hints=hints, **options)
    plan = problem.plan(problem.demands)
    pins = [each for each in problem.demands if each.kind != "memory"]
    found = prices(problem)
    by_name = {each.hint: each for each in found}
    free = problem.plan([each for each in problem.demands if each.kind == "memory"])
    for pin in pins:
        price = by_name.pop(pin.text)
        without = problem.plan([each for each in problem.demands if each != pin])
        saved = plan.step_time_s - without.step_time_s
        assert price.time_s == pytest.approx(saved, abs=1e-9 * plan.step_time_s)
        assert saved >= -1e-9 * plan.step_time_s
        if price.time_s:
            assert price.memory_bytes == plan.peak_memory_bytes - without.peak_memory_bytes
            assert not price.note
        else:
            assert (price.memory_bytes, price.note) == (0, "costs nothing")
    together = by_name.pop("all of them together", None)
    assert not by_name
    if together is not None:
        assert together.time_s == pytest.approx(plan.step_time_s - free.step_time_s)
        assert together.time_s is not None
        assert together.time_s >= max(each.time_s or 0.0 for each in found[:-1]) - 1e-12
    else:
        assert len(pins) == 1 or not any(each.time_s for each in found)


def test_a_pin_that_agrees_costs_nothing(graphs: dict[str, Captured]) -> None:
    free = demanded(graphs["mlp"], **ONE)
    plan = plan_captured(free.captured, free.request, "model").plan
    hints = {row.path: row.layout for row in plan.tensors if row.kind == "parameter"}
    problem = demanded(graphs["mlp"], hints=hints, **ONE)
    found = prices(problem)
    assert len(found) == len(hints)
    assert all((e.time_s, e.memory_bytes, e.note) == (0.0, 0, "costs nothing") for e in found)
    # One plan without any of them settles it.
    assert len(problem.tried) == 2


def test_two_pins_that_ask_for_the_same_cost_nothing_alone(graphs: dict[str, Captured]) -> None:
    """Each is free beside the other; the row of both together shows what they cost."""
    hints = {"up.weight": {"use": "S(1)"}, "up.w*": "use: S(1)"}
    first, second, together = prices(demanded(graphs["mlp"], hints=hints, **ONE))
    assert first.note == second.note == "costs nothing"
    assert together.hint == "all of them together"
    assert together.time_s is not None
    assert together.time_s > 0


def test_without_hints_there_is_nothing_to_price(graphs: dict[str, Captured]) -> None:
    problem = demanded(graphs["mlp"], **ONE)
    assert prices(problem) == ()
    assert len(problem.tried) == 1


def test_the_report_shows_every_price_in_time_and_bytes(graphs: dict[str, Captured]) -> None:
    hints = {"up.weight": {"use": "S(1)"}, "down.bias": "B", "x": "S(1)"}
    problem = demanded(graphs["mlp"], hints=hints, **ONE)
    pins = prices(problem)
    text = io.StringIO()
    _hints(Console(file=text, width=118, color_system=None), (), pins)
    lines = text.getvalue().splitlines()
    assert lines[:2] == ["", "hints (what a plan without one alone saves a step)"]
    for pin, line in zip(pins, lines[2:], strict=True):
        assert line.strip().startswith(pin.hint)
        assert pin.time_s is not None
        assert pin.memory_bytes is not None
        wanted = "costs nothing" if pin.note else seconds(pin.time_s)
        assert wanted in line
        if not pin.note:
            sign = "-" * (pin.memory_bytes < 0)
            assert line.endswith(sign + size(abs(pin.memory_bytes)))
    assert any(pin.time_s for pin in pins)


class Plan:
    step_time_s, peak_memory_bytes = 2.0, 8


DEMANDS = [Demand("hint", "'a': 'B'"), Demand("hint", "'b': 'B'"), Demand("memory", "the memory")]


def test_a_pin_without_which_there_is_no_plan_says_so() -> None:
    def plan(kept: Any) -> Any:
        if DEMANDS[0] not in kept:
            raise InfeasibleError("out of time")
        return Plan()

    first, second, together = price_pins(Plan(), DEMANDS, plan)
    assert first.time_s is None
    assert first.note == "no plan is found without it: out of time"
    assert second.note == "costs nothing"
    assert together.time_s is None


def test_what_is_not_priced_in_time_says_so() -> None:
    class Faster:
        step_time_s, peak_memory_bytes = 1.0, 10

    found = price_pins(Plan(), DEMANDS, lambda kept: Faster(), time_limit_s=-1.0)
    assert [each.note for each in found[:2]] == ["not priced: the time limit is over"] * 2
    assert (found[2].time_s, found[2].memory_bytes) == (1.0, -2)
