"""Liveness: which tensors of a step live from when to when, and on whose choices that depends.

A value lives from its op to its last reader, or to the backward of the last reader that keeps it; a
gradient from the backward of its last reader to that of its producer. Views live in their base.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autoplan.memory.in_flight import ACCUMULATING, with_others
from autoplan.memory.leaner import Leaner, adding_up
from autoplan.memory.schedule import Block, Schedule
from autoplan.memory.timeline import Amounts, FloatArray, Kind, Term, Timeline
from autoplan.pricing import Pricer
from autoplan.sites import Annotated, Candidate, Site
from autoplan.strategies.rule import TensorMeta


def timeline_of(
    annotated: Annotated,
    pricer: Pricer,
    recomputed: Sequence[Block] = (),
    idle: Sequence[Block] = (),
    only: Collection[int] | None = None,
) -> Timeline:
    """Every term of a step of one microbatch among `pricer.setting.microbatches`.

    Backward computes the blocks `recomputed` again, each before its own backward; what they keep
    for it lives from then on only, and what they read from outside until it is over. Blocks `idle`
    are not, but have moments, so that timelines of several choices among them compare. `only`: the
    terms of these sites alone.
    """
    one, setting = timeline_of_one(annotated, pricer, recomputed, idle, only), pricer.setting
    later = setting.in_flight if setting.in_flight_later is None else setting.in_flight_later
    return with_others(one, setting.in_flight, later)


def timeline_of_one(
    annotated: Annotated,
    pricer: Pricer,
    recomputed: Sequence[Block] = (),
    idle: Sequence[Block] = (),
    only: Collection[int] | None = None,
) -> Timeline:
    """As `timeline_of`, with no other microbatch in flight."""
    schedule = Schedule.of(len(annotated.sites), recomputed, idle)
    liveness = _Liveness(annotated, pricer, schedule)
    terms = [*liveness.terms(range(len(annotated.sites)) if only is None else sorted(only))]
    for block in recomputed:
        terms += _Again(annotated, pricer, schedule.again(block), block).terms(block.again)
    return Timeline(
        annotated, schedule.last + 3, tuple(terms), tuple(liveness.constants()), schedule
    )


class _Liveness(Leaner):
    """The terms of everything that is alive at some moment."""

    def constants(self) -> Iterator[tuple[Kind, float]]:
        """Arguments, whole on every rank, of all microbatches, and buffers."""
        for site in self.sites:
            size = float(sum(meta.num_bytes for meta in site.outputs))
            if site.kind == "input":
                yield "inputs", size * self.setting.microbatches
            elif site.kind in ("buffer", "constant"):
                yield "inputs", size

    def terms(self, of: Iterable[int]) -> Iterator[Term]:
        """What the sites `of` these numbers make, keep and need."""
        for at in of:
            site = self.sites[at]
            if site.kind == "parameter":
                yield from self.parameter(at, site)
                yield from self.body_gathers(at, site)
            elif site.parameter_only:
                yield from self.prologue(at, site)
            else:
                yield from self._values(at, site)
                yield from self._op(at, site)
                yield from self._backward_of_op(at, site)
                for position in range(len(site.inputs)):
                    yield from self._reading(at, position)
                    yield from self._backward_of_reading(at, position)

    def _values(self, at: int, site: Site) -> Iterator[Term]:
        """A value in its own memory, and its gradient."""
        for output, meta in enumerate(site.outputs):
            if site.kind not in ("input", "buffer") and not self.is_view(at):
                yield from self._storage_of(at, output, meta)
            if self.trains(site) and meta.requires_grad and site.kind != "input":
                yield from self._gradient(at, output, meta)

    def _storage_of(self, at: int, output: int, meta: TensorMeta) -> Iterator[Term]:
        """Certain until the last read, then while somebody may hold it."""
        amounts, key = self._output(output, meta)
        until = self.held[at, output]
        readers = self.readers.get((at, output), [])
        read = max([self.forward(at), *(self.forward(reader) for reader, _ in readers)])
        alone = self._alone_until(at, output)
        if alone is None:
            yield Term("activations", self.forward(at), until, at, amounts, key)
            return
        reader, position, since = alone
        since = max(since, read)
        yield Term("activations", self.forward(at), min(since, until), at, amounts, key)
        if until > since:
            held, name = self._while_held(at, output, meta, reader, position)
            yield Term("activations", since + 1, until, at, held, name, reader)

    def _alone_until(self, at: int, output: int) -> tuple[int, int, int] | None:
        """The reader that alone holds a value in the end, and the moment after which it does."""
        value = at, output
        if value in self.returned or self._may_keep(at, "output"):
            return None
        holders = sorted(
            (self._reader_holds(reader, position), reader, position)
            for reader, position in self.readers.get(value, ())
        )
        if not holders:
            return None
        _, reader, position = holders[-1]
        if self.enters(reader, position):
            return None
        return reader, position, holders[-2][0] if len(holders) > 1 else self.forward(at)

    def _while_held(
        self, at: int, output: int, meta: TensorMeta, reader: int, position: int
    ) -> tuple[Amounts, Any]:
        """A value's bytes where its last reader reads it as it lies, and keeps it."""
        keeping = None if self.is_view(reader) else position

        def amounts(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            sizes = self.sizes(meta, [each.outputs[output] for each in one])
            plain = ~self.copies(one, output, other, position)
            kept = np.ones(len(other))
            if keeping is not None:
                kept = self._keeps(reader, keeping, other)
            return sizes[:, None] * plain * kept[None, :]

        return amounts, ("held", meta, output, position, keeping)

    def _gradient(self, at: int, output: int, meta: TensorMeta) -> Iterator[Term]:
        """From the backward of the last reader; after it, where the gradient is what it had."""
        last = max((reader for reader, _ in self.readers.get((at, output), ())), default=at)
        amounts, key = self._output(output, meta)
        start = self.backward(last)
        if last != at and self._passes(last, at, output):
            start += 1
        yield Term("activations", start, self.backward(at), at, amounts, key)

    def _passes(self, reader: int, at: int, output: int) -> bool:
        """Whether a reader's input gradient is its output's gradient, no memory of its own."""
        if self.is_view(reader):
            return True
        site = self.sites[reader]
        if site.call is None:
            return False
        passed = self.memory(reader, site.candidates[:1])[0].passes
        sources = ((s.site, s.output) for s in site.inputs)
        return any(i in passed and s == (at, output) for i, s in enumerate(sources))

    def _op(self, at: int, site: Site) -> Iterator[Term]:
        """What an op keeps beside its inputs and output, and what it needs while it runs."""
        if site.call is None:
            return
        forward = self.forward(at)
        kept_until = self.backward(at) if self._keeps_for_backward(at) else forward
        yield Term("activations", forward, kept_until, at, *self._part(at, site.call.op, "kept"))
        yield Term("temporaries", forward, forward, at, *self._part(at, site.call.op, "forward"))

    def _backward_of_op(self, at: int, site: Site) -> Iterator[Term]:
        if site.call is not None and self.trains(site):
            moment, part = self.backward(at), self._part(at, site.call.op, "backward")
            yield Term("temporaries", moment, moment, at, *part)

    def _part(self, at: int, op: str, name: str) -> tuple[Amounts, Any]:
        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            return np.array([[float(getattr(m, name))] for m in self.memory(at, one)])

        return amounts, (op, name)

    def _reading(self, reader: int, position: int) -> Iterator[Term]:
        """Converted copies of what a site reads, and the buffers of their collectives."""
        source = self.sites[reader].inputs[position]
        at, output = source.site, source.output
        origin, meta = self.sites[at], self.sites[at].outputs[output]
        if origin.parameter_only or self.mesh.ndim == 0:
            return
        forward, until = self.forward(reader), self._copy_held(reader, position)
        keeping = None if self.is_view(reader) else position
        copied = self._copied(output, position, meta)

        def kept(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            held = np.ones(len(other)) if keeping is None else self._keeps(reader, keeping, other)
            return copied(one, other) * held[None, :]

        def in_transit(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            before = [each.outputs[output] for each in one]
            return self._transit(meta, before, [each.inputs[position] for each in other])

        key = meta, output, position, keeping
        yield Term("activations", forward, forward, at, copied, ("copied", *key), reader)
        if until > forward:
            yield Term("activations", forward + 1, until, at, kept, ("kept copy", *key), reader)
        yield Term("temporaries", forward, forward, at, in_transit, ("transit", *key), reader)

    def _copied(self, output: int, position: int, meta: TensorMeta) -> Amounts:
        """Bytes of the converted copy that a reader makes of what it reads, if it makes one."""

        def amounts(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            sizes = self.sizes(meta, [each.inputs[position] for each in other])
            return sizes[None, :] * self.copies(one, output, other, position)

        return amounts

    def _backward_of_reading(self, reader: int, position: int) -> Iterator[Term]:
        """Gradients of what the prologue made, and of copies on their way back."""
        source = self.sites[reader].inputs[position]
        at, output = source.site, source.output
        origin, meta = self.sites[at], self.sites[at].outputs[output]
        if not (self.setting.training and meta.requires_grad):
            return
        if origin.parameter_only:
            yield from self._parameter_gradient(at, reader, position, meta)
            return
        if self.mesh.ndim == 0:
            return
        copied = self._copied(output, position, meta)

        def transit(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            before = [each.inputs[position].dual for each in other]
            after = [each.outputs[output].dual for each in one]
            return self._transit(meta, before, after).T + copied(one, other)

        moment, key = self.backward(reader), ("transit back", meta, output, position)
        yield Term("temporaries", moment, moment, at, transit, key, reader)

    def _parameter_gradient(
        self, at: int, reader: int, position: int, meta: TensorMeta
    ) -> Iterator[Term]:
        """A gradient waits, as the reader makes it, for the prologue's backward.

        Those of further microbatches are added to it. One that the body reduces is elsewhere.
        """
        several, made = self.setting.microbatches > 1, self.backward(reader)
        if not any(each.policy != "step" for each in self.sites[at].candidates):

            def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
                return self.sizes(meta, [each.inputs[position] for each in one])[:, None]

            term = Term("gradients", 0, 0, reader, amounts, ("", meta, position))
        else:

            def of_pairs(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
                whole = np.array([each.policy == "step" for each in one])
                sizes = self.sizes(meta, [each.inputs[position] for each in other])
                return whole[:, None] * sizes[None, :]

            term = Term("gradients", 0, 0, at, of_pairs, ("", meta, position, "pairs"), reader)
        yield from adding_up(term, 1 if several else made, self.last + 1, made)
        if several:
            key = (ACCUMULATING, *term.key[1:])
            yield replace(term, kind="temporaries", first=made, last=made, key=key)


class _Again(_Liveness):
    """The terms of a block while backward computes it again, and of what it then keeps."""

    def __init__(
        self, annotated: Annotated, pricer: Pricer, schedule: Schedule, block: Block
    ) -> None:
        self.again = frozenset(block.again)
        self.reading = block.reading
        super().__init__(annotated, pricer, schedule)
        self.returned = set()

    def _reads(self, at: int) -> bool:
        return at in self.again or at in self.reading

    def terms(self, of: Iterable[int]) -> Iterator[Term]:
        for at in sorted(of):
            site = self.sites[at]
            if not self.is_view(at):
                for output, meta in enumerate(site.outputs):
                    yield from self._storage_of(at, output, meta)
            yield from self._op(at, site)
        for at in sorted(self.again | self.reading):
            for position in range(len(self.sites[at].inputs)):
                yield from self._reading(at, position)
                yield from self.gathered_again(at, position)
