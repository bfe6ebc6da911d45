"""Advice: what to change for a faster or leaner step, each with what it is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from autoplan.errors import AutoplanError
from autoplan.html.wiring import Asked
from autoplan.html.words import percent, shares
from autoplan.pipelining.events import simulate
from autoplan.pipelining.joined import schedule_of, times_of
from autoplan.plan import Plan
from autoplan.units import seconds, size

_WORTH = 0.005
"""The part of a step below which nothing is said."""
_NEARLY_FULL = 0.6
_SOLVE_S = 5.0
_MOST_HINTS = 3
_TOGETHER = "all of them together"
_UNLIMITED = 1 << 62
Said: TypeAlias = tuple[float, str]
"""Seconds of a step that something is worth, and a sentence on it."""


def advice(plan: Plan, asked: Sequence[Asked]) -> list[str]:
    """Sentences, what saves most first; what was looked at and does not help is said, too."""
    said = [
        *_hints(plan),
        *_bubble(plan),
        *_imbalance(plan),
        *_communication(plan),
        *_computing(plan),
        *_memory(plan, asked),
        *_recomputation(plan),
        *_rules(plan),
        *_unproven(plan),
    ]
    said.sort(key=lambda each: -each[0])
    return [text for _, text in said] or [
        "Nothing stands out: no hint costs time, and no resource is the one limit."
    ]


def _hints(plan: Plan) -> Iterator[Said]:
    costly = [pin for pin in plan.pins if (pin.time_s or 0.0) > _WORTH * plan.step_time_s]
    for pin in sorted(costly, key=lambda pin: -(pin.time_s or 0.0))[:_MOST_HINTS]:
        if pin.time_s is not None:
            name = f"the hint {pin.hint}" if pin.hint.startswith("'") else pin.hint
            name = "all hints and schemes at once" if pin.hint == _TOGETHER else name
            memory = ""
            if pin.memory_bytes:
                word = "less" if pin.memory_bytes > 0 else "more"
                memory = f", with {size(abs(pin.memory_bytes))} {word} memory a device"
            yield (
                pin.time_s,
                f"Give up {name}: a step takes {seconds(pin.time_s)} less "
                f"({percent(pin.time_s, plan.step_time_s)}){memory}.",
            )


def _bubble(plan: Plan) -> Iterator[Said]:
    """More microbatches, simulated: each half as long as now."""
    pipeline = plan.pipeline
    if pipeline is None or pipeline.bubble < 0.05:
        return
    waiting = f"Ranks wait {percent(pipeline.bubble, 1.0)} of their time"
    count = 2 * plan.microbatches
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
    try:
        orders = schedule_of(pipeline).orders(pipeline.size, count, not plan.training)
        run = simulate(orders, times_of(rows, pipeline.size))
    except AutoplanError:
        yield 0.0, f"{waiting}: try another schedule, or another number of microbatches."
        return
    saved = plan.step_time_s - run.makespan_s
    if saved > _WORTH * plan.step_time_s:
        yield (
            saved,
            f"{waiting}. With microbatches={count} instead of {plan.microbatches} a step would "
            f"take {seconds(run.makespan_s)} ({percent(saved, plan.step_time_s)} less), if half a "
            "microbatch takes half the time; or try another schedule, which waits less.",
        )
    else:
        yield 0.0, f"{waiting}; twice the microbatches would not change that. Try another schedule."


def _imbalance(plan: Plan) -> Iterator[Said]:
    pipeline = plan.pipeline
    if pipeline is None or pipeline.imbalance < 0.05:
        return
    loads = [row.forward_s + row.backward_s for row in pipeline.stages]
    slowest = loads.index(max(loads))
    text = (
        f"Stages are uneven: the slowest rank works {percent(pipeline.imbalance, 1.0)} longer than "
        f"the mean, and stage {slowest} is the longest."
    )
    if pipeline.actual != pipeline.automatic:
        text += " The cut was asked for; the solver by itself takes another one, see Pipeline."
    yield plan.step_time_s * (1 - 1 / (1 + pipeline.imbalance)), text


def _communication(plan: Plan) -> Iterator[Said]:
    parts = {each.name: each.time_s for each in shares(plan)}
    if parts["communicating"] < 0.1 * plan.step_time_s:
        return
    spent: dict[str, float] = {}
    for each in plan.collectives:
        if each.phase != "outputs" and each.kind != "send":
            spent[each.axis] = spent.get(each.axis, 0.0) + each.time_s
    if not spent:
        return
    axis = max(spent, key=lambda name: spent[name])
    part = parts["communicating"] * spent[axis] / sum(spent.values())
    yield (
        part / 2,
        f"Communication takes {percent(parts['communicating'], plan.step_time_s)} of a step, most "
        f"of it over “{axis}”: a link twice as fast there saves at most {seconds(part / 2)} "
        f"({percent(part / 2, plan.step_time_s)}). A larger batch helps where parameters and "
        "gradients travel; where values between layers do, it does not.",
    )


def _computing(plan: Plan) -> Iterator[Said]:
    """What helps where computing is nearly all of a step."""
    work = next(each.time_s for each in shares(plan) if each.name == "computing")
    if work < 0.6 * plan.step_time_s:
        return
    spent: dict[str, float] = {}
    for row in plan.operations:
        spent[row.op] = spent.get(row.op, 0.0) + row.forward_s + row.backward_s
    told = ""
    if spent:
        op = max(spent, key=lambda name: spent[name])
        told = f", most of it in {op} ({percent(spent[op], sum(spent.values()))} of the ops)"
    weights = [row for row in plan.tensors if row.kind == "parameter"]
    wide = sum(row.dtype in ("float32", "float64") for row in weights)
    cure = "More or faster devices shorten it; other layouts hardly do."
    if wide * 2 > len(weights):
        cure = (
            f"The parameters are {weights[0].dtype}: a model in bfloat16 computes several times as "
            "fast on most accelerators, and moves half the bytes or less."
        )
    worth_s = work / 2 if wide * 2 > len(weights) else 0.0
    yield worth_s, f"Computing takes {percent(work, plan.step_time_s)} of a step{told}. {cure}"


def _memory(plan: Plan, asked: Sequence[Asked]) -> Iterator[Said]:
    """What memory without end would bring, solved where memory is nearly full."""
    used = plan.peak_memory_bytes / plan.memory_limit_bytes if plan.memory_limit_bytes else 0.0
    if used < _NEARLY_FULL:
        yield (
            0.0,
            f"Memory does not hold the plan back: {size(plan.memory_limit_bytes)} are there and "
            f"{size(plan.peak_memory_bytes)} used. A larger batch fits.",
        )
        return
    if len(asked) != 1 or plan.stages:
        yield 0.0, f"Memory is {percent(used, 1.0)} full; more of it may allow a faster plan."
        return
    question, given = asked[0].question, asked[0].given
    try:
        best = question.within(_UNLIMITED).solve(start=given.choices, time_limit_s=_SOLVE_S)
    except AutoplanError:
        return
    saved = given.step_time_s - best.step_time_s
    if saved > _WORTH * plan.step_time_s:
        yield (
            saved,
            f"Memory limits this plan. With {size(best.peak_memory_bytes)} a device instead of "
            f"{size(plan.memory_limit_bytes)} a step takes {seconds(saved)} less "
            f"({percent(saved, plan.step_time_s)}), with the same blocks recomputed.",
        )
    else:
        yield (
            0.0,
            f"Memory is {percent(used, 1.0)} full, but more would not help: without any limit no "
            "other layouts are faster.",
        )


def _recomputation(plan: Plan) -> Iterator[Said]:
    if plan.recomputation_s > _WORTH * plan.step_time_s:
        count = len(plan.recomputed)
        yield (
            plan.recomputation_s,
            f"{count} block{'s' * (count > 1)} run forward a second time to save memory, "
            f"{seconds(plan.recomputation_s)} of a step "
            f"({percent(plan.recomputation_s, plan.step_time_s)}): more devices or a smaller batch "
            "save that.",
        )


def _rules(plan: Plan) -> Iterator[Said]:
    missing: dict[str, float] = {}
    for row in plan.operations_without_rule:
        missing[row.op] = missing.get(row.op, 0.0) + row.forward_s + row.backward_s
    for op, time_s in missing.items():
        yield (
            time_s,
            f"{op} has no rule, so every rank runs all of it, {seconds(time_s)} a step: one call "
            "of autoplan.register_rule lets it be split.",
        )


def _unproven(plan: Plan) -> Iterator[Said]:
    proof = plan.certificate
    if plan.pipeline is None and proof.gap > _WORTH and proof.status == "time limit":
        yield (
            proof.gap * plan.step_time_s,
            f"The search ended at its time limit with {percent(proof.gap, 1.0)} left open: a "
            "larger time_limit_s may find a faster plan.",
        )
