"""Parameters in memory: stored, gathered, reduced, and stepped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from autoplan.buckets import BUCKET_BYTES
from autoplan.layouts import BP, B, Entry, Layout
from autoplan.memory.holding import Holding, copies_of
from autoplan.memory.timeline import Amounts, FloatArray, Term
from autoplan.sites import Candidate, Site
from autoplan.strategies.rule import TensorMeta


class Parameters(Holding):
    """The terms of parameters, and of what the prologue makes of them."""

    def parameter(self, at: int, site: Site) -> Iterator[Term]:
        meta = site.outputs[0]
        end = self.last + 2

        def stored(part: str) -> Amounts:
            def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
                kept = [self.pricer.resident(meta, _storage(each)) for each in one]
                return np.array([[float(getattr(each, part))] for each in kept])

            return amounts

        yield Term("parameters", 0, end, at, stored("parameter"), ("parameter", meta))
        yield self._gathered(at, meta)
        if not self._buckets_are_full:
            yield self._gathering(at, meta)
        if not (self.setting.training and meta.requires_grad):
            return
        yield Term("optimizer", 0, end, at, stored("optimizer_state"), ("state", meta))
        yield Term("gradients", end, end, at, stored("gradient"), ("gradient", meta))
        yield Term("temporaries", end, end, at, *self._stepping(at, meta, stored("parameter")))
        if not self._buckets_are_full:
            yield self._reducing(at, meta)

    def _gathered(self, at: int, meta: TensorMeta) -> Term:
        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            beside = np.array([each.policy == "reduce" for each in one])
            whole = beside * self.sizes(meta, [each.outputs[0] for each in one])
            given: FloatArray = (_moved(one) * self.sizes(meta, _given(one)) + whole)[:, None]
            return given

        return Term("gathered", 0, self.last, at, amounts, ("gathered", meta))

    def _gathering(self, at: int, meta: TensorMeta) -> Term:
        """What is sent and received of a gathered parameter, beside the parameter unpacked.

        Trained and frozen ones travel one after the other: the larger of the two counts.
        """
        counts = meta.requires_grad == self._most_are_trained

        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            received = self.sizes(meta, [each.outputs[0] for each in one])
            sent = self.sizes(meta, _storages(one))
            beside = np.array([each.policy == "reduce" for each in one])
            moved = _moved(one)
            both: FloatArray = (moved | beside) * received + moved * sent
            return (counts * both)[:, None]

        return Term("temporaries", 0, 0, at, amounts, ("gathering", meta))

    def _reducing(self, at: int, meta: TensorMeta) -> Term:
        """What travels of a gradient, packed, and what arrives of it."""

        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            moved = _moved(one)
            pairs = zip(_storages(one), _given(one), strict=True)
            summed = [any(map(_adds_up, storage, use)) for storage, use in pairs]
            sent: FloatArray = (moved | np.array(summed)) * self.sizes(meta, _given(one))
            received = moved * self.sizes(meta, _storages(one))
            return (sent + received)[:, None]

        moment = self.last + 1
        return Term("temporaries", moment, moment, at, amounts, ("reducing", meta))

    @cached_property
    def _most_are_trained(self) -> bool:
        trained = sum(meta.num_bytes for _, meta in self._parameters if meta.requires_grad)
        return 2 * trained >= self._num_bytes

    def _stepping(self, at: int, meta: TensorMeta, stored: Amounts) -> tuple[Amounts, Any]:
        """Temporaries of AdamW: one of every parameter where it works on all at once (CUDA), else
        two of the largest."""
        adam = self.setting.optimizer in ("adam", "adamw")
        times = (
            0.0
            if not adam
            else 1.0
            if self.setting.device_type == "cuda"
            else 2.0 * (at == self._largest)
        )

        def amounts(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
            return times * stored(one, other)

        return amounts, ("stepping", meta, times)

    @cached_property
    def _largest(self) -> int:
        """The trained parameter with most bytes."""
        trained = [(at, meta) for at, meta in self._parameters if meta.requires_grad]
        return max(trained, key=lambda each: each[1].num_bytes)[0]

    @cached_property
    def _buckets_are_full(self) -> bool:
        """Whether the parameters fill more than a bucket; then one bucket is next to nothing."""
        return self._num_bytes > BUCKET_BYTES

    @cached_property
    def _parameters(self) -> list[tuple[int, TensorMeta]]:
        sites = enumerate(self.sites)
        return [(at, site.outputs[0]) for at, site in sites if site.kind == "parameter"]

    @cached_property
    def _num_bytes(self) -> int:
        return sum(meta.num_bytes for _, meta in self._parameters)

    def prologue(self, at: int, site: Site) -> Iterator[Term]:
        """Results of the prologue's ops: alive as long as the body may read them."""
        if site.kind != "op" or self.is_view(at):
            return
        for output, meta in enumerate(site.outputs):
            readers = self.readers.get((at, output), ())
            read = any(not self.sites[reader].parameter_only for reader, _ in readers)
            until = self.last if read else 0
            yield Term("gathered", 0, until, at, *self._output(output, meta))


def _storage(candidate: Candidate) -> Layout:
    assert candidate.storage is not None
    return candidate.storage


def _storages(candidates: Sequence[Candidate]) -> list[Layout]:
    return [_storage(each) for each in candidates]


def _given(candidates: Sequence[Candidate]) -> list[Layout]:
    """How the prologue gives a parameter to the body, whose gradient adds up like it."""
    return [each.carried for each in candidates]


def _moved(candidates: Sequence[Candidate]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool[k]: whether the body is given a parameter in other memory than it is stored in."""
    pairs = zip(_storages(candidates), _given(candidates), strict=True)
    return np.array([copies_of([storage], [use])[0, 0] for storage, use in pairs], dtype=np.bool_)


def _adds_up(stored: Entry, read: Entry) -> bool:
    """Whether the gradient's addends are summed on an axis on which the parameter stays whole."""
    return stored == B and read == BP
