"""Parameters that the body gathers or reduces: whole around their readers, and shards otherwise.

Every reader gathers for itself, in forward and again for its backward where it keeps the parameter;
a recomputed one for its second run instead, whose copy its backward then has. Its gradient is whole
from its backward until it is reduced, right after it; what adds up over microbatches is a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from autoplan.memory.in_flight import ACCUMULATING, PARAMETER_GRADIENT
from autoplan.memory.parameters import Parameters
from autoplan.memory.timeline import Amounts, FloatArray, Term
from autoplan.sites import Candidate, Site
from autoplan.strategies.rule import TensorMeta

REDUCING = "reducing now"
"""Begins the key of a whole gradient that the body reduces at once."""


def adding_up(term: Term, first: int, last: int, made: int) -> Iterator[Term]:
    """`term` as a gradient that a microbatch makes at moment `made`, and that others add to."""
    key = (PARAMETER_GRADIENT, *term.key[1:])
    yield replace(term, first=first, last=last, key=key, made=made)


class Leaner(Parameters):
    """The terms of parameters that are not gathered and reduced once a step."""

    def body_gathers(self, at: int, site: Site) -> Iterator[Term]:
        """Of every reader: the whole parameter forward and backward, its gradient, and the sum."""
        if not any(each.policy != "step" for each in site.candidates):
            return
        meta = site.outputs[0]
        for reader, position in self._body_readers(at):
            yield from self._gathers(at, meta, reader)
            yield from self._gathers_for_backward(at, meta, reader, position)
            if self.setting.training and meta.requires_grad:
                yield from self._reduces(at, meta, reader, position)

    def _gathers(self, at: int, meta: TensorMeta, reader: int) -> Iterator[Term]:
        """In forward: until the last op that reads it, or a view of it."""
        forward = self.forward(reader)
        amounts = self._whole(meta, transit=True)
        yield Term("temporaries", forward, forward, at, amounts, ("gathering", meta))
        last = max((self.forward(end) for end, _ in self._ends(reader, 0)), default=forward)
        if last > forward:
            amounts = self._whole(meta)
            yield Term("gathered", forward + 1, last, at, amounts, ("gathered there", meta))

    def _gathers_for_backward(
        self, at: int, meta: TensorMeta, reader: int, position: int
    ) -> Iterator[Term]:
        """Again, where ops keep it, until the last of them is done."""
        keeping = self._keeping(reader, position)
        if reader in self.schedule.block or not keeping:
            return
        moments = [self.backward(end) for end in keeping]
        if moments == [self.backward(reader)] and self._is_reduced(meta):
            return  # beside its gradient, below
        amounts = self._whole(meta, transit=True)
        yield Term("gathered", min(moments), max(moments), at, amounts, ("gathering", meta))

    def _reduces(self, at: int, meta: TensorMeta, reader: int, position: int) -> Iterator[Term]:
        """The op itself has the parameter beside its gradient; then the gradient travels."""
        backward, block = self.backward(reader), self.schedule.block
        regathers = self._keeping(reader, position) == [reader] and reader not in block
        amounts = self._reducing_now(meta, regathers, reader, position)
        key = REDUCING, meta, regathers, position, id(self.sites[reader].candidates)
        yield Term("temporaries", backward, backward, at, amounts, key)
        shard = Term("gradients", 0, 0, at, self._shard(meta), ("", meta, "shard"))
        several = self.setting.microbatches > 1
        yield from adding_up(shard, 1 if several else backward, self.last + 1, backward)
        if several:
            key = (ACCUMULATING, *shard.key[1:])
            yield replace(shard, kind="temporaries", first=backward, last=backward, key=key)

    def gathered_again(self, reader: int, position: int) -> Iterator[Term]:
        """What a second run gathers, until the backward of the last op that needs it."""
        at = self.sites[reader].inputs[position].site
        if self.sites[at].kind == "box" and self.sites[at].parameter_only:
            at = self.sites[at].inputs[0].site
        site = self.sites[at]
        if site.kind != "parameter" or not any(e.policy != "step" for e in site.candidates):
            return
        meta, moment = site.outputs[0], self.forward(reader)
        travelling = self._whole(meta, transit=True)
        yield Term("temporaries", moment, moment, at, travelling, ("gathering", meta))
        keeping = self._keeping(reader, position)
        if keeping:
            until = max(self.backward(end) for end in keeping)
            amounts = self._whole(meta)
            yield Term("gathered", moment + 1, until, at, amounts, ("gathered there", meta))

    def _is_reduced(self, meta: TensorMeta) -> bool:
        return self.setting.training and meta.requires_grad

    def _keeping(self, reader: int, position: int) -> list[int]:
        """The ops that keep for backward what a reader reads, or a view of it."""
        return [
            end
            for end, place in self._ends(reader, position)
            if self._saves(end, place) and self.trains(self.sites[end])
        ]

    def _ends(self, reader: int, position: int) -> list[tuple[int, int]]:
        """A reader, or those of the view that it is, and what of theirs is read."""
        if self.sites[reader].kind != "op" or not self.is_view(reader):
            return [(reader, position)]
        outputs = range(len(self.sites[reader].outputs))
        readers = (each for output in outputs for each in self.readers.get((reader, output), ()))
        return [end for each in readers for end in self._ends(*each)]

    def _body_readers(self, at: int) -> Iterator[tuple[int, int]]:
        for reader, position in self.readers.get((at, 0), ()):
            if self.sites[reader].kind == "box" and self.sites[reader].parameter_only:
                yield from self.readers.get((reader, 0), ())
            else:
                yield reader, position

    def _saves(self, reader: int, position: int) -> bool:
        """Whether an op keeps an input for its backward, under any candidate."""
        memories = self.memory(reader, self.sites[reader].candidates)
        return any(position in each.saves for each in memories)

    def _whole(self, meta: TensorMeta, transit: bool = False) -> Amounts:
        """Bytes of a parameter that readers gather; with what travels beside it."""

        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            meant = np.array([each.policy == "microbatch" for each in one])
            sizes = self.sizes(meta, [each.outputs[0] for each in one])
            if transit:
                sizes = sizes + self._on_its_way(meta, one, back=False)
            whole: FloatArray = (meant * sizes)[:, None]
            return whole

        return amounts

    def _reducing_now(
        self, meta: TensorMeta, regathers: bool, reader: int, position: int
    ) -> Amounts:
        """A whole gradient, with the parameter gathered again, or with what is sent of it.

        Beside the shard that arrives, which adds up, and beside what the op's rule says of its
        backward: a copy of the gradient, which travels.
        """
        readers = self.sites[reader].candidates
        backward = {
            each.inputs[position]: memory.backward
            for each, memory in zip(readers, self.memory(reader, readers), strict=True)
        }

        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            meant = np.array([each.policy != "step" for each in one])
            gathers = np.array([regathers and each.policy == "microbatch" for each in one])
            whole = self.sizes(meta, [each.outputs[0] for each in one])
            travels = self._on_its_way(meta, one, back=True)
            counted = np.array([backward.get(each.outputs[0], 0) for each in one])
            beside: FloatArray = np.maximum(gathers * whole - counted, travels)
            return (meant * (whole + beside))[:, None]

        return amounts

    def _shard(self, meta: TensorMeta) -> Amounts:
        """Bytes of the gradient as the body is given the parameter."""

        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            meant = np.array([each.policy != "step" for each in one])
            return (meant * self.sizes(meta, [each.carried for each in one]))[:, None]

        return amounts

    def _on_its_way(self, meta: TensorMeta, one: Sequence[Candidate], back: bool) -> FloatArray:
        """Buffers of the collectives between the shard and the whole: float[k]."""
        ends = [(each.carried, each.outputs[0]) for each in one]
        if back:
            ends = [(read.dual, given.dual) for given, read in ends]
        return np.array([self._transit(meta, [a], [b])[0, 0] for a, b in ends])
