"""Advice: what to change for a faster or leaner step, each with what it is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autoplan.errors import AutoplanError
from autoplan.html.advice_pipeline import WORTH, Said, on_pipeline, second_runs_s
from autoplan.html.spending import Spending
from autoplan.html.wiring import Asked
from autoplan.html.words import is_cut, percent
from autoplan.plan import Plan
from autoplan.units import seconds, size

_NEARLY_FULL = 0.6
_SOLVE_S = 5.0
_MOST_HINTS = 3
_TOGETHER = "all of them together"
_UNLIMITED = 1 << 62


def advice(plan: Plan, asked: Sequence[Asked], spending: Spending) -> list[str]:
    """Sentences, what saves most first; what was looked at and does not help is said, too."""
    said = [
        *_hints(plan),
        *on_pipeline(plan),
        *_communication(plan, spending),
        *_computing(plan, spending),
        *_replicated(plan),
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
    costly = [pin for pin in plan.pins if (pin.time_s or 0.0) > WORTH * plan.step_time_s]
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


def _communication(plan: Plan, spending: Spending) -> Iterator[Said]:
    communicating = spending.seconds("communicating")
    if communicating < 0.1 * plan.step_time_s or not spending.moved:
        return
    spent: dict[str, float] = {}
    for (_, axis), time_s in spending.moved.items():
        spent[axis] = spent.get(axis, 0.0) + time_s
    axis = max(spent, key=lambda name: spent[name])
    part = spent[axis]
    yield (
        part / 2,
        f"Communication takes {percent(communicating, plan.step_time_s)} of a step, "
        f"{'all' if len(spent) == 1 else 'the largest part'} of it over “{axis}”: a link twice as "
        f"fast there saves at most {seconds(part / 2)} ({percent(part / 2, plan.step_time_s)}). A "
        "larger batch helps where parameters and gradients travel; where values between layers "
        "do, it does not.",
    )


def _replicated(plan: Plan) -> Iterator[Said]:
    """Devices that all do the same."""
    if plan.mesh.num_devices > 1 and plan.pipeline is None and not is_cut(plan):
        yield (
            0.0,
            f"All {plan.mesh.num_devices} devices do the same work, since cutting it would cost "
            "more than it saves: one device is as fast. A larger batch or model would change that.",
        )


def _computing(plan: Plan, spending: Spending) -> Iterator[Said]:
    """What helps where computing is nearly all of a step."""
    work = spending.seconds("computing")
    if work < 0.6 * plan.step_time_s:
        return
    spent: dict[str, float] = {}
    for row in plan.operations:
        spent[row.op] = spent.get(row.op, 0.0) + row.forward_s + row.backward_s
    told = ""
    if spent:
        op = max(spent, key=lambda name: spent[name])
        told = f", the largest part in {op} ({percent(spent[op], sum(spent.values()))} of the ops)"
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
    if saved > WORTH * plan.step_time_s:
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
    """What second runs cost: in a pipeline, simulated without them."""
    if not plan.recomputed:
        return
    saved_s = second_runs_s(plan)
    if saved_s <= WORTH * plan.step_time_s:
        return
    count = len(plan.recomputed)
    what = f"{count} block{'s' * (count > 1)} run{'s' * (count == 1)} forward a second time"
    cost = f"{seconds(saved_s)} of a step ({percent(saved_s, plan.step_time_s)})"
    asked = None if plan._origin is None else plan._origin.request.recompute
    if asked is None or asked == "auto":
        text = f"{what} to save memory, {cost}: more devices or a smaller batch save that."
    else:
        named = "all" if asked == "all" else "these"
        text = (
            f"Recomputation was asked for, of {named} blocks: {what}, {cost}. With "
            "recompute='auto', the default, blocks run again only where memory needs it."
        )
    yield saved_s, text


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
    if plan.pipeline is None and proof.gap > WORTH and proof.status == "time limit":
        yield (
            proof.gap * plan.step_time_s,
            f"The search ended at its time limit with {percent(proof.gap, 1.0)} left open: a "
            "larger time_limit_s may find a faster plan.",
        )
