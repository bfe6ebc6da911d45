"""The ledger of a choice: every collective that a step runs, and the bytes alive at its peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autoplan.annotate import Annotated, Candidate, Site
from autoplan.boxing import COLLECTIVES, Move
from autoplan.buckets import Conversion, cut_buckets
from autoplan.conversions import convert, prologue_conversions
from autoplan.formulate import priced_outputs
from autoplan.layouts import B, Layout
from autoplan.plan import Collective, Memory
from autoplan.pricing import Pricer, inner_collectives
from autoplan.strategies.rule import TensorMeta


def collectives(
    annotated: Annotated, choices: Sequence[int], pricer: Pricer, whole_outputs: bool
) -> tuple[Collective, ...]:
    """Every collective of one step, in graph order, equal ones at one place counted together."""
    counted: dict[tuple[str, int, str, str, str, str], int] = {}
    for key, runs in _entries(annotated, choices, pricer, whole_outputs):
        counted[key] = counted.get(key, 0) + runs
    result = []
    for (kind, size, axis, path, phase, direction), count in counted.items():
        time_s = count * pricer.cost_model.collective_time_s(kind, float(size), axis)
        result.append(Collective(kind, size, count, axis, path, phase, direction, time_s))
    return tuple(result)


_Key = tuple[str, int, str, str, str, str]


def _entries(
    annotated: Annotated, choices: Sequence[int], pricer: Pricer, whole_outputs: bool
) -> Iterator[tuple[_Key, int]]:
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]

    def boxed(each: Conversion, phase: str) -> Iterator[tuple[_Key, int]]:
        runs = 1 if phase == "prologue" else pricer.setting.microbatches
        for move in each.moves:
            for key in _entries_of([(each, move)], pricer, phase):
                yield key, runs

    stored, leaving = prologue_conversions(annotated, chosen, pricer.routers)
    for conversions in (stored, leaving):
        for bucket in cut_buckets(conversions, pricer.mesh):
            moves = [(conversions[number], move) for number, move in bucket]
            yield from ((key, 1) for key in _entries_of(moves, pricer, "prologue"))
    for at, site in enumerate(annotated.sites):
        candidate = chosen[at]
        for position, source in enumerate(site.inputs):
            origin = annotated.sites[source.site]
            if origin.parameter_only and not site.parameter_only:
                continue
            phase = "prologue" if origin.parameter_only else "body"
            layout = chosen[source.site].outputs[source.output]
            meta = origin.outputs[source.output]
            target = candidate.inputs[position]
            yield from boxed(convert(pricer.routers.body, layout, target, meta, site.path), phase)
        phase = "prologue" if site.parameter_only else "body"
        for inner in inner_collectives(site, candidate, pricer.mesh):
            direction = "backward" if inner.backward else "forward"
            key = (inner.kind, inner.size_bytes, inner.axis, site.path, phase, direction)
            yield key, pricer.runs(site)
    whole = Layout((B,) * pricer.mesh.ndim)
    priced = {id(source) for source, _ in priced_outputs(annotated, whole_outputs)}
    for number, each in enumerate(annotated.outputs):
        if isinstance(each, tuple):
            source, meta = each
            phase = "body" if id(source) in priced else "outputs"
            layout = chosen[source.site].outputs[source.output]
            path = f"output {number}"
            yield from boxed(convert(pricer.routers.body, layout, whole, meta, path), phase)


def _entries_of(
    moves: Sequence[tuple[Conversion, Move]], pricer: Pricer, phase: str
) -> Iterator[_Key]:
    """Forward and backward collective of moves that travel together."""
    first, move = moves[0]
    axis = pricer.mesh.axes[move.axis]
    size = sum(
        step.whole_bytes(each.meta.shape, each.meta.itemsize, pricer.mesh) for each, step in moves
    )
    path = first.path
    if len(moves) > 1:
        path = f"{first.path} .. {moves[-1][0].path} ({len(moves)} tensors)"
    directions = ("forward", "backward")
    for direction, action in zip(directions, move.actions(first.meta.requires_grad), strict=False):
        if action in COLLECTIVES and not (phase == "outputs" and direction == "backward"):
            yield action, size, axis, path, phase, direction


def peak_memory(annotated: Annotated, choices: Sequence[int], pricer: Pricer) -> Memory:
    """Bytes alive at the peak of a training step, by liveness over forward and backward.

    Time runs 0 .. n-1 forward and n .. 2n-1 backward, in reverse. A tensor lives from its op to its
    last reader, or to the backward of the last reader that keeps it; a gradient from the backward of
    its last reader to that of its producer. Views live in their base. Parameters, gradients,
    optimizer state, and what the prologue gathers live all along.
    """
    return _Liveness(annotated, choices, pricer).peak()


class _Liveness:
    def __init__(self, annotated: Annotated, choices: Sequence[int], pricer: Pricer) -> None:
        self.sites = annotated.sites
        self.chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]
        self.pricer = pricer
        self.ends = 2 * len(self.sites)
        self.base: dict[tuple[int, int], tuple[int, int]] = {}
        self.birth: dict[tuple[int, int], int] = {}
        self.death: dict[tuple[int, int], int] = {}
        self.size: dict[tuple[int, int], int] = {}
        self.extra: list[tuple[int, int, int]] = []
        self.outputs = {
            (each[0].site, each[0].output) for each in annotated.outputs if isinstance(each, tuple)
        }

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
            source = site.inputs[0] if site.inputs else None
            if aliases and source is not None and not self.sites[source.site].parameter_only:
                self.base[key] = self._root((source.site, source.output))
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
        if not hasattr(self, "_last_reader"):
            self._last_reader: dict[tuple[int, int], int] = {}
            for reader, site in enumerate(self.sites):
                for source in site.inputs:
                    self._last_reader[source.site, source.output] = reader
        return self.ends - 1 - self._last_reader.get((at, output), at)

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
    from autoplan.layouts import Broadcast, Split

    return any(
        a != b and not (isinstance(a, Broadcast) and isinstance(b, (Broadcast, Split)))
        for a, b in zip(before, after, strict=True)
    )
