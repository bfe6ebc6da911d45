"""Known: models that are solved already under other names, as equal stages of a pipeline are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoplan.memory.liveness import timeline_of
from autoplan.memory.peak import memory_at_peak
from autoplan.memory.schedule import Block
from autoplan.memory.within_memory import Case
from autoplan.pipelining.pieces import pieces_of
from autoplan.pricing import Pricer
from autoplan.recompute.blocks import blocks_of, named_blocks
from autoplan.recompute.choose import Chosen, solve_recomputing
from autoplan.recompute.pricing import FloatArray, SecondRuns
from autoplan.request import Request
from autoplan.sites import Annotated


@dataclass(eq=False)
class Known:
    """What was chosen for every problem that was solved; equal ones are solved once."""

    _chosen: dict[tuple[bytes, int], Chosen] = field(default_factory=dict)
    """By label and memory limit."""
    _fastest: dict[bytes, Chosen] = field(default_factory=dict)
    """By label, the best whatever the limit."""

    def solve(self, annotated: Annotated, pricer: Pricer, request: Request) -> Chosen:
        """As `solve_recomputing`, of this model or of one that differs from it in names only.

        Choices are numbers of candidates: where all prices, all bytes and all blocks that may be
        recomputed are equal, number by number, so are the best choices.
        """
        case, blocks = Case.of(annotated, pricer, request), blocks_of(annotated, pricer)
        label, limit = _label(case, pricer, blocks), request.memory_bytes
        chosen = self._fastest.get(label)
        if chosen is None or chosen.memory.total > limit:
            chosen = self._chosen.get((label, limit))
        if chosen is None:
            chosen = solve_recomputing(annotated, pricer, request, case)
            self._chosen[label, limit] = chosen
            if not chosen.limited:
                self._fastest[label] = chosen
            return chosen
        named = {block.sites: block for block in blocks}
        again = tuple(named[block.sites] for block in chosen.recomputed)
        memory = memory_at_peak(timeline_of(annotated, pricer, again), chosen.solution.choices)
        return replace(chosen, recomputed=again, memory=memory)


def _label(case: Case, pricer: Pricer, blocks: Sequence[Block]) -> bytes:
    """A digest of all that decides the choices but the memory limit; names and time are aside."""
    digest = hashlib.blake2b(digest_size=32)

    def take(place: object, array: FloatArray) -> None:
        digest.update(repr((place, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())

    annotated, request = case.annotated, case.request
    second = SecondRuns.of(annotated, pricer)
    free = request.recompute == "auto"
    names = named_blocks(pieces_of(annotated.captured), "all" if free else request.recompute)
    asked = request.gap, request.setting, free
    again = [
        (e.sites, e.again, sorted(e.reading), e.first, e.last, e.name in (names or ()))
        for e in blocks
    ]
    digest.update(repr((asked, again, case.timeline.constants)).encode())
    for variable in case.problem.variables:
        take("variable", variable.cost)
    for edge, matrix in sorted(case.problem.edges.items(), key=lambda item: item[0]):
        take(edge, matrix)
    for term in case.timeline.terms:
        place = term.kind, term.first, term.last, term.site, term.reader, term.made
        take(place, case.timeline.array(term))
    for block in blocks:
        for at in block.again:
            take(at, second.op_times_s(at))
    return digest.digest()
