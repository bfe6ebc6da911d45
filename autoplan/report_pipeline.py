"""What a report says of a pipeline: who holds what, what each stage costs, and a step in time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from autoplan.layouts import Layout, Split
from autoplan.pipelining.gantt import gantt
from autoplan.pipelining.joined import run_of, sends_of
from autoplan.pipelining.owners import with_own_modules
from autoplan.plan import Collective, Pipeline, Plan, TensorRow
from autoplan.planfiles.patterns import shortened
from autoplan.units import seconds, size

_MOST_PARTS = 4
_MOST_DRAWN = 50_000
"""Microbatches times stages up to which a step is simulated to be drawn."""


def print_pipeline(console: Console, plan: Plan) -> None:
    """Stages and their devices, their times and memory, the cut by itself, and the schedule."""
    pipeline = plan.pipeline
    if pipeline is None:
        return
    lines = [
        f"\npipeline: schedule {pipeline.schedule}, {len(plan.stages)} stages on {pipeline.size} "
        f"pipeline ranks, {plan.microbatches} microbatch{'es' * (plan.microbatches > 1)}",
        f"  bubble: ranks wait {pipeline.bubble:.1%} of their time; imbalance: the slowest rank is "
        f"{pipeline.imbalance:.1%} over the mean",
        *_owners(pipeline),
    ]
    console.print("\n".join(lines), markup=False, highlight=False)
    console.print("\nstages (times of a microbatch; once: a step's gathers, reductions, optimizer)")
    console.print(_table(plan, pipeline), markup=False, highlight=False)
    for line in _weights(plan):
        console.print(line, markup=False, highlight=False)
    for line in _automatic(pipeline):
        console.print(line, markup=False, highlight=False)
    console.print("\nschedule of a step")
    if plan.microbatches * len(plan.stages) > _MOST_DRAWN:
        console.print("  too many microbatches to be drawn")
        return
    for line in gantt(run_of(plan), console.width - 2).splitlines():
        console.print(f"  {line}", markup=False, highlight=False)


def _owners(pipeline: Pipeline) -> Iterator[str]:
    for number, row in enumerate(pipeline.stages):
        yield f"  stage {number} owns ranks {list(row.ranks)}: {_spelled(row.pieces)}"


def _table(plan: Plan, pipeline: Pipeline) -> Table:
    table = Table(box=None, pad_edge=False)
    left = ("mesh", "recomputed")
    for column in (
        "stage", "mesh", "forward", "backward", "send ahead", "send back", "once", "in flight",
        "peak memory", "recomputed",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for number, (row, stage) in enumerate(zip(pipeline.stages, plan.stages, strict=True)):
        table.add_row(
            str(number), str(stage.mesh), seconds(row.forward_s), seconds(row.backward_s),
            *(seconds(each) if each else "-" for each in sent_of(pipeline, number)),
            seconds(row.once_s), str(row.in_flight),
            size(row.peak_memory_bytes), _spelled(stage.recomputed) or "-",
        )  # fmt: skip
    return table


def sent_of(pipeline: Pipeline, number: int) -> tuple[float, float]:
    """Seconds to the next stage and back; 0.0 where both are on one rank, and after the last."""
    row, after = pipeline.stages[number], pipeline.stages[number + 1 : number + 2]
    if not after or after[0].rank == row.rank:
        return 0.0, 0.0
    return row.forward_transfer_s, row.backward_transfer_s


def _spelled(pieces: Sequence[str]) -> str:
    """`embed, h.{0..3}, norm`; of many only the ends."""
    parts = shortened(pieces)
    if len(parts) <= _MOST_PARTS:
        return ", ".join(parts)
    return f"{parts[0]}, {parts[1]} .. {parts[-1]} ({len(pieces)} parts)"


def _weights(plan: Plan) -> Iterator[str]:
    """How most parameters of each stage lie on each of its axes, by size."""
    said: dict[str, list[int]] = {}
    for number, stage in enumerate(plan.stages):
        rows = [row for row in stage.tensors if row.kind == "parameter"]
        text = "; ".join(f"{axis}: {_word(rows, at)}" for at, axis in enumerate(stage.axes) if rows)
        said.setdefault(text or ("whole, on one device" if rows else "none"), []).append(number)
    for text, stages in said.items():
        yield f"  parameters of stage{'s' * (len(stages) > 1)} {numbers(stages)}: {text}"


def _word(rows: Sequence[TensorRow], axis: int) -> str:
    """What is said of the most elements."""
    total: dict[str, int] = {}
    for row in rows:
        stored, use = (Layout.parse(text)[axis] for text in (row.layout, row.use or row.layout))
        if isinstance(use, Split):
            word = "split"
        else:
            word = "stored split, read whole" if isinstance(stored, Split) else "whole"
        total[word] = total.get(word, 0) + math.prod(row.shape)
    return max(total, key=lambda word: total[word])


def numbers(stages: Sequence[int]) -> str:
    """`0-2, 4`."""
    runs: list[list[int]] = []
    for stage in sorted(set(stages)):
        if runs and stage == runs[-1][-1] + 1:
            runs[-1].append(stage)
        else:
            runs.append([stage])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def ranks_words(ranks: Sequence[int]) -> str:
    """`rank 0`, `ranks 0-3`."""
    return f"rank{'s' * (len(ranks) > 1)} {numbers(ranks)}"


def _automatic(pipeline: Pipeline) -> Iterator[str]:
    """The cut that the solver prefers without the user's hints, where it is another one."""
    if pipeline.automatic == pipeline.actual:
        yield "  automatic stage ids: the same; the cut is the solver's own"
        return
    yield "  stage ids that the solver takes by itself differ:"
    moved: dict[tuple[int, int], list[str]] = {}
    for name, actual, own in zip(pipeline.pieces, pipeline.actual, pipeline.automatic, strict=True):
        if actual != own:
            moved.setdefault((actual, own), []).append(name)
    for (actual, own), names in moved.items():
        yield f"    {', '.join(shortened(names))}: stage {actual}, automatic {own}"


