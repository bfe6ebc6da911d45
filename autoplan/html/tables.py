"""Tables: collectives, parameters, stages, certificate and hints of a report."""

from __future__ import annotations

from typing import Any

from autoplan.html.markup import Cell, bullets, paragraphs, section, table
from autoplan.html.words import layout_words
from autoplan.plan import Plan
from autoplan.policies import POLICY_TEXTS
from autoplan.repeated import (
    Moved,
    kind_of,
    moved_in_a_step,
    read_otherwise,
    repeated_collectives,
    repeated_tensors,
)
from autoplan.report import PROLOGUE_WORDS, given_hints
from autoplan.report_pipeline import numbers, proven_of_pipeline, sent_of
from autoplan.units import seconds, size


def collectives(plan: Plan) -> str:
    """All collectives of a step, those of repeated blocks together."""
    rows = []
    for each in repeated_collectives(plan):
        row, all_of = each.first, Moved.by(each.rows)
        cells: list[Cell | str] = [
            row.kind, row.axis, row.phase, row.direction, Cell(size(row.bytes), row.bytes),
            Cell(str(all_of.count), all_of.count), Cell(seconds(all_of.time_s), all_of.time_s),
            Cell(each.path or "the model", code=True),
        ]  # fmt: skip
        if plan.pipeline is not None:
            cells.append(numbers(each.stages))
        rows.append((all_of.time_s, cells))
    rows.sort(key=lambda one: -one[0])
    head = ["kind", "axis", "phase", "direction", "bytes of one", "count", "time of all", "where"]
    head += ["stages"] if plan.pipeline is not None else []
    moved = moved_in_a_step(plan)
    if not plan.collectives:
        return section("collectives", "Collectives", "<p>None: nothing is communicated.</p>")
    outputs = ", outputs only where a call returns more than the loss"
    outputs = outputs if any(row.phase == "outputs" for row in plan.collectives) else ""
    told = [
        f"{moved.count} collective{'s' * (moved.count != 1)} a step, {size(moved.bytes)}, "
        f"{seconds(moved.time_s)}{', all stages together' if plan.pipeline else ''}. "
        f"Phase prologue is once a step, body once a microbatch{outputs}."
    ]
    if any(row.phase == "prologue" for row in plan.collectives):
        told.append(
            f"Times of phase prologue are of {PROLOGUE_WORDS}, as do the summary, the model and "
            "the trace."
        )
    return section(
        "collectives", "Collectives", paragraphs(told),
        table("Collectives of a step", head, (cells for _, cells in rows),
              identifier="collectives-table", numeric=(4, 5, 6), sortable=True),
    )  # fmt: skip


def parameters(plan: Plan) -> str:
    """Parameters and arguments: how each is stored and read, those of repeated blocks together."""
    rows = []
    for each in repeated_tensors(plan, ("parameter", "input", "buffer")):
        row = each.first
        axes = plan.stages[each.stages[0]].axes if plan.stages else plan.axes
        words = layout_words(row.layout, axes)
        read = ""
        if read_otherwise(row):
            read = layout_words(row.use, axes) + POLICY_TEXTS[row.policy]
        cells: list[Cell | str] = [
            Cell(each.path, code=True), kind_of(plan, row, each.stages[0]),
            f"{row.dtype} {list(row.shape)}", str(list(row.local_shape)), words,
            read or "as stored",
            Cell(str(each.times), each.times),
        ]  # fmt: skip
        rows.append(cells)
    head = (
        "path",
        "kind",
        "whole shape",
        "on a rank, at most",
        "stored",
        "read by a step",
        "times",
    )
    return section(
        "parameters", "Parameters and arguments",
        "<p>What lies where between steps, and how a step reads it. A star is any block.</p>",
        table("Parameters and arguments", head, rows,
              identifier="parameters-table", numeric=(6,), sortable=True),
    )  # fmt: skip


