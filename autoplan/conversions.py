"""The conversions of a choice: which tensors are boxed in the prologue, and by which paths."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Parameters from storage to use, then prologue values to where the body reads them.

    The second list has one entry for every input of a body site that the prologue makes, in order.
    """
    stored, leaving = [], []
    for at, site in enumerate(annotated.sites):
        storage, use = chosen[at].storage, chosen[at].outputs[:1]
        if storage is not None:
            stored.append(convert(routers.prologue, storage, use[0], site.outputs[0], site.path))
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
