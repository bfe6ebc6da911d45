"""The conversions of a choice: which tensors are boxed where, and by which paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoplan.boxing import Router
from autoplan.buckets import Conversion, Routers
from autoplan.layouts import Layout
from autoplan.sites import Annotated, Candidate
from autoplan.strategies.rule import TensorMeta


def convert(
    router: Router, source: Layout, target: Layout, meta: TensorMeta, path: str
) -> Conversion:
    """The cheapest conversion of one tensor."""
    moves = router.path(source, target, meta.shape, meta.itemsize, meta.requires_grad)
    return Conversion(moves, meta, path)


def prologue_conversions(
    annotated: Annotated, chosen: Sequence[Candidate], routers: Routers
) -> tuple[list[Conversion], list[Conversion]]:
    """Parameters from storage to what the body is given, then prologue values to where it reads.

    The second list has one entry for every input of a body site that the prologue makes, in order.
    """
    stored, leaving = [], []
    for at, site in enumerate(annotated.sites):
        storage = chosen[at].storage
        if site.kind == "parameter" and storage is not None:
            given, meta = chosen[at].carried, site.outputs[0]
            stored.append(convert(routers.prologue, storage, given, meta, site.path))
    for at, site in enumerate(annotated.sites):
        if site.parameter_only:
            continue
        for position, source in enumerate(site.inputs):
            origin = annotated.sites[source.site]
            if origin.parameter_only:
                layout = chosen[source.site].outputs[source.output]
                target, meta = chosen[at].inputs[position], origin.outputs[source.output]
                path = origin.path or site.path
                leaving.append(convert(routers.prologue, layout, target, meta, path))
    return stored, leaving


def gathering(candidate: Candidate, meta: TensorMeta, routers: Routers, path: str) -> Conversion:
    """What the body does to a parameter to read it; no moves where the prologue has done it all."""
    return convert(routers.body, candidate.carried, candidate.outputs[0], meta, path)


def gathered_beside(
    annotated: Annotated, chosen: Sequence[Candidate], routers: Routers
) -> dict[int, Conversion]:
    """Parameter -> its gathering where that is once a step, without its gradient's way back.

    Policy "reduce": the body reads the whole of the prologue, and reduces its gradient itself.
    """
    found = {}
    for at, site in enumerate(annotated.sites):
        if site.kind == "parameter" and chosen[at].policy == "reduce":
            each = gathering(chosen[at], site.outputs[0], routers, site.path)
            found[at] = replace(each, meta=replace(each.meta, requires_grad=False))
    return found
