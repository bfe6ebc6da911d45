"""Holding: how long the values of a step are held, and by whom, as far as no choice decides it.

Where several readers may keep a value it counts as kept until the last of them, whatever they
choose, so that every term depends on one choice or on the two ends of one edge. The sum is too
large where all of several keeping readers convert what they keep, and exact elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autoplan.layouts import BP, Layout, Partial, Split
from autoplan.memory.schedule import Schedule
from autoplan.memory.timeline import Amounts, FloatArray
from autoplan.pricing import Pricer, op_memory
from autoplan.sites import Annotated, Candidate, Site
from autoplan.strategies.rule import OpMemory, TensorMeta

Value = tuple[int, int]
"""A site and the number of its output."""


class Holding:
    """The graph of a step as its memory sees it: readers, views, and what ops keep."""

    def __init__(
        self, annotated: Annotated, pricer: Pricer, schedule: Schedule | None = None
    ) -> None:
        self.annotated, self.pricer = annotated, pricer
        self.sites, self.mesh = annotated.sites, annotated.mesh
        self.setting = pricer.setting
        self.schedule = Schedule.of(len(self.sites)) if schedule is None else schedule
        self.last = self.schedule.last
        self._trained = {
            id(site)
            for site in self.sites
            if self.setting.training and any(meta.requires_grad for meta in site.outputs)
        }
        self.readers: dict[Value, list[tuple[int, int]]] = {}
        for at, site in enumerate(self.sites):
            for position, source in enumerate(site.inputs):
                if self._reads(at):
                    self.readers.setdefault((source.site, source.output), []).append((at, position))
        self.returned = {(source.site, source.output) for _, source, _ in annotated.updates}
        loss = annotated.outputs[annotated.loss] if annotated.loss is not None else None
        has_loss = loss is not None or annotated.captured.loss_elsewhere
        kept = [loss] if has_loss and self.setting.training else annotated.outputs
        self.returned |= {(e[0].site, e[0].output) for e in kept if isinstance(e, tuple)}
        self._memories: dict[Any, OpMemory] = annotated.memo.setdefault("memories", {})
        self._saved: dict[Any, set[int | str]] = annotated.memo.setdefault("saved", {})
        self.held: dict[Value, int] = {}
        for at in reversed(range(len(self.sites))):
            for output in range(len(self.sites[at].outputs)):
                self.held[at, output] = self._held_until((at, output))

    # -- moments ----------------------------------------------------------------------------

    def forward(self, at: int) -> int:
        return self.schedule.forward[at]

    def backward(self, at: int) -> int:
        return self.schedule.backward[at]

    def _reads(self, at: int) -> bool:
        """Whether what a site reads counts."""
        return True

    def _keeps_for_backward(self, at: int) -> bool:
        """Whether what a site keeps lives until its backward; a recomputed one makes it again."""
        return self.trains(self.sites[at]) and at not in self.schedule.block

    def trains(self, site: Site) -> bool:
        """Whether a gradient flows through the site."""
        return id(site) in self._trained

    def _held_until(self, value: Value) -> int:
        """The last moment at which anybody may need a value, whatever is chosen."""
        at, _ = value
        if value in self.returned:
            return self.last
        until = self.forward(at)
        if self._may_keep(at, "output"):
            until = self.backward(at)
        for reader, position in self.readers.get(value, ()):
            until = max(until, self._reader_holds(reader, position))
        return until

    def _reader_holds(self, reader: int, position: int) -> int:
        """How long a reader may have what it reads held, as it reads it or as it lies."""
        until = self._copy_held(reader, position)
        if self.enters(reader, position):
            until = max(until, self.schedule.inputs_until[self.schedule.block[reader]])
        return until

    def enters(self, reader: int, position: int) -> bool:
        """Whether a recomputed block reads a value from outside, and holds it as it lies."""
        source, block = self.sites[reader].inputs[position], self.schedule.block
        return reader in block and block.get(source.site) != block[reader]

    def _copy_held(self, reader: int, position: int) -> int:
        """How long a reader may hold what it reads, as it reads it."""
        if self.is_view(reader):
            return max(self.held[reader, 0], self.forward(reader))
        if self._may_keep(reader, position):
            return self.backward(reader)
        return self.forward(reader)

    # -- what ops keep ----------------------------------------------------------------------

    def is_view(self, at: int) -> bool:
        """Whether a site's result lies in the memory of what it reads, conversions aside."""
        site = self.sites[at]
        return site.kind in ("box", "sent") or (
            site.rule is not None and site.rule.kind == "free" and bool(site.inputs)
        )

    def memory(self, at: int, candidates: Sequence[Candidate]) -> list[OpMemory]:
        """What an op keeps and needs under each candidate."""
        site = self.sites[at]
        found = []
        for candidate in candidates:
            key = id(candidate), site.call and site.call.op
            if key not in self._memories:
                self._memories[key] = op_memory(site, candidate, self.mesh)
            found.append(self._memories[key])
        return found

    def may_keep(self, at: int) -> bool:
        """Whether anything is kept from an op to its backward, under any candidate."""
        site = self.sites[at]
        if site.call is None or not self._keeps_for_backward(at):
            return False
        return any(each.saves or each.kept for each in self.memory(at, site.candidates))

    def keeps_inputs_only(self, at: int) -> bool:
        """Whether an op, one local call, keeps none but what it reads, under any candidate."""
        site = self.sites[at]
        if site.rule is None or any(site.rule.program_of(e.labels) for e in site.candidates):
            return False
        memories = self.memory(at, site.candidates)
        return not any("output" in each.saves or each.kept for each in memories)

    def _may_keep(self, at: int, what: int | str) -> bool:
        site = self.sites[at]
        if site.call is None or not self._keeps_for_backward(at):
            return False
        key = id(site.candidates), site.call.op
        if key not in self._saved:
            self._saved[key] = {e for m in self.memory(at, site.candidates) for e in m.saves}
        return what in self._saved[key]

    def _keeps(self, at: int, what: int | str, candidates: Sequence[Candidate]) -> FloatArray:
        """float[k]: 1 where a candidate keeps an input, or the output, until its backward."""
        return np.array([what in each.saves for each in self.memory(at, candidates)], np.float64)

    # -- arrays -----------------------------------------------------------------------------

    def _output(self, output: int, meta: TensorMeta) -> tuple[Amounts, Any]:
        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            return self.sizes(meta, [each.outputs[output] for each in one])[:, None]

        return amounts, ("output", meta, output)

    def sizes(self, meta: TensorMeta, layouts: Sequence[Layout]) -> FloatArray:
        """float[k]: bytes of the largest shard."""
        return np.array([self.pricer.local_bytes(meta, each) for each in layouts], np.float64)

    def copies(
        self,
        one: Sequence[Candidate],
        output: int,
        other: Sequence[Candidate],
        position: int,
    ) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """bool[k, k reader]: whether the conversion between two choices makes a new tensor."""
        before = [each.outputs[output] for each in one]
        return copies_of(before, [each.inputs[position] for each in other])

    def _transit(
        self, meta: TensorMeta, before: Sequence[Layout], after: Sequence[Layout]
    ) -> FloatArray:
        """Buffers of collectives, beside what they read and make: [before, after].

        Shards along another dimension than the first are packed to be sent, or copied out of what
        was received.
        """
        source, target = _codes(before), _codes(after)
        sent, received = self.sizes(meta, before), self.sizes(meta, after)
        result = np.zeros((len(before), len(after)))
        for axis in range(self.mesh.ndim):
            a, b = source[:, axis, None], target[None, :, axis]
            moved = a != b
            splits, joins = moved & (b > _FIRST_SPLIT), moved & (a > _FIRST_SPLIT)
            packs = splits & (a >= _PARTIAL)
            unpacks = joins & (b != _PARTIAL)
            result = np.maximum(result, packs * sent[:, None] + unpacks * received[None, :])
        return result


_BROADCAST, _BROADCAST_PARTIAL, _PARTIAL, _FIRST_SPLIT = range(4)


def _codes(layouts: Sequence[Layout]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int[k, axes]: a number for every entry; S(d) is _FIRST_SPLIT + d."""
    rows = [
        [
            _FIRST_SPLIT + entry.dim
            if isinstance(entry, Split)
            else _PARTIAL
            if isinstance(entry, Partial)
            else _BROADCAST_PARTIAL
            if entry == BP
            else _BROADCAST
            for entry in layout
        ]
        for layout in layouts
    ]
    return np.array(rows, dtype=np.int64).reshape(len(layouts), -1)


def copies_of(
    before: Sequence[Layout], after: Sequence[Layout]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool[before, after]: whether boxing makes a new tensor; slices and B to B/P are views."""
    source, target = _codes(before)[:, None], _codes(after)[None]
    view = (source <= _BROADCAST_PARTIAL) & (target != _PARTIAL)
    result: np.ndarray[Any, np.dtype[np.bool_]] = ((source != target) & ~view).any(axis=2)
    return result
