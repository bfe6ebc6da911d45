"""Liveness: which tensors of a step live from when to when, and on whose choices that depends.

A value lives from its op to its last reader, or to the backward of the last reader that keeps it; a
gradient from the backward of its last reader to that of its producer. Views live in their base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from autoplan.memory.parameters import Parameters
from autoplan.memory.timeline import Amounts, FloatArray, Kind, Term, Timeline
from autoplan.pricing import Pricer
from autoplan.sites import Annotated, Candidate, Site
from autoplan.strategies.rule import TensorMeta


def timeline_of(annotated: Annotated, pricer: Pricer) -> Timeline:
    """Every term of a step of one microbatch among `pricer.setting.microbatches`."""
    liveness = _Liveness(annotated, pricer)
    terms = tuple(liveness.terms())
    return Timeline(annotated, 2 * len(annotated.sites) + 3, terms, tuple(liveness.constants()))


class _Liveness(Parameters):
    """The terms of everything that is alive at some moment."""

    def constants(self) -> Iterator[tuple[Kind, float]]:
        """Arguments, whole on every rank, of all microbatches, and buffers."""
        for site in self.sites:
            size = float(sum(meta.num_bytes for meta in site.outputs))
            if site.kind == "input":
                yield "inputs", size * self.setting.microbatches
            elif site.kind in ("buffer", "constant"):
                yield "inputs", size

    def terms(self) -> Iterator[Term]:
        for at, site in enumerate(self.sites):
            if site.kind == "parameter":
                yield from self.parameter(at, site)
            elif site.parameter_only:
                yield from self.prologue(at, site)
            else:
                yield from self._values(at, site)
                yield from self._op(at, site)
                for position in range(len(site.inputs)):
                    yield from self._reading(at, position)

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
        key = site.call.op

        def part(name: str) -> Amounts:
            def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
                return np.array([[float(getattr(m, name))] for m in self.memory(at, one)])

            return amounts

        forward, backward = self.forward(at), self.backward(at)
        trains = self.trains(site)
        kept_until = backward if trains else forward
        yield Term("activations", forward, kept_until, at, part("kept"), (key, "kept"))
        yield Term("temporaries", forward, forward, at, part("forward"), (key, "forward"))
        if trains:
            yield Term("temporaries", backward, backward, at, part("backward"), (key, "backward"))

    def _reading(self, reader: int, position: int) -> Iterator[Term]:
        """What reading makes: converted copies, and gradients of what the prologue made."""
        source = self.sites[reader].inputs[position]
        at, output = source.site, source.output
        origin, meta = self.sites[at], self.sites[at].outputs[output]
        grad = self.setting.training and meta.requires_grad
        if origin.parameter_only:
            if grad:
                yield self._parameter_gradient(reader, position, meta)
            return
        if self.mesh.ndim == 0:
            return
        forward, until = self.forward(reader), self._reader_holds(reader, position)
        keeping = None if self.is_view(reader) else position

        def copied(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            sizes = self.sizes(meta, [each.inputs[position] for each in other])
            return sizes[None, :] * self.copies(one, output, other, position)

        def kept(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            held = np.ones(len(other)) if keeping is None else self._keeps(reader, keeping, other)
            return copied(one, other) * held[None, :]

        def in_transit(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            before = [each.outputs[output] for each in one]
            return self._transit(meta, before, [each.inputs[position] for each in other])

        def backward_transit(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            before = [each.inputs[position].dual for each in other]
            after = [each.outputs[output].dual for each in one]
            return self._transit(meta, before, after).T + copied(one, other)

        key = meta, output, position, keeping
        yield Term("activations", forward, forward, at, copied, ("copied", *key), reader)
        if until > forward:
            yield Term("activations", forward + 1, until, at, kept, ("kept copy", *key), reader)
        yield Term("temporaries", forward, forward, at, in_transit, ("transit", *key), reader)
        if grad:
            moment = self.backward(reader)
            back = ("transit back", *key)
            yield Term("temporaries", moment, moment, at, backward_transit, back, reader)

    def _parameter_gradient(self, reader: int, position: int, meta: TensorMeta) -> Term:
        """A gradient waits, as the reader makes it, for the prologue's backward."""

        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            return self.sizes(meta, [each.inputs[position] for each in one])[:, None]

        first = 1 if self.setting.microbatches > 1 else self.backward(reader)
        key = "parameter gradient", meta, position
        return Term("gradients", first, self.last + 1, reader, amounts, key)