def located_tensors(plan: Plan) -> Iterator[tuple[TensorRow, int]]:
    """Tensors with their stage; a module that several stages run, where its value is made."""
    if plan.pipeline is None:
        yield from ((row, 0) for row in plan.tensors)
        return
    stages = with_own_modules(plan.stages, plan.stage_map)
    last = {row.path: at for at, stage in enumerate(stages) for row in stage.tensors}
    for number, stage in enumerate(stages):
        for row in stage.tensors:
            if row.kind != "module" or last[row.path] == number:
                yield row, number


def located_collectives(plan: Plan) -> Iterator[tuple[Collective, int]]:
    """Collectives with the stage that runs them, or that sends."""
    if plan.pipeline is None:
        yield from ((row, 0) for row in plan.collectives)
        return
    for number, stage in enumerate(plan.stages):
        yield from ((row, number) for row in stage.collectives)
    for row in sends_of(plan):  # the path is the last piece before the cut, for both directions
        yield row, plan.stage(row.path) + (row.direction == "backward")


def proven_of_pipeline(plan: Plan) -> Iterator[str]:
    """What the certificate rests on: the stages, the cut, and the bound, each by itself."""
    pipeline = plan.pipeline
    if pipeline is None:
        return
    proven = [n for n, stage in enumerate(plan.stages) if stage.certificate.gap == 0.0]
    yield (
        f"stages: {len(proven)} of {len(plan.stages)} proven optimal, given their parts, what "
        "they receive, and their microbatches in flight"
    )
    for number, stage in enumerate(plan.stages):
        if number not in proven:
            yield f"  stage {number}: {stage.certificate.status}, gap {stage.certificate.gap:.3%}"
    open_ = "not proven best: stages solved by themselves may be faster, cuts beside were tried"
    if 0 < pipeline.bound <= plan.step_time_s:
        yield (
            f"cut: none takes less than {seconds(pipeline.bound)} at the prices of the model "
            "solved whole"
        )
        yield f"  {open_}"
    elif pipeline.bound > 0:  # stages solved by themselves are below it
        yield f"cut: {open_}"
    else:
        yield "cut: nothing is proven of it"
    if plan.certificate.bound:
        yield (
            "lower bound: the model solved whole on one stage's ranks, spread evenly over all, "
            "nothing waiting"
        )
