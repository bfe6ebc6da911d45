"""Known: models that are solved already under other names, as equal stages of a pipeline are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from autoplan.memory.liveness import timeline_of
from autoplan.memory.peak import memory_at_peak
from autoplan.memory.within_memory import Case
from autoplan.pricing import Pricer
from autoplan.recompute.blocks import blocks_of
from autoplan.recompute.choose import Chosen, solve_recomputing
from autoplan.request import Request
from autoplan.sites import Annotated


@dataclass(eq=False)
class Known:
    """What was chosen for every problem that was solved; equal ones are solved once."""

    _chosen: dict[bytes, Chosen] = field(default_factory=dict)

    def solve(self, annotated: Annotated, pricer: Pricer, request: Request) -> Chosen:
        """As `solve_recomputing`, of this model or of one that differs from it in names only.

        Choices are numbers of candidates: where all prices, all bytes and all blocks that may be
        recomputed are equal, number by number, so are the best choices.
        """
        blocks = blocks_of(annotated, pricer)
        label = self._label(annotated, pricer, request)
        if label not in self._chosen:
            self._chosen[label] = solve_recomputing(annotated, pricer, request)
            return self._chosen[label]
        chosen = self._chosen[label]
        named = {block.sites: block for block in blocks}
        again = tuple(named[block.sites] for block in chosen.recomputed)
        memory = memory_at_peak(timeline_of(annotated, pricer, again), chosen.solution.choices)
        return replace(chosen, recomputed=again, memory=memory)

    def _label(self, annotated: Annotated, pricer: Pricer, request: Request) -> bytes:
        """A digest of all that decides the choices; names and time limits are aside."""
        digest = hashlib.blake2b(digest_size=32)
        case = Case.of(annotated, pricer, request)
        asked = request.memory_bytes, request.gap, request.setting, request.recompute
        blocks = [
            (each.sites, each.again, sorted(each.reading), each.first, each.last)
            for each in blocks_of(annotated, pricer)
        ]
        digest.update(repr((asked, blocks, case.timeline.constants)).encode())
        for variable in case.problem.variables:
            digest.update(np.ascontiguousarray(variable.cost).tobytes())
        for edge, matrix in sorted(case.problem.edges.items(), key=lambda item: item[0]):
            digest.update(repr(edge).encode() + np.ascontiguousarray(matrix).tobytes())
        for term in case.timeline.terms:
            place = term.kind, term.first, term.last, term.site, term.reader, term.made
            array = case.timeline.array(term)
            digest.update(repr(place).encode() + np.ascontiguousarray(array).tobytes())
        return digest.digest()
