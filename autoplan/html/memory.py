"""Memory of the report: every pipeline rank's peak by kind, and what is alive over a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.html.wiring import Asked
from autoplan.memory.stage_memory import KINDS, stage_memory
from autoplan.pipelining.joined import schedule_of
from autoplan.pipelining.rank_memory import rank_memory
from autoplan.plan import Memory, Plan
from autoplan.report import MEMORY_WORDS
from autoplan.report_pipeline import ranks_words

_MOST_POINTS = 320


@dataclass(frozen=True)
class Bar:
    """The peak of some ranks, by kind."""

    name: str
    memory: Memory

    @property
    def amounts(self) -> list[int]:
        """In the order of `MEMORY_WORDS`."""
        return [getattr(self.memory, kind) for kind in MEMORY_WORDS]


@dataclass(frozen=True)
class Course:
    """Bytes alive over a step: `amounts` [points][kinds], `moments` in words, `phases` by start."""

    name: str
    amounts: list[list[int]]
    moments: list[str]
    phases: list[tuple[str, int]]


def bars_of(plan: Plan, asked: Sequence[Asked]) -> tuple[list[Bar], str]:
    """A bar for every pipeline rank, or one for all ranks; and what has to be known of them."""
    pipeline = plan.pipeline
    if pipeline is None:
        devices = plan.mesh.num_devices
        name = "the device" if devices == 1 else f"every rank (0–{devices - 1})"
        return [Bar(name, plan.memory)], ""
    exact = _ranks(plan, asked)
    if exact is not None:
        return exact, ""
    bars = [
        Bar(f"stage {number}, {ranks_words(row.ranks)}", stage.memory)
        for number, (row, stage) in enumerate(zip(pipeline.stages, plan.stages, strict=True))
    ]
    return bars, (
        "By stage, as each was planned by itself: the plan was read from a file, so what a rank "
        "holds of several stages together is known as a sum alone, in the table of stages."
    )


def _ranks(plan: Plan, asked: Sequence[Asked]) -> list[Bar] | None:
    """The peaks of pipeline ranks, from the schedule's events; None without the model."""
    pipeline, origin = plan.pipeline, plan._origin
    if pipeline is None or origin is None or not asked:
        return None
    given = sum(each.meta.num_bytes for each in origin.captured.inputs_of("input"))
    orders = schedule_of(pipeline).orders(pipeline.size, plan.microbatches, not plan.training)
    held = [
        stage_memory(
            each.question.annotated,
            each.given.choices,
            each.question.pricer,
            each.question.recomputed,
        )
        for each in asked
    ]
    bars = []
    for rank, order in enumerate(orders):
        mine = {n: held[n] for n, row in enumerate(pipeline.stages) if row.rank == rank}
        ranks = next(row.ranks for row in pipeline.stages if row.rank == rank)
        memory = rank_memory(order, mine, float(given * plan.microbatches), plan.training)
        stages = f"stage{'s' * (len(mine) > 1)} {', '.join(map(str, mine))}"
        bars.append(Bar(f"{ranks_words(ranks)}: {stages}", memory))
    return bars


def courses_of(plan: Plan, asked: Sequence[Asked]) -> list[Course]:
    """The bytes of every stage over a step; without the model none."""
    names = [f"stage {each.number}" for each in asked] if plan.stages else ["a step"]
    return [_course(name, each) for name, each in zip(names, asked, strict=False)]


def _course(name: str, asked: Asked) -> Course:
    """What is alive at every moment; of many moments the fullest of each group of a phase."""
    timeline, choices = asked.question.timeline, asked.given.choices
    change = np.zeros((timeline.num_moments + 1, len(KINDS)))
    for term in timeline.terms:
        value = timeline.value(term, choices)
        change[term.first, KINDS.index(term.kind)] += value
        change[term.last + 1, KINDS.index(term.kind)] -= value
    alive = np.cumsum(change, axis=0)[:-1]
    for kind, size in timeline.constants:
        alive[:, KINDS.index(kind)] += size
    order = [KINDS.index(kind) for kind in MEMORY_WORDS]
    fullest: list[int] = []
    phases: list[tuple[str, int]] = []
    starts = _starts(asked)
    for (word, first), (_, end) in zip(starts, [*starts[1:], ("", len(alive))], strict=True):
        phases.append((word, len(fullest)))
        count = max(1, min(end - first, _MOST_POINTS * (end - first) // len(alive) - 1))
        groups = np.array_split(np.arange(first, end), count)
        fullest += [int(group[alive[group].sum(axis=1).argmax()]) for group in groups]
    return Course(
        name,
        [[round(alive[at, kind]) for kind in order] for at in fullest],
        [timeline.name(at) for at in fullest],
        phases,
    )


def _starts(asked: Asked) -> list[tuple[str, int]]:
    """The first moment of each phase."""
    timeline = asked.question.timeline
    turn, last = len(timeline.annotated.sites), timeline.schedule.last
    phases = [("before", 0), ("forward", 1)]
    if not asked.question.request.setting.training:
        return phases
    phases.append(("backward", turn + 1))
    if timeline.rounds > 1:
        phases.append(("later microbatch", last + 1))
    return [*phases, ("reduce, optimizer", timeline.rounds * last + 1)]
