"""Cutting: the layouts of a tensor, and the choices of an op, that leave enough ranks some work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from autoplan.layouts import Entry, Layout
from autoplan.mesh import Mesh
from autoplan.sites import Candidate
from autoplan.strategies.notation import Bound
from autoplan.strategies.rule import OpCall, Rule, Signature, Stream, index_of, signatures


def layouts_of(entries: Sequence[Entry], shape: Sequence[int], mesh: Mesh) -> list[Layout]:
    """All layouts of a tensor in which enough ranks hold some of it."""
    every = (Layout(each) for each in product(entries, repeat=mesh.ndim))
    return [layout for layout in every if _fills(layout, shape, mesh)]


def _fills(layout: Layout, shape: Sequence[int], mesh: Mesh) -> bool:
    return all(
        _worth_cutting(size, [mesh.sizes[a] for a in layout.axes_of(dim)], even=False, full=False)
        for dim, size in enumerate(shape)
    )


def candidates_of(
    call: OpCall, rule: Rule | None, bound: Bound | None, mesh: Mesh, lean: bool = False
) -> tuple[Candidate, ...]:
    """The choices of an op: a signature of its rule on every axis, where that cuts cleanly.

    `lean`: those too that stream a factor, and so hold less of it and are never faster.
    """
    streams = rule.streams_of(bound) if lean and rule is not None and bound is not None else {}
    found = []
    for per_axis in product(signatures(rule, call, lean), repeat=mesh.ndim):
        labels = tuple(each.label for each in per_axis)
        if rule is not None and rule.permits is not None and not rule.permits(labels):
            continue
        if not _streams_in_turn(labels, streams):
            continue
        if bound is None or _cuts_cleanly(labels, bound, streams, rule, mesh):
            found.append(_combine(per_axis, call))
    return tuple(found)


def _streams_in_turn(labels: tuple[str, ...], streams: Mapping[str, Stream]) -> bool:
    """Whether one axis at most streams each factor, inside of those that split what it contracts.

    Ranks that meet then hold all of one range of the contracted index, in two ways.
    """
    factors = [streams[label].factor for label in labels if label in streams]
    if len(set(factors)) < len(factors):
        return False
    return all(
        streams[label].contracted not in labels[at + 1 :]
        for at, label in enumerate(labels)
        if label in streams
    )


def _combine(per_axis: tuple[Signature, ...], call: OpCall) -> Candidate:
    return Candidate(
        tuple(each.label for each in per_axis),
        tuple(Layout(each.inputs[i] for each in per_axis) for i in range(len(call.inputs))),
        tuple(Layout(each.outputs[i] for each in per_axis) for i in range(len(call.outputs))),
    )


def _cuts_cleanly(
    labels: tuple[str, ...],
    bound: Bound,
    streams: Mapping[str, Stream],
    rule: Rule | None,
    mesh: Mesh,
) -> bool:
    """At least half of the ranks get rows; merged dimensions cut where their factor does."""
    return all(
        _worth_cutting(
            bound.sizes[index],
            parts,
            even=index in bound.aligned,
            full=rule is not None and rule.fails_without(index),
        )
        for index, parts in _cuts(labels, bound, streams, mesh)
    )


def _cuts(
    labels: tuple[str, ...], bound: Bound, streams: Mapping[str, Stream], mesh: Mesh
) -> Iterator[tuple[str, list[int]]]:
    """Every index with the sizes of the axes that cut it, outermost first.

    What streamed factors contract is cut by the streaming axis too, in each in its own way.
    """
    indices = [index_of(label) for label in labels]
    for index in dict.fromkeys(indices):
        if index in bound.sizes:
            yield index, [n for each, n in zip(indices, mesh.sizes, strict=True) if each == index]
    for stream in filter(None, map(streams.get, labels)):
        yield (
            stream.contracted,
            [
                size
                for label, size in zip(labels, mesh.sizes, strict=True)
                if label == stream.contracted or streams.get(label) == stream
            ],
        )


def _worth_cutting(size: int, parts: Sequence[int], even: bool, full: bool) -> bool:
    """Whether cutting by `parts`, outermost first, leaves rows to half of each cut's parts.

    A cut into ceil(size / n) rows makes full parts, one smaller part, and empty ones: 12 heads on 8
    ranks are 2 for each of 6. `even`: equally many rows for all; `full`: some rows for all.
    """
    sizes = {size}
    for count in parts:
        cut: set[int] = set()
        for whole in sizes - {0}:
            rows = -(-whole // count)
            complete, rest = divmod(whole, rows)
            busy = complete + bool(rest)
            if (even and whole % count) or 2 * busy < count or (full and busy < count):
                return False
            cut |= {rows, rest} if rest else {rows}
        sizes = cut
    return True
