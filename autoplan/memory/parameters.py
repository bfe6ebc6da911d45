"""Parameters in memory: stored, gathered, reduced, and stepped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from autoplan.buckets import BUCKET_BYTES
from autoplan.layouts import BP, B, Layout
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
        if not (self.setting.training and meta.requires_grad):
            yield self._gathered(at, meta)
            if not self._buckets_are_full:
                yield self._gathering(at, meta)
            return
        yield Term("optimizer", 0, end, at, stored("optimizer_state"), ("state", meta))
        yield Term("gradients", end, end, at, stored("gradient"), ("gradient", meta))
        yield self._gathered(at, meta)
        yield Term("temporaries", end, end, at, *self._stepping(at, meta, stored("parameter")))
        if self._buckets_are_full:
            return
        yield self._gathering(at, meta)
        shares = ("bucket", meta)
        yield Term("temporaries", self.last + 1, self.last + 1, at, self._in_bucket(meta), shares)

    def _gathered(self, at: int, meta: TensorMeta) -> Term:
        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            storage = [_storage(each) for each in one]
            use = [each.outputs[0] for each in one]
            moved = np.array([copies_of([s], [u])[0, 0] for s, u in zip(storage, use, strict=True)])
            return (moved * self.sizes(meta, use))[:, None]

        return Term("gathered", 0, self.last, at, amounts, ("gathered", meta))

    def _gathering(self, at: int, meta: TensorMeta) -> Term:
        """What is sent and received of a gathered parameter, beside the parameter unpacked.

        Trained and frozen ones travel one after the other: the larger of the two counts.
        """
        counts = meta.requires_grad == self._most_are_trained

        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            storage = [_storage(each) for each in one]
            use = [each.outputs[0] for each in one]
            moved = np.array([copies_of([s], [u])[0, 0] for s, u in zip(storage, use, strict=True)])
            sizes = self.sizes(meta, use) + self.sizes(meta, storage)
            return (counts * moved * sizes)[:, None]

        return Term("temporaries", 0, 0, at, amounts, ("gathering", meta))

    @cached_property
    def _most_are_trained(self) -> bool:
        metas = [site.outputs[0] for site in self.sites if site.kind == "parameter"]
        return 2 * sum(m.num_bytes * m.requires_grad for m in metas) >= sum(
            m.num_bytes for m in metas
        )

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
        trained = (
            i
            for i, s in enumerate(self.sites)
            if s.kind == "parameter" and s.outputs[0].requires_grad
        )
        return max(
            trained,
            key=lambda i: self.sites[i].outputs[0].numel * self.sites[i].outputs[0].itemsize,
        )

    @cached_property
    def _buckets_are_full(self) -> bool:
        """Whether the parameters fill more than a bucket; then one bucket is next to nothing."""
        metas = [site.outputs[0] for site in self.sites if site.kind == "parameter"]
        return sum(meta.itemsize * meta.numel for meta in metas) > BUCKET_BYTES

    def _in_bucket(self, meta: TensorMeta) -> Amounts:
        """What travels of a gradient, packed, and what arrives of it."""

        def amounts(one: Sequence[Candidate], _: Sequence[Candidate]) -> FloatArray:
            result = []
            for each in one:
                storage, use = _storage(each), each.outputs[0]
                gathered = bool(copies_of([storage], [use])[0, 0])
                reduced = any(u == BP and s == B for s, u in zip(storage, use, strict=True))
                size = float(self.pricer.local_bytes(meta, use)) if gathered or reduced else 0.0
                result.append(size + gathered * self.pricer.local_bytes(meta, storage))
            return np.array(result)[:, None]

        return amounts

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
