"""Peak memory: the bytes alive at the worst moment of a step, by liveness."""

from __future__ import annotations

from collections.abc import Sequence

from autoplan.layouts import Broadcast, Layout, Split
from autoplan.plan import Memory
from autoplan.pricing import Pricer
from autoplan.sites import Annotated, Candidate, Site
from autoplan.strategies.rule import TensorMeta


def peak_memory(annotated: Annotated, choices: Sequence[int], pricer: Pricer) -> Memory:
    """Bytes alive at the peak of a training step, by liveness over forward and backward.

    Time runs 0 .. n-1 forward and n .. 2n-1 backward, in reverse. A tensor lives from its op to its
    last reader, or to the backward of the last reader that keeps it; a gradient from the backward
    of its last reader to that of its producer. Views live in their base. Parameters, gradients,
    optimizer state, and what the prologue gathers live all along.
    """
    return _Liveness(annotated, choices, pricer).peak()


class _Liveness:
    def __init__(self, annotated: Annotated, choices: Sequence[int], pricer: Pricer) -> None:
        self.sites = annotated.sites
        self.chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]
        self.pricer = pricer
        self.ends = 2 * len(self.sites)
        self.last_reader = {
            (source.site, source.output): reader
            for reader, site in enumerate(self.sites)
            for source in site.inputs
        }
        self.base: dict[tuple[int, int], tuple[int, int]] = {}
        self.birth: dict[tuple[int, int], int] = {}
        self.death: dict[tuple[int, int], int] = {}
        self.size: dict[tuple[int, int], int] = {}
        self.extra: list[tuple[int, int, int]] = []
        self.outputs = {
            (each[0].site, each[0].output) for each in annotated.outputs if isinstance(each, tuple)
        } | {(source.site, source.output) for _, source, _ in annotated.updates}

    def peak(self) -> Memory:
        parameters = gradients = optimizer = gathered = 0
        for site, candidate in zip(self.sites, self.chosen, strict=True):
            if candidate.storage is not None:
                meta = site.outputs[0]
                kept = self.pricer.resident(meta, candidate.storage)
                parameters += int(kept.parameter)
                gradients += int(kept.gradient)
                optimizer += int(kept.optimizer_state)
                gathered += self._gathered(candidate.storage, candidate.outputs[0], meta)
        for at, site in enumerate(self.sites):
            if not site.parameter_only:
                self._visit(at, site, self.chosen[at])
        return Memory(parameters, gradients, optimizer, gathered, self._sweep())

    def _gathered(self, storage: Layout, use: Layout, meta: TensorMeta) -> int:
        if self.pricer.local_bytes(meta, use) <= self.pricer.local_bytes(meta, storage):
            return 0
        accumulated = self.pricer.setting.microbatches > 1 and meta.requires_grad
        return self.pricer.local_bytes(meta, use) * (2 if accumulated else 1)

    def _visit(self, at: int, site: Site, candidate: Candidate) -> None:
        backward = self.ends - 1 - at
        training = any(meta.requires_grad for meta in site.outputs)
        kept = self._kept(site) if training else frozenset()
        for position, source in enumerate(site.inputs):
            origin = self.sites[source.site]
            meta = origin.outputs[source.output]
            before = self.chosen[source.site].outputs[source.output]
            after = candidate.inputs[position]
            until = backward if position in kept else at
            if not origin.parameter_only:
                self._extend((source.site, source.output), at if _copies(before, after) else until)
            if _copies(before, after):
                size = self.pricer.local_bytes(meta, after)
                if site.kind == "box":
                    continue
                if origin.parameter_only:
                    self.extra.append((0, self.ends, size))
                else:
                    self.extra.append((at, until, size))
        for output, meta in enumerate(site.outputs):
            key = (at, output)
            size = self.pricer.local_bytes(meta, candidate.outputs[output])
            aliases = self._is_view(site, candidate)
            if aliases and site.inputs and not self.sites[site.inputs[0].site].parameter_only:
                self.base[key] = self._root((site.inputs[0].site, site.inputs[0].output))
            else:
                self.birth[key], self.size[key] = at, size
            self._extend(key, backward if "output" in kept else at)
            if key in self.outputs:
                self._extend(key, self.ends)
            if meta.requires_grad and not aliases:
                self.extra.append((self._last_reader_backward(at, output), backward, size))

    def _kept(self, site: Site) -> frozenset[int | str]:
        if site.call is None:
            return frozenset()
        if site.rule is None:
            return frozenset(range(len(site.inputs)))
        return frozenset(site.rule.saved(site.call))

    def _is_view(self, site: Site, candidate: Candidate) -> bool:
        if site.kind == "box":
            return not _copies(
                self.chosen[site.inputs[0].site].outputs[site.inputs[0].output], candidate.inputs[0]
            )
        return site.rule is not None and site.rule.kind == "free"

    def _root(self, key: tuple[int, int]) -> tuple[int, int]:
        return self.base.get(key, key)

    def _extend(self, key: tuple[int, int], until: int) -> None:
        root = self._root(key)
        self.death[root] = max(self.death.get(root, 0), until)

    def _last_reader_backward(self, at: int, output: int) -> int:
        """When the first gradient of an output arrives: the backward of its last reader."""
        return self.ends - 1 - self.last_reader.get((at, output), at)

    def _sweep(self) -> int:
        change = [0] * (self.ends + 2)
        spans = [(self.birth[k], self.death.get(k, self.birth[k]), s) for k, s in self.size.items()]
        for start, stop, size in (*spans, *self.extra):
            change[start] += size
            change[max(stop, start) + 1] -= size
        alive = peak = 0
        for each in change:
            alive += each
            peak = max(peak, alive)
        return peak


def _copies(before: Layout, after: Layout) -> bool:
    """Whether boxing makes a new tensor; slices and changes of B to B/P are views."""
    return any(
        a != b and not (isinstance(a, Broadcast) and isinstance(b, (Broadcast, Split)))
        for a, b in zip(before, after, strict=True)
    )
