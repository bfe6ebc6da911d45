"""Rank memory: the peak of a pipeline rank over its schedule's events, all its stages together.

The stages of one rank do not hold the most at the same time, so that the sum of their peaks says
too much. What each holds after every event follows from the schedule's order alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoplan.memory.stage_memory import KINDS, StageMemory, Worst
from autoplan.memory.timeline import FloatArray
from autoplan.pipelining.schedules import Event
from autoplan.plan import Memory


def rank_memory(
    order: Sequence[Event],
    stages: Mapping[int, StageMemory],
    arguments: float | None = None,
    training: bool = True,
) -> Memory:
    """What a rank with `stages` holds at its worst moment, of a step that runs `order`.

    arguments: bytes of all that the model is given, on every rank whole, whichever stage reads it;
    without them, of what each stage reads.
    """
    beside = np.zeros(len(KINDS))
    if arguments is not None:
        mine = sum(stage.arguments for stage in stages.values())
        beside[KINDS.index("inputs")] = arguments - mine
    always, stepping = _stored_again(stages)
    moments = [_end(stages, 0, beside - always)]
    moments += _events(order, stages, training, beside - always)
    if training:
        moments += [_end(stages, 1, beside - always), _end(stages, 2, beside - stepping)]
    worst = max(moments, key=lambda each: float(each.amounts.sum()))
    sizes = {kind: round(size) for kind, size in zip(KINDS, worst.amounts, strict=True)}
    return Memory(**sizes, moment=worst.moment)


def _stored_again(stages: Mapping[int, StageMemory]) -> tuple[FloatArray, FloatArray]:
    """What counts too often where several stages read one parameter: always, and in the end."""
    always, stepping = np.zeros(len(KINDS)), np.zeros(len(KINDS))
    seen: set[str] = set()
    for stage in stages.values():
        for path, (held, at_the_end) in stage.stored.items():
            if path in seen:
                always, stepping = always + held, stepping + at_the_end
            seen.add(path)
    return always, stepping


def _end(stages: Mapping[int, StageMemory], number: int, beside: FloatArray) -> Worst:
    """Before or after all events: stages do it one after the other, so temporaries do not add.

    beside: what is alive, too, where the stages' own sums are wrong.
    """
    passing = KINDS.index("temporaries")
    ends = {stage: each.ends[number] for stage, each in stages.items()}
    amounts = np.sum([each.amounts for each in ends.values()], axis=0)
    amounts[passing] = max(each.amounts[passing] for each in ends.values())
    largest = max(ends, key=lambda stage: float(ends[stage].amounts.sum()))
    return Worst(f"stage {largest}, {ends[largest].moment}", amounts + beside)


def _events(
    order: Sequence[Event],
    stages: Mapping[int, StageMemory],
    training: bool,
    beside: FloatArray,
) -> list[Worst]:
    """The worst moment of every event."""
    resident = np.sum([stage.resident for stage in stages.values()], axis=0) + beside
    held: dict[tuple[int, int], FloatArray] = {}  # of (stage, microbatch)
    gradients: dict[int, FloatArray] = {}  # of stages whose parameters have some
    moments = []
    for event in order:
        stage = stages[event.stage]
        held.pop((event.stage, event.microbatch), None)
        worst = stage.events[event.kind, event.stage not in gradients]
        others = sum([*held.values(), *gradients.values()], np.zeros(len(KINDS)))
        amounts = resident + others + worst.amounts
        moments.append(Worst(f"stage {event.stage}, {worst.moment}", amounts))
        if not training:
            continue
        if event.kind == "forward":
            held[event.stage, event.microbatch] = stage.kept
        elif event.kind == "backward_input":
            held[event.stage, event.microbatch] = stage.waiting
            if stage.recomputes:
                gradients[event.stage] = stage.gradients
        else:
            gradients[event.stage] = stage.gradients
    return moments