def stages(plan: Plan) -> str:
    """The stages of a pipeline, its schedule, and the cut that the solver takes by itself."""
    pipeline = plan.pipeline
    if pipeline is None:
        return ""
    rows: list[tuple[Cell | str, ...]] = []
    for number, (row, stage) in enumerate(zip(pipeline.stages, plan.stages, strict=True)):
        rows.append((
            Cell(str(number), number), numbers(row.ranks), str(stage.mesh),
            Cell(seconds(row.forward_s), row.forward_s),
            Cell(seconds(row.backward_s), row.backward_s),
            *(Cell(seconds(each) if each else "–", each) for each in sent_of(pipeline, number)),
            Cell(seconds(row.once_s), row.once_s), Cell(str(row.in_flight), row.in_flight),
            Cell(size(row.peak_memory_bytes), row.peak_memory_bytes),
            Cell(size(row.rank_peak_memory_bytes), row.rank_peak_memory_bytes),
        ))  # fmt: skip
    head = ("stage", "ranks", "mesh", "forward", "backward", "send ahead", "send back",
            "once a step", "in flight", "peak, alone", "peak of its ranks")  # fmt: skip
    count = plan.microbatches
    own = "The cut is the solver's own."
    if pipeline.automatic != pipeline.actual:
        moved = sum(a != b for a, b in zip(pipeline.actual, pipeline.automatic, strict=True))
        own = f"By itself the solver puts {moved} of {len(pipeline.pieces)} parts elsewhere."
    return section(
        "pipeline", "Pipeline",
        paragraphs([
            f"Schedule {pipeline.schedule}: {len(plan.stages)} stages on {pipeline.size} groups of "
            f"ranks, {count} microbatch{'es' * (count > 1)}. Ranks wait {pipeline.bubble:.1%} of "
            "their time; of a microbatch, sends included, the slowest has "
            f"{pipeline.imbalance:.1%} more than the mean. {own}"
        ]),
        '<div class="chart" id="gantt"></div>',
        table("Stages: times of a microbatch, once a step, and memory", head, rows,
              numeric=(0, 3, 4, 5, 6, 7, 8, 9, 10)),
    )  # fmt: skip


def certificate(plan: Plan) -> str:
    """What is proven."""
    proof = plan.certificate
    rows: list[tuple[Cell | str, ...]] = [
        ("status", proof.status),
        ("step time found", seconds(proof.objective)),
        ("lower bound", seconds(proof.bound) if proof.bound else "none was computed"),
        ("gap", f"{proof.gap:.3%}" if proof.bound or not proof.gap else "unknown"),
        ("decisions", f"{proof.num_variables}, {proof.num_classes} with repeated blocks alike"),
        ("binaries in the ILP", str(proof.num_binaries)),
    ]
    if proof.folding:
        lost = seconds(proof.folding_s) if proof.folding_s else "nothing"
        rows.append(("holding repeated blocks alike costs", lost))
    if proof.seconds:
        rows.append(("solved in", seconds(proof.seconds)))
    meaning = (
        "The bound is a time that no plan of the search goes below, under this cost model; the gap "
        "is the most that a better plan could save, as a part of this plan's step."
    )
    return section(
        "certificate", "Certificate", paragraphs([meaning]),
        table("What is proven of this plan", ("figure", "value"), rows),
        bullets([line.strip() for line in proven_of_pipeline(plan)]), _shapes(plan),
    )  # fmt: skip


def _shapes(plan: Plan) -> str:
    if not plan.shapes:
        return ""
    rows: list[tuple[Cell | str, ...]] = [
        (
            row.shape,
            *(
                Cell(seconds(value) if value else "", value)
                for value in (row.at_least_s, row.about_s, row.step_time_s)
            ),
            row.status,
        )
        for row in plan.shapes
    ]
    head = ("shape", "at least", "estimate", "step time", "")
    title = f"Search: the best of {plan.num_shapes} shapes"
    return table(title, head, rows, numeric=(1, 2, 3))


def hints(plan: Plan) -> str:
    """What the plan was asked for, and what each costs."""
    rows: list[tuple[Cell | str, ...]] = []
    for pin in plan.pins:
        if pin.time_s is None or pin.memory_bytes is None:
            rows.append((Cell(pin.hint, code=True), "–", "–", pin.note))
        else:
            rows.append((
                Cell(pin.hint, code=True),
                Cell(_signed(pin.time_s, seconds(abs(pin.time_s))), pin.time_s),
                Cell(_signed(pin.memory_bytes, size(abs(pin.memory_bytes))), pin.memory_bytes),
                pin.note,
            ))  # fmt: skip
    if not plan.pins:
        rows = [(Cell(hint, code=True), "–", "–", "not priced") for hint in given_hints(plan)]
    if rows:
        head = ("hint", "saved a step without it", "memory saved without it", "")
        said = table("Hints, and what a plan without each alone saves", head, rows, numeric=(1, 2))
    else:
        said = "<p>No hints were given: the planner was free in all it chose.</p>"
    notes = f"<h3>Notes</h3>{bullets(plan.notes)}" if plan.notes else ""
    return section("hints", "Hints", said, notes)


def _signed(value: float, text: str) -> str:
    return f"−{text}" if value < 0 else text


def memory(data: dict[str, Any]) -> str:
    """The peaks of the chart as numbers."""
    bars = data["bars"]
    held = [at for at in range(len(data["kinds"])) if any(amounts[at] for _, amounts, _ in bars)]
    rows = []
    for name, amounts, moment in bars:
        values = (sum(amounts), *(amounts[at] for at in held))
        rows.append((name, moment, *(Cell(size(value), value) for value in values)))
    head = ("where", "reached in", "together", *(data["kinds"][at] for at in held))
    return table("Bytes alive at the peak", head, rows, numeric=range(2, len(head)))
