"""The ledger of a choice: every collective that a step runs, and the bytes alive at its peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autoplan.boxing import COLLECTIVES, Move
from autoplan.buckets import Conversion, cut_buckets
from autoplan.conversions import convert, gathered_beside, gathering, prologue_conversions
from autoplan.formulate import priced_outputs
from autoplan.layouts import B, Layout
from autoplan.memory.schedule import Block
from autoplan.plan import Collective
from autoplan.pricing import Pricer, inner_collectives
from autoplan.recompute.pricing import reads_again
from autoplan.sites import Annotated


def collectives(
    annotated: Annotated,
    choices: Sequence[int],
    pricer: Pricer,
    whole_outputs: bool,
    recomputed: Sequence[Block] = (),
) -> tuple[Collective, ...]:
    """Every collective of one step, in graph order, equal ones at one place counted together."""
    counted: dict[tuple[str, int, str, str, str, str], int] = {}
    entries = _entries(annotated, choices, pricer, whole_outputs, recomputed)
    for key, runs in (*entries, *_again(annotated, choices, pricer, recomputed)):
        counted[key] = counted.get(key, 0) + runs
    result = []
    for (kind, size, axis, path, phase, direction), count in counted.items():
        time_s = count * pricer.cost_model.collective_time_s(kind, float(size), axis)
        result.append(Collective(kind, size, count, axis, path, phase, direction, time_s))
    return tuple(result)


_Key = tuple[str, int, str, str, str, str]


def _gathers(
    annotated: Annotated,
    choices: Sequence[int],
    pricer: Pricer,
    read: tuple[int, int],
    recomputed: Sequence[Block],
) -> Iterator[tuple[_Key, int]]:
    """What the body does to a parameter for one reader: gathers, again, and reduces."""
    at, position = read
    site = annotated.sites[at]
    source = site.inputs[position]
    origin = annotated.sites[source.site]
    given, reader = origin.candidates[choices[source.site]], site.candidates[choices[at]]
    times = pricer.gathers(given, site, reader, position)
    # A second run gathers in any case, and leaves nothing to gather to its backward.
    runs_again = any(at in block.again or at in block.reading for block in recomputed)
    count = pricer.setting.microbatches
    each = gathering(given, origin.outputs[source.output], pricer.routers, origin.path)
    for move in each.moves:
        for key in _entries_of([(each, move)], pricer, "body"):
            if key[5] == "backward":
                yield key, count
            elif times:
                yield key, count
                if runs_again or times > 1:
                    yield (*key[:5], AGAIN if runs_again else "backward"), count


def _entries(
    annotated: Annotated,
    choices: Sequence[int],
    pricer: Pricer,
    whole_outputs: bool,
    recomputed: Sequence[Block],
) -> Iterator[tuple[_Key, int]]:
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]

    def boxed(each: Conversion, phase: str) -> Iterator[tuple[_Key, int]]:
        runs = 1 if phase == "prologue" else pricer.setting.microbatches
        for move in each.moves:
            for key in _entries_of([(each, move)], pricer, phase):
                yield key, runs

    stored, leaving = prologue_conversions(annotated, chosen, pricer.routers)
    beside = [*gathered_beside(annotated, chosen, pricer.routers).values()]
    for conversions in (stored, beside, leaving):
        for bucket in cut_buckets(conversions, pricer.mesh):
            moves = [(conversions[number], move) for number, move in bucket]
            yield from ((key, 1) for key in _entries_of(moves, pricer, "prologue"))
    for at, site in enumerate(annotated.sites):
        candidate = chosen[at]
        for position, source in enumerate(site.inputs):
            origin = annotated.sites[source.site]
            if origin.parameter_only and not site.parameter_only:
                if chosen[source.site].policy != "step":
                    yield from _gathers(annotated, choices, pricer, (at, position), recomputed)
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
    for path, source, meta in annotated.updates:
        layout = chosen[source.site].outputs[source.output]
        yield from boxed(convert(pricer.routers.body, layout, whole, meta, path), "body")


def _again(
    annotated: Annotated, choices: Sequence[int], pricer: Pricer, recomputed: Sequence[Block]
) -> Iterator[tuple[_Key, int]]:
    """Collectives that backward runs a second time, forward."""
    sites, runs = annotated.sites, pricer.setting.microbatches
    for block in recomputed:
        for at, position in reads_again(annotated, block):
            source = sites[at].inputs[position]
            layout = sites[source.site].candidates[choices[source.site]].outputs[source.output]
            target = sites[at].candidates[choices[at]].inputs[position]
            meta = sites[source.site].outputs[source.output]
            each = convert(pricer.routers.body, layout, target, meta, sites[at].path)
            for move in each.moves:
                for key in _entries_of([(each, move)], pricer, "body"):
                    if key[5] == "forward":
                        yield (*key[:5], AGAIN), runs
        for at in block.again:
            for inner in inner_collectives(
                sites[at], sites[at].candidates[choices[at]], pricer.mesh
            ):
                if not inner.backward:
                    place = inner.kind, inner.size_bytes, inner.axis, sites[at].path, "body"
                    yield (*place, AGAIN), runs


AGAIN = "recomputed"
"""The direction of a collective of a second run."""


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
