"""Stage memory: what a pipeline stage holds at each of a schedule's events, read off its timeline.

A schedule may run other microbatches, and other stages of the same rank, between a microbatch's
forward and its backward, and may split the backward in halves. So the timeline of one microbatch is
taken apart: what stays, what is kept from event to event, and what one event needs at its worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from autoplan.memory.in_flight import ACCUMULATING, PARAMETER_GRADIENT
from autoplan.memory.leaner import REDUCING
from autoplan.memory.liveness import timeline_of_one
from autoplan.memory.schedule import Block
from autoplan.memory.timeline import FloatArray, Kind, Timeline
from autoplan.pricing import Pricer
from autoplan.sites import Annotated

KINDS: tuple[Kind, ...] = get_args(Kind)
Doing = Literal["forward", "backward", "backward_input", "backward_weight"]
Interval: TypeAlias = tuple[Kind, int, int, float]
"""Bytes that are alive from one moment to another."""


@dataclass(frozen=True, eq=False)
class Worst:
    """A moment in words, and the bytes alive then: [KINDS]."""

    moment: str
    amounts: FloatArray


@dataclass(frozen=True, eq=False)
class StageMemory:
    """Bytes of a stage on its rank with the largest shards: [KINDS] each.

    resident: through all microbatches: parameters, optimizer state, what is gathered, arguments.
    kept: of a microbatch whose backward has not begun. waiting: of one whose backward of inputs is
    over, and that of weights is not. gradients: of parameters, once there are any.
    events: by what runs, and whether it is the first that makes gradients of parameters, the worst
    beside what stays, other microbatches and gradients that were there before.
    ends: gathering parameters, reducing gradients, the optimizer's step, with what stays.
    arguments: bytes of `resident` that are arguments of the model.
    stored: path of a parameter -> what of `resident`, and of the optimizer's step, it is; a rank
    has it once, however many of its stages read it.
    recomputes: the backward of inputs is that of weights, too, and nothing waits after it.
    """

    resident: FloatArray
    kept: FloatArray
    waiting: FloatArray
    gradients: FloatArray
    events: Mapping[tuple[Doing, bool], Worst]
    ends: tuple[Worst, Worst, Worst]
    arguments: float
    stored: Mapping[str, tuple[FloatArray, FloatArray]]
    recomputes: bool


def stage_memory(
    annotated: Annotated,
    choices: Sequence[int],
    pricer: Pricer,
    recomputed: Sequence[Block] = (),
) -> StageMemory:
    """What the stage that `annotated` is holds under `choices`."""
    timeline = timeline_of_one(annotated, pricer, recomputed)
    parts = _Parts(timeline, choices, pricer)
    sites, setting = annotated.sites, pricer.setting
    arguments = sum(m.num_bytes for s in sites if s.kind == "input" for m in s.outputs)
    last = timeline.schedule.last
    return StageMemory(
        resident=parts.resident,
        kept=_total(parts.kept),
        waiting=parts.waiting(bool(recomputed)),
        gradients=_total(parts.gradients),
        events={
            (doing, first): parts.worst(doing, first, bool(recomputed))
            for doing in get_args(Doing)
            for first in (False, True)
        },
        ends=(parts.all_at(0), parts.all_at(last + 1), parts.all_at(last + 2)),
        arguments=float(arguments * setting.microbatches),
        stored=dict(parts.stored()),
        recomputes=bool(recomputed),
    )


class _Parts:
    """The terms of a timeline under choices, by how long they live."""

    def __init__(self, timeline: Timeline, choices: Sequence[int], pricer: Pricer) -> None:
        self.timeline, self.choices = timeline, choices
        self.sites, self.schedule = timeline.annotated.sites, timeline.schedule
        self.turn, self.last = len(self.sites), timeline.schedule.last
        self.body: list[Interval] = []
        self.gradients: list[Interval] = []
        self.accumulating: list[Interval] = []
        self.reducing: list[Interval] = []
        resident: list[Interval] = [(kind, 0, 0, size) for kind, size in timeline.constants]
        for term in timeline.terms:
            if not (value := timeline.value(term, choices)):
                continue
            whole = term.kind, term.first, term.last, value
            if term.key[0] == REDUCING:
                self.reducing.append(whole)
            if term.key[0] == ACCUMULATING:
                self.accumulating.append(whole)
            elif term.first == 0 and term.last >= self.last:
                resident.append(whole)
            elif term.key[0] == PARAMETER_GRADIENT:
                self.gradients.append((term.kind, term.made, self.last, value))
            elif term.first > 0 and term.last <= self.last:
                self.body.append(whole)
        self.resident = _total(resident)
        self.forks = list(self._forks(pricer))
        self.has_doors = any(map(self._is_door, range(len(self.sites))))

    @property
    def kept(self) -> list[Interval]:
        return [each for each in self.body if each[1] <= self.turn < each[2]]

    def waiting(self, recomputes: bool) -> FloatArray:
        """Of a microbatch between the halves of its backward.

        A stage that recomputes runs both at once, one that receives nothing differentiable neither
        of them till the second.
        """
        if recomputes:
            return np.zeros(len(KINDS))
        kept = _total(self.kept)
        return kept + _total(self.forks) if self.has_doors else kept

    def stored(self) -> Iterator[tuple[str, tuple[FloatArray, FloatArray]]]:
        """Of every parameter: itself and its optimizer state, always and when the optimizer steps,
        then with its gradient."""
        held: dict[str, list[list[Interval]]] = {}
        end = self.last + 2
        for term in self.timeline.terms:
            site = self.sites[term.site]
            if site.kind != "parameter" or term.last != end or term.kind == "temporaries":
                continue
            always, stepping = held.setdefault(site.path, [[], []])
            one = term.kind, term.first, end, self.timeline.value(term, self.choices)
            stepping.append(one)
            if term.first == 0:
                always.append(one)
        for path, (always, stepping) in held.items():
            yield path, (_total(always), _total(stepping))

    def worst(self, doing: Doing, first: bool, recomputes: bool) -> Worst:
        """The worst moment of an event."""
        if doing == "forward":
            return self._worst(self.body, 1, self.turn)
        idle = "backward_weight" if recomputes else None if self.has_doors else "backward_input"
        if doing == idle:
            kept = np.zeros(len(KINDS)) if recomputes else _total(self.kept)
            return Worst(f"{doing.replace('_', ' of ')}s", kept)
        made = self.gradients if first else self.accumulating
        if doing == "backward" or idle is not None:
            return self._worst([*self.body, *made], self.turn + 1, self.last)
        held = [(kind, self.turn, self.last, size) for kind, _, _, size in self.kept]
        if doing == "backward_weight":
            begin = self.turn + 1
            forks = [(kind, begin, made_at - 1, size) for kind, made_at, _, size in self.forks]
            return self._worst([*held, *forks, *made, *self.reducing], begin, self.last)
        freed = [each for each in self.body if each[1] > self.turn]
        return self._worst([*held, *freed, *self.forks], self.turn + 1, self.last)

    def all_at(self, moment: int) -> Worst:
        """Everything that is alive at one moment of the timeline."""
        kinds = self.timeline.at(self.choices, moment).kinds
        amounts = np.array([kinds.get(kind, 0.0) for kind in KINDS])
        return Worst(self.timeline.name(moment), amounts)

    def _worst(self, intervals: Iterable[Interval], begin: int, end: int) -> Worst:
        change = np.zeros((self.last + 2, len(KINDS)))
        for kind, first, last, size in intervals:
            change[first, KINDS.index(kind)] += size
            change[last + 1, KINDS.index(kind)] -= size
        alive = np.cumsum(change, axis=0)[begin : end + 1]
        at = int(alive.sum(axis=1).argmax())
        return Worst(self.timeline.name(begin + at), alive[at])

    def _is_door(self, at: int) -> bool:
        site = self.sites[at]
        return site.kind == "received" and any(meta.requires_grad for meta in site.outputs)

    def _forks(self, pricer: Pricer) -> Iterator[Interval]:
        """Gradients that wait for the second half of a backward: of results of trained parameters.

        From the moment after the backward of inputs, which needs them itself.
        """
        trunk: set[int] = set()
        for at, site in enumerate(self.sites):
            sources = [(s.site, self.sites[s.site].outputs[s.output]) for s in site.inputs]
            if not (self._is_door(at) or any(s in trunk for s, _ in sources)):
                continue
            trunk.add(at)
            if site.call is None or not any(
                self.sites[s].parameter_only and meta.requires_grad for s, meta in sources
            ):
                continue
            candidate = site.candidates[self.choices[at]]
            for meta, layout in zip(site.outputs, candidate.outputs, strict=True):
                if meta.requires_grad:
                    size = float(pricer.local_bytes(meta, layout))
                    made = self.schedule.backward[at] + 1
                    if made <= self.last:
                        yield "activations", made, self.last, size


def _total(intervals: Iterable[Interval]) -> FloatArray:
    total = np.zeros(len(KINDS))
    for kind, _, _, size in intervals:
        total[KINDS.index(kind)] += size
    return total
