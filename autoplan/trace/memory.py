"""Bytes alive over a step, by kind, at every moment or event of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from autoplan.memory.stage_memory import KINDS, StageMemory
from autoplan.memory.timeline import FloatArray, Kind, Timeline
from autoplan.pipelining.rank_memory import _end, _events, _stored_again
from autoplan.pipelining.schedules import Event

Amounts = Mapping[str, float]
"""Bytes by kind."""


def bytes_by_moment(timeline: Timeline, choices: Sequence[int]) -> list[Amounts]:
    """Bytes alive under `choices` at every moment of a timeline."""
    kinds = get_args(Kind)
    change = np.zeros((len(kinds), timeline.num_moments + 1))
    for term in timeline.terms:
        value = timeline.value(term, choices)
        row = kinds.index(term.kind)
        change[row, term.first] += value
        change[row, term.last + 1] -= value
    for kind, size in timeline.constants:
        change[kinds.index(kind), 0] += size
    totals: FloatArray = np.cumsum(change, axis=1)[:, :-1]
    return [_named(totals[:, moment]) for moment in range(timeline.num_moments)]


def bytes_by_event(
    order: Sequence[Event],
    stages: Mapping[int, StageMemory],
    arguments: float,
    training: bool,
) -> list[Amounts]:
    """The most that a pipeline rank holds before its first event, in each, and after its last.

    As `pipelining.rank_memory` counts it, whose peak is the largest of these: of training two more
    than events and one, reducing gradients and the optimizer's step.
    """
    beside = np.zeros(len(KINDS))
    beside[KINDS.index("inputs")] = arguments - sum(each.arguments for each in stages.values())
    always, stepping = _stored_again(stages)
    worst = [_end(stages, 0, beside - always)]
    worst += _events(order, stages, training, beside - always)
    if training:
        worst += [_end(stages, 1, beside - always), _end(stages, 2, beside - stepping)]
    return [_named(each.amounts) for each in worst]


def _named(amounts: FloatArray) -> Amounts:
    return {kind: float(size) for kind, size in zip(KINDS, amounts, strict=True)}
