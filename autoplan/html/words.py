"""Words: what a plan does, in plain English, for someone who knows PyTorch but no SPMD."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoplan.errors import LayoutError
from autoplan.layouts import Broadcast, Layout, Split
from autoplan.plan import Baseline, Plan
from autoplan.report_pipeline import numbers
from autoplan.units import seconds, size

_GLOSSARY = (
    (r"FSDP|ZeRO-3", "FSDP: every rank stores a slice of each parameter, gathers the whole one "
     "when it is needed, and works on its own part of the batch."),
    (r"HSDP", "HSDP: FSDP inside of each group of ranks, and copies of that group elsewhere."),
    (r"DDP", "DDP: every rank has the whole parameters and works on its own part of the batch; "
     "gradients are summed over the ranks."),
    (r"ZeRO-1", "ZeRO-1: every rank has the whole parameters, but only a slice of the optimizer's "
     "state."),
    (r"ZeRO-2", "ZeRO-2: every rank has the whole parameters, but only a slice of the gradients "
     "and of the optimizer's state."),
    (r"Megatron-TP", "Megatron-TP: the large weight matrices are cut, by columns and then by rows; "
     "the ranks of a group compute parts of the same result and sum them."),
    (r"[123]D tensor|2\.5D", "Tensor parallelism: the large weight matrices are cut, and the ranks "
     "of a group compute parts of the same result."),
    (r"with sequence", "Sequence parallelism: between the blocks each rank holds a part of the "
     "sequence."),
    (r"Ulysses", "Ulysses: each rank has a part of the sequence, and for attention some heads."),
    (r"ring attention", "Ring attention: each rank has a part of the sequence, and keys and values "
     "travel round the ring."),
    (r"context parallelism", "Context parallelism: each rank has a part of the sequence."),
    (r"expert parallelism", "Expert parallelism: each rank has some of the experts, and rows are "
     "sent to theirs."),
    (r"pipeline", "Pipeline: the layers are cut into stages on different ranks; microbatches flow "
     "through them one after the other."),
    (r"replicated", "Replicated: the ranks of a group all do the same."),
    (r"^one device", "One device: nothing is split."),
)  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A part of the step: seconds of the average rank."""

    name: str
    time_s: float


def glossary(plan: Plan) -> list[str]:
    """What the names in the plan's scheme mean."""
    return [text for pattern, text in _GLOSSARY if re.search(pattern, plan.scheme)]


def shares(plan: Plan) -> tuple[Share, ...]:
    """What a step's time goes to, on the average rank: work, communication, waiting."""
    waiting = 0.0
    communication = sum(each.time_s for each in plan.collectives if each.phase != "outputs")
    if plan.pipeline is not None:
        waiting = plan.pipeline.bubble * plan.step_time_s
        inside = sum(e.time_s for stage in plan.stages for e in stage.collectives
                     if e.phase != "outputs")  # fmt: skip
        communication = inside / plan.pipeline.size
    communication = min(communication, plan.step_time_s - waiting)
    work = max(0.0, plan.step_time_s - waiting - communication)
    parts = [Share("computing", work), Share("communicating", communication)]
    return (*parts, Share("waiting", waiting)) if plan.pipeline is not None else tuple(parts)


def percent(part: float, whole: float) -> str:
    """`12 %`, and `<1 %` of what is little."""
    if not whole:
        return "0 %"
    value = 100 * part / whole
    return f"{value:.0f} %" if value >= 1 or value <= 0 else "<1 %"


def headline(plan: Plan) -> str:
    """One sentence: what runs where, and what a step costs."""
    where = devices_words(plan)
    what = "training step" if plan.training else "forward pass"
    return (
        f"{plan.model} on {where} ({plan.cluster}): a {what} takes {seconds(plan.step_time_s)} and "
        f"at most {size(plan.peak_memory_bytes)} of memory on each device, as {plan.scheme}."
    )


def story(plan: Plan) -> Iterator[str]:
    """What dominates, what limits, and how it compares: a sentence each."""
    whole = plan.step_time_s
    parts = sorted(shares(plan), key=lambda share: -share.time_s)
    told = ", ".join(f"{percent(each.time_s, whole)} {each.name}" for each in parts)
    yield f"Where the time goes: {told}{' (average rank)' if plan.pipeline else ''}."
    yield from _longest(plan)
    yield _memory(plan)
    yield from _compared(plan)
    yield _proof(plan)


def _longest(plan: Plan) -> Iterator[str]:
    """The collectives that take most."""
    spent: dict[tuple[str, str], float] = {}
    for each in plan.collectives:
        if each.phase != "outputs":
            key = each.kind, each.axis
            spent[key] = spent.get(key, 0.0) + each.time_s
    if not spent:
        return
    (kind, axis), time_s = max(spent.items(), key=lambda item: item[1])
    total = sum(spent.values())
    if time_s < total and total:
        yield (
            f"Of all communication, {percent(time_s, total)} is {kind.replace('_', '-')} over "
            f"“{axis}”."
        )
    elif total:
        yield f"All communication is {kind.replace('_', '-')} over “{axis}”."


