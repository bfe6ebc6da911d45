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

    _chosen: dict[tuple[bytes, bytes, int], Chosen] = field(default_factory=dict)
    """By what decides times, what decides bytes, and the memory limit."""
    _fastest: dict[bytes, Chosen] = field(default_factory=dict)
    """By what decides times, the best whatever it holds."""

    def solve(self, annotated: Annotated, pricer: Pricer, request: Request) -> Chosen:
        """As `solve_recomputing`, of this model or of one that differs from it in names only.

        Choices are numbers of candidates: where all prices, all bytes and all blocks that may be
        recomputed are equal, number by number, so are the best choices. Where only bytes differ,
        the fastest choices are those of the other, and the best if they fit here.
        """
        case, blocks = Case.of(annotated, pricer, request), blocks_of(annotated, pricer)
        times, limit = _times(case, pricer, blocks), request.memory_bytes
        if times in self._fastest:
            fastest = _here(self._fastest[times], annotated, pricer, blocks)
            if fastest.memory.total <= limit:
                return fastest
        key = times, _bytes(case), limit
        if key in self._chosen:
            return _here(self._chosen[key], annotated, pricer, blocks)
        chosen = solve_recomputing(annotated, pricer, request, case)
        self._chosen[key] = chosen
        if not chosen.limited:
            self._fastest[times] = chosen
        return chosen


def _here(chosen: Chosen, annotated: Annotated, pricer: Pricer, blocks: Sequence[Block]) -> Chosen:
    """What was chosen for an equal model, with the blocks and the memory of this one."""
    named = {block.sites: block for block in blocks}
    again = tuple(named[block.sites] for block in chosen.recomputed)
    memory = memory_at_peak(timeline_of(annotated, pricer, again), chosen.solution.choices)
    return replace(chosen, recomputed=again, memory=memory)


def _times(case: Case, pricer: Pricer, blocks: Sequence[Block]) -> bytes:
    """A digest of all that decides the fastest choices; names and time limits are aside."""
    digest = _Digest()
    annotated, request = case.annotated, case.request
    second = SecondRuns.of(annotated, pricer)
    free = request.recompute == "auto"
    names = named_blocks(pieces_of(annotated.captured), "all" if free else request.recompute)
    setting = replace(request.setting, in_flight=1, in_flight_later=None)
    again = [
        (e.sites, e.again, sorted(e.reading), e.first, e.last, e.name in (names or ()))
        for e in blocks
    ]
    digest.take((request.gap, setting, free, again))
    for variable in case.problem.variables:
        digest.take("variable", variable.cost)
    for edge, matrix in sorted(case.problem.edges.items(), key=lambda item: item[0]):
        digest.take(edge, matrix)
    for block in blocks:
        for at in block.again:
            digest.take(at, second.op_times_s(at))
    return digest.bytes


def _bytes(case: Case) -> bytes:
    """A digest of what choices hold, and when."""
    digest = _Digest()
    setting = case.request.setting
    digest.take((setting.in_flight, setting.in_flight_later, case.timeline.constants))
    for term in case.timeline.terms:
        place = term.kind, term.first, term.last, term.site, term.reader, term.made
        digest.take(place, case.timeline.array(term))
    return digest.bytes


class _Digest:
    """Of values and arrays, in the order in which they are taken."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)

    def take(self, value: object, array: FloatArray | None = None) -> None:
        self._hash.update(repr((value, None if array is None else array.shape)).encode())
        if array is not None:
            self._hash.update(np.ascontiguousarray(array).tobytes())

    @property
    def bytes(self) -> bytes:
        return self._hash.digest()
