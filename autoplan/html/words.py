"""Words: what a plan does, in plain English, for someone who knows PyTorch but no SPMD."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from autoplan.errors import LayoutError
from autoplan.html.spending import Spending
from autoplan.layouts import Broadcast, Layout, Split
from autoplan.pipelining.joined import sends_of
from autoplan.plan import Baseline, Plan
from autoplan.report import memory_rows
from autoplan.report_pipeline import ranks_words
from autoplan.units import seconds, size

_GLOSSARY = (
    (r"FSDP|ZeRO-3", "FSDP: every rank stores a slice of each parameter, gathers the whole one "
     "when it is needed, and works on its own part of the batch."),
    (r"HSDP", "HSDP: FSDP inside of each group of ranks, and copies of that group elsewhere."),
    (r"DDP", "DDP: every rank has the whole parameters and works on its own part of the batch"),
    (r"ZeRO-1", "ZeRO-1: every rank stores a slice of each parameter, gathers the whole ones once "
     "a step, and works on its own part of the batch"),
    (r"ZeRO-2", "ZeRO-2: every rank stores a slice of each parameter, gathers the whole ones once "
     "a step, and works on its own part of the batch"),
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
_IN_TRAINING = {
    "DDP": "; gradients are summed over the ranks",
    "ZeRO-1": "; whole gradients are summed and cut once a step, so that the optimizer's state is "
    "cut, too",
    "ZeRO-2": "; gradients are summed and cut in every microbatch, so that they and the "
    "optimizer's state are cut, too",
}
"""What is added to an entry where there are gradients."""


def glossary(plan: Plan) -> list[str]:
    """What the names in the plan's scheme mean."""
    return [
        f"{text.removesuffix('.')}{_IN_TRAINING.get(pattern, '') if plan.training else ''}."
        for pattern, text in _GLOSSARY
        if re.search(pattern, plan.scheme)
    ]


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


def story(plan: Plan, spending: Spending) -> Iterator[str]:
    """What dominates, what limits, and how it compares: a sentence each."""
    whole = plan.step_time_s
    parts = sorted(spending.shares, key=lambda share: -share.time_s)
    if parts:
        told = ", ".join(f"{percent(each.time_s, whole)} {each.name}" for each in parts)
        yield f"Where the time goes: {told}{' (average rank)' if plan.pipeline else ''}."
    if not spending.is_known:
        yield (
            "What of it is computing and what communicating is not known: the plan was read from "
            "a file, without its model."
        )
    yield from _longest(spending)
    if plan.pipeline is not None and sends_of(plan):
        yield (
            "Sends between stages are no part of communicating: they run beside the work, and what "
            "a rank waits for them is a part of waiting."
        )
    yield _memory(plan)
    yield from _compared(plan)
    yield _proof(plan)


def _longest(spending: Spending) -> Iterator[str]:
    """The collectives that take most of what is communicated."""
    if not spending.moved:
        return
    (kind, axis), time_s = max(spending.moved.items(), key=lambda item: item[1])
    total = sum(spending.moved.values())
    what = f"{kind.replace('_', '-')} over “{axis}”"
    if time_s < total:
        yield f"Of what is spent communicating, {percent(time_s, total)} is {what}."
    elif total:
        yield f"All that is spent communicating is {what}."


def _memory(plan: Plan) -> str:
    used = percent(plan.peak_memory_bytes, plan.memory_limit_bytes)
    most, held = max(memory_rows(plan), key=lambda row: row[1])
    part = "all of it" if held == plan.peak_memory_bytes else "the largest part"
    return (
        f"Memory: {used} of the {size(plan.memory_limit_bytes)} that a device may use, {part} "
        f"{most} ({size(held)})."
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


def asked_to_keep(plan: Plan) -> bool:
    """Whether a standard scheme that fits is faster: hints and schemes forbid it."""
    return any(time_s < plan.step_time_s * 0.999 for _, time_s in fitting_baselines(plan))


def _proof(plan: Plan) -> str:
    proof = plan.certificate
    if proof.gap == 0.0 and proof.status == "optimal":
        kept = " that keeps what was asked for" if asked_to_keep(plan) else ""
        return f"No plan of the search{kept} is faster under this cost model: that is proven."
    if proof.bound:
        return (
            f"No plan of the search takes less than {seconds(proof.bound)}: a better one would "
            f"save at most {percent(proof.gap, 1.0)} of a step."
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
            if isinstance(entry, Broadcast) and entry.partial_gradient:
                word = "whole, with addends of its gradient, on"
        said.setdefault(word, []).append(axis)
    if len(said) == 1 and all(isinstance(entry, Broadcast) for entry in layout):
        (word,) = said
        return f"{word} every rank"
    return "; ".join(f"{word} {' and '.join(axes)}" for word, axes in said.items())


def where_words(plan: Plan) -> list[str]:
    """What runs on which ranks: the stages of a pipeline, or all ranks alike."""
    pipeline = plan.pipeline
    if pipeline is None:
        if plan.mesh.num_devices == 1:
            return ["Everything runs on the one device."]
        if not is_cut(plan):
            return [
                "Every rank runs the whole model on the whole batch: nothing is cut, and all "
                "ranks do the same."
            ]
        return ["Every rank runs the whole model, on its own parts of the tensors that are cut."]
    return [
        f"Stage {number} runs on {ranks_words(row.ranks)}: {_ends(row.pieces)}."
        for number, row in enumerate(pipeline.stages)
    ]


def is_cut(plan: Plan) -> bool:
    """Whether any axis cuts anything: a tensor between steps, an argument, or what an op makes."""
    texts = {row.layout for row in plan.operations}
    texts |= {text for row in plan.tensors for text in (row.layout, row.use)}
    return any("S" in text or "P" in text.replace("B/P", "B") for text in texts)


def _ends(pieces: Sequence[str]) -> str:
    if len(pieces) <= 2:
        return ", ".join(pieces) or "nothing of its own"
    return f"{pieces[0]} to {pieces[-1]} ({len(pieces)} parts)"