def _memory(plan: Plan) -> str:
    used = percent(plan.peak_memory_bytes, plan.memory_limit_bytes)
    kinds = {
        "parameters": plan.memory.parameters,
        "gradients": plan.memory.gradients,
        "optimizer state": plan.memory.optimizer,
        "gathered parameters": plan.memory.gathered,
        "activations": plan.memory.activations,
        "arguments and buffers": plan.memory.inputs,
        "temporaries": plan.memory.temporaries,
    }
    most = max(kinds, key=lambda kind: kinds[kind])
    return (
        f"Memory: {used} of the {size(plan.memory_limit_bytes)} that a device may use, most of it "
        f"{most} ({size(kinds[most])})."
    )


def _compared(plan: Plan) -> Iterator[str]:
    fitting = fitting_baselines(plan)
    if not any(each.step_time_s is not None for each in plan.baselines):
        return
    if not fitting:
        yield "No standard scheme over all devices fits in memory; this plan does."
        return
    if not plan.step_time_s:
        return
    best, time_s = fitting[0]
    ratio = time_s / plan.step_time_s
    if ratio >= 1.005:
        yield (
            f"The best standard scheme that fits is {best.name}, {seconds(time_s)}: "
            f"this plan is {ratio:.2f} times as fast."
        )
    elif ratio > 0.995:
        yield f"It is as fast as the best standard scheme that fits, {best.name}."
    else:
        yield (
            f"{best.name} over all devices would take {seconds(time_s)} and fits, too: "
            f"this plan takes {1 / ratio:.2f} times as long, for what it was asked to keep."
        )


def fitting_baselines(plan: Plan) -> list[tuple[Baseline, float]]:
    """Known schemes that fit in memory, with seconds a step, the fastest first."""
    fitting = [
        (each, each.step_time_s)
        for each in plan.baselines
        if each.step_time_s is not None and (each.peak_memory_bytes or 0) <= plan.memory_limit_bytes
    ]
    return sorted(fitting, key=lambda one: one[1])


def devices_words(plan: Plan) -> str:
    """`one device`, or how many."""
    devices = plan.mesh.num_devices
    return "one device" if devices == 1 else f"{devices} devices"


def _is_fastest(plan: Plan) -> bool:
    """Whether no standard scheme that fits is faster; hints and schemes may forbid one."""
    return all(time_s >= plan.step_time_s * 0.999 for _, time_s in fitting_baselines(plan))


def _proof(plan: Plan) -> str:
    proof = plan.certificate
    if proof.gap == 0.0 and proof.status == "optimal":
        kept = "" if _is_fastest(plan) else " that keeps what was asked for"
        return f"No plan of the search{kept} is faster under this cost model: that is proven."
    if proof.bound:
        return (
            f"No plan of the search takes less than {seconds(proof.bound)}, so at most "
            f"{percent(proof.gap, 1.0)} are left to be found."
        )
    return "Nothing is proven of how much faster another plan could be."


def layout_words(text: str, axes: Sequence[str]) -> str:
    """A layout in words: `cut along dimension 0 over data; whole on every rank of tensor`."""
    if not text:
        return ""
    try:
        layout = Layout.parse(text)
    except LayoutError:
        return text
    if not axes or len(layout) != len(axes):
        return "whole" if all(isinstance(entry, Broadcast) for entry in layout) else text
    said: dict[str, list[str]] = {}
    for entry, axis in zip(layout, axes, strict=True):
        if isinstance(entry, Split):
            word = f"cut along dimension {entry.dim} over"
        else:
            word = "whole on" if isinstance(entry, Broadcast) else "addends over"
        said.setdefault(word, []).append(axis)
    if [*said] == ["whole on"]:
        return "whole on every rank"
    return "; ".join(f"{word} {' and '.join(axes)}" for word, axes in said.items())


def where_words(plan: Plan) -> list[str]:
    """What runs on which ranks: the stages of a pipeline, or all ranks alike."""
    pipeline = plan.pipeline
    if pipeline is None:
        if plan.mesh.num_devices == 1:
            return ["Everything runs on the one device."]
        return ["Every rank runs the whole model, on its own parts of the tensors that are cut."]
    return [
        f"Stage {number} runs on ranks {numbers(row.ranks)}: {_ends(row.pieces)}."
        for number, row in enumerate(pipeline.stages)
    ]


def _ends(pieces: Sequence[str]) -> str:
    if len(pieces) <= 2:
        return ", ".join(pieces) or "nothing of its own"
    return f"{pieces[0]} to {pieces[-1]} ({len(pieces)} parts)"
