"""Memory of pipeline ranks: read off the schedule's events, it agrees with timelines and sums."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from autoplan.capture import Captured, capture
from autoplan.memory.liveness import timeline_of
from autoplan.memory.peak import memory_at_peak
from autoplan.memory.stage_memory import KINDS, StageMemory, Worst, stage_memory
from autoplan.pipelining.rank_memory import rank_memory
from autoplan.pipelining.schedules import Event
from autoplan.plan import Plan
from autoplan.planning import Planned, plan_captured
from autoplan.request import make_request
from tests.planner.models import gpt2, token_ids

SCHEDULES = ("gpipe", "1f1b", "interleaved-1f1b", "zero-bubble", "zbv")
MICROBATCHES = 4
RECOMPUTE: tuple[Any, ...] = (None, True)


@cache
def captured() -> Captured:
    ids = token_ids(2, 16)
    return capture(gpt2(n_layer=4, resid_pdrop=0.1), (ids,), {"labels": ids})


@cache
def planned(schedule: str, recompute: Any = None) -> Plan:
    parallel = {"pipeline": {"size": 2, "schedule": schedule}, "data": 2}
    request = make_request(4, "cpu", parallel, microbatches=MICROBATCHES, recompute=recompute)
    return plan_captured(captured(), request, "model").plan


def given_bytes() -> int:
    """Of all arguments, whole."""
    return sum(each.meta.num_bytes for each in captured().inputs_of("input")) * MICROBATCHES


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_one_microbatch_of_a_whole_model_peaks_as_its_timeline(recompute: Any) -> None:
    request = make_request(2, "cpu", {"data": 2}, recompute=recompute)
    found = plan_captured(captured(), request, "model")
    assert isinstance(found, Planned)
    parts = found.annotated, found.choices, found.pricer, found.recomputed
    held = stage_memory(*parts)
    memory = rank_memory([Event("forward", 0, 0), Event("backward", 0, 0)], {0: held})
    timeline = timeline_of(found.annotated, found.pricer, found.recomputed)
    expected = memory_at_peak(timeline, found.choices)
    assert memory.total == pytest.approx(expected.total, abs=len(KINDS))
    assert memory.moment == f"stage 0, {expected.moment}"


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_rank_of_one_stage_peaks_as_the_stage_was_solved(schedule: str, recompute: Any) -> None:
    plan = planned(schedule, recompute)
    assert plan.pipeline is not None
    for row, stage in zip(plan.pipeline.stages, plan.stages, strict=True):
        assert row.peak_memory_bytes == pytest.approx(stage.memory.total, abs=2 * len(KINDS))
        more = row.rank_peak_memory_bytes - row.peak_memory_bytes
        assert 0 <= more <= given_bytes()  # arguments that only other stages read


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stages_together_take_less_than_their_sum(schedule: str, recompute: Any) -> None:
    plan = planned(schedule, recompute)
    assert plan.pipeline is not None
    for rank in range(plan.pipeline.size):
        rows = [row for row in plan.pipeline.stages if row.rank == rank]
        (whole,) = {row.rank_peak_memory_bytes for row in rows}
        peaks = [row.peak_memory_bytes for row in rows]
        assert max(peaks) <= whole <= sum(peaks) + given_bytes()
    fullest = max(row.rank_peak_memory_bytes for row in plan.pipeline.stages)
    assert plan.peak_memory_bytes == fullest


def amounts(**sizes: float) -> Any:
    return np.array([sizes.get(kind, 0.0) for kind in KINDS])


def stage(kept: float, waiting: float, gradients: float, **stored: float) -> StageMemory:
    """A stage whose forward needs 1 byte, and whose halves of backward 2, beside what is kept."""
    parameters = amounts(parameters=sum(stored.values()))
    own = amounts(activations=kept + 2.0)
    first = own + amounts(gradients=gradients)
    events: Any = {
        ("forward", each): Worst("f", amounts(activations=1.0)) for each in (True, False)
    }
    for kind in ("backward", "backward_input", "backward_weight"):
        events[kind, True] = Worst("b", own if kind == "backward_input" else first)
        events[kind, False] = Worst("b", own)
    end = Worst("end", parameters)
    return StageMemory(
        resident=parameters,
        kept=amounts(activations=kept),
        waiting=amounts(activations=waiting),
        gradients=amounts(gradients=gradients),
        events=events,
        ends=(end, end, end),
        arguments=0.0,
        stored={path: (amounts(parameters=s), amounts(parameters=s)) for path, s in stored.items()},
        recomputes=False,
    )


def test_what_is_held_between_events() -> None:
    stages = {0: stage(10.0, 15.0, 100.0, a=7.0), 1: stage(20.0, 25.0, 50.0, a=7.0, b=3.0)}
    order = [
        Event("forward", 0, 0),  # a and b once: 10, + 1
        Event("forward", 1, 0),  # 10, kept 10, + 1
        Event("forward", 0, 1),  # 10, kept 10 + 20, + 1
        Event("backward_input", 1, 0),  # 10, kept 10 + 10, + 22
        Event("backward_input", 0, 0),  # 10, kept 10 and waiting 25, + 12
        Event("backward_weight", 1, 0),  # 10, kept 10 and waiting 15, + 22 and gradients 50
        Event("backward", 0, 1),  # 10, waiting 15, gradients 50, + 12 and gradients 100
        Event("backward_weight", 0, 0),  # 10, gradients 50 + 100, + 12
    ]
    peaks = [rank_memory(order[:count], stages).total for count in range(1, len(order) + 1)]
    assert peaks == [11, 21, 41, 52, 57, 107, 187, 187]


def test_inference_holds_one_microbatch() -> None:
    stages = {0: stage(10.0, 15.0, 100.0, a=7.0)}
    order = [Event("forward", 0, number) for number in range(4)]
    assert rank_memory(order, stages, training=False).total == 8
    assert rank_memory(order, stages, arguments=5.0, training=False).total == 13
