"""Advice on pipelines: other ways to run their stages, each simulated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from autoplan.errors import AutoplanError, ConfigError
from autoplan.html.words import percent
from autoplan.pipelining.events import simulate
from autoplan.pipelining.joined import schedule_of, times_of
from autoplan.pipelining.schedules import SCHEDULES, Schedule, read_schedule
from autoplan.plan import Pipeline, Plan, StageRow
from autoplan.units import seconds

WORTH = 0.005
"""The part of a step below which nothing is said."""
Said: TypeAlias = tuple[float, str]
"""Seconds of a step that something is worth, and a sentence on it."""
_MOST_SIMULATED = 10_000
"""Microbatches times stages up to which other ways to run them are simulated."""


def on_pipeline(plan: Plan) -> Iterator[Said]:
    """What waiting costs, and what of the cut and the schedule would change that, simulated."""
    pipeline = plan.pipeline
    if pipeline is None or pipeline.bubble < 0.05:
        return
    if plan.microbatches * len(plan.stages) > _MOST_SIMULATED:
        return
    tried = [*_microbatches(plan, pipeline), *_schedules(plan, pipeline), *_even(plan, pipeline)]
    helping = [each for each in tried if each[0] > WORTH * plan.step_time_s]
    yield from helping
    if not helping:
        yield (
            0.0,
            f"Ranks wait {percent(pipeline.bubble, 1.0)} of their time. Simulated with these "
            "stages, neither twice the microbatches nor another schedule nor stages of equal work "
            "would make a step shorter.",
        )


def _microbatches(plan: Plan, pipeline: Pipeline) -> Iterator[Said]:
    """Twice as many, each half as long as now."""
    rows = [
        replace(
            row,
            forward_s=row.forward_s / 2,
            backward_s=row.backward_s / 2,
            forward_transfer_s=row.forward_transfer_s / 2,
            backward_transfer_s=row.backward_transfer_s / 2,
        )
        for row in pipeline.stages
    ]
    count = 2 * plan.microbatches
    step_s = _simulated(plan, schedule_of(pipeline), rows, count)
    yield (
        plan.step_time_s - step_s,
        f"With microbatches={count} instead of {plan.microbatches} a step would take "
        f"{_less(plan, step_s)}, if half a microbatch takes half the time.",
    )


def _schedules(plan: Plan, pipeline: Pipeline) -> Iterator[Said]:
    """The best other schedule that runs these stages on these ranks."""
    own = schedule_of(pipeline)
    found = []
    for name in SCHEDULES:
        try:
            other = read_schedule(name, own.chunks)
        except ConfigError:
            continue
        if other.name != own.name and other.v_shaped == own.v_shaped:
            found.append((_simulated(plan, other, pipeline.stages, plan.microbatches), other.name))
    if found:
        step_s, name = min(found)
        yield (
            plan.step_time_s - step_s,
            f"With schedule={name!r} instead of {own.name!r} a step would take "
            f"{_less(plan, step_s)}, if what is in flight then fits in memory.",
        )


def _even(plan: Plan, pipeline: Pipeline) -> Iterator[Said]:
    """The same work in stages of equal length, where they are uneven."""
    works = [0.0] * pipeline.size
    for row in pipeline.stages:
        works[row.rank] += plan.microbatches * (row.forward_s + row.backward_s) + row.once_s
    uneven = max(works) * len(works) / (sum(works) or 1.0) - 1
    if uneven < 0.05:
        return
    rows, count = pipeline.stages, len(pipeline.stages)
    even = [
        replace(
            row,
            forward_s=sum(each.forward_s for each in rows) / count,
            backward_s=sum(each.backward_s for each in rows) / count,
            once_s=sum(each.once_s for each in rows) / count,
        )
        for row in rows
    ]
    step_s = _simulated(plan, schedule_of(pipeline), even, plan.microbatches)
    loads = [plan.microbatches * (row.forward_s + row.backward_s) + row.once_s for row in rows]
    text = (
        f"Stages are uneven: in a step the slowest rank works {percent(uneven, 1.0)} longer than "
        f"the mean, and stage {loads.index(max(loads))} is the longest"
    )
    if pipeline.actual != pipeline.automatic:
        text += "; the cut was asked for, and the solver by itself takes another one, see Pipeline"
    yield (
        plan.step_time_s - step_s,
        f"{text}. With stages of equal work a step would take {_less(plan, step_s)}.",
    )


def _less(plan: Plan, step_s: float) -> str:
    """A shorter step, and by how much: `2.27 ms (10 % less)`."""
    return f"{seconds(step_s)} ({percent(plan.step_time_s - step_s, plan.step_time_s)} less)"


def second_runs_s(plan: Plan) -> float:
    """What a step saves without its second runs; of a pipeline simulated, since ranks overlap."""
    if plan.pipeline is None or plan.microbatches * len(plan.stages) > _MOST_SIMULATED:
        return plan.recomputation_s
    rows = [
        replace(row, backward_s=row.backward_s - stage.recomputation_s / plan.microbatches)
        for row, stage in zip(plan.pipeline.stages, plan.stages, strict=True)
    ]
    step_s = _simulated(plan, schedule_of(plan.pipeline), rows, plan.microbatches)
    return plan.step_time_s - step_s


def _simulated(plan: Plan, schedule: Schedule, rows: Sequence[StageRow], count: int) -> float:
    """Seconds of a step of `count` microbatches; without end where the schedule cannot run."""
    assert plan.pipeline is not None
    try:
        orders = schedule.orders(plan.pipeline.size, count, not plan.training)
        return simulate(orders, times_of(rows, plan.pipeline.size)).makespan_s
    except AutoplanError:
        return math.inf
