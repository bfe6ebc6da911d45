"""Prices of a solved problem site by site, and summed over the pieces of a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.cost_models import Cluster, Roofline
from autoplan.formulate import priced_outputs
from autoplan.layouts import B, Layout, P
from autoplan.mesh import Mesh
from autoplan.pricing import FloatArray, Pricer
from autoplan.sites import Annotated, Site
from autoplan.strategies.rule import TensorMeta


@dataclass(frozen=True, eq=False)
class SiteTimes:
    """Seconds of each site, [sites]: of one microbatch, forward and backward, and of a step.

    A site pays for converting what it reads. `once_s`: boxing parameters, reducing their gradients,
    the optimizer, and the prologue's ops.
    """

    forward_s: FloatArray
    backward_s: FloatArray
    once_s: FloatArray

    def step_s(self, microbatches: int) -> float:
        """Seconds of a step without a pipeline: the objective of these choices."""
        return float(microbatches * (self.forward_s + self.backward_s).sum() + self.once_s.sum())


def site_times(
    annotated: Annotated, choices: Sequence[int], pricer: Pricer, whole_outputs: bool
) -> SiteTimes:
    """What each site costs under `choices`."""
    count = len(annotated.sites)
    forward, backward, once = np.zeros(count), np.zeros(count), np.zeros(count)
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]

    def convert(at: int, source: Layout, target: Layout, meta: TensorMeta) -> None:
        ahead, back = pricer.conversion_times_s(source, target, meta)
        forward[at] += ahead
        backward[at] += back

    for at, site in enumerate(annotated.sites):
        ahead, back = pricer.op_times_s(site, chosen[at])
        if site.parameter_only:
            once[at] += ahead + back
        else:
            forward[at] += ahead
            backward[at] += back
        if site.kind == "parameter":
            once[at] += pricer.costs(site)[choices[at]]
        for position, source in enumerate(site.inputs):
            origin = annotated.sites[source.site]
            meta = origin.outputs[source.output]
            if origin.parameter_only:
                matrix = pricer.edge(origin, source.output, site, position, meta)
                once[at] += matrix[choices[source.site], choices[at]]
            else:
                layout = chosen[source.site].outputs[source.output]
                convert(at, layout, chosen[at].inputs[position], meta)
    whole = Layout((B,) * pricer.mesh.ndim)
    for source, meta in priced_outputs(annotated, whole_outputs):
        convert(source.site, chosen[source.site].outputs[source.output], whole, meta)
    return SiteTimes(forward, backward, once)


class Sending:
    """Seconds to pass values from the ranks of one stage to those of the next, peer to peer."""

    def __init__(self, cluster: Cluster, size: int, ranks_per_stage: int) -> None:
        mesh = Mesh.of(pipeline=size, rank=ranks_per_stage)
        self._model = Roofline(cluster, mesh)
        self._alone = size == 1

    def time_s(self, size_bytes: float) -> float:
        """Seconds of a message of `size_bytes` from every rank to its peer."""
        if self._alone or not size_bytes:
            return 0.0
        return self._model.collective_time_s("send", size_bytes, "pipeline")


def wire_layout(made: Layout, read: Layout, meta: TensorMeta, pricer: Pricer) -> Layout:
    """How a value travels that is made and read so: as the end with fewer bytes has it.

    Of equal ends the maker's, unless it holds addends, which would travel whole.
    """
    addends = any(entry == P for entry in made) and not any(entry == P for entry in read)
    before, after = pricer.local_bytes(meta, made), pricer.local_bytes(meta, read)
    return read if after < before or (addends and after == before) else made


def common_wire(meta: TensorMeta, ranks: int, ndim: int) -> Layout:
    """How a value travels between meshes of other shapes: rank i has the i-th slice, or all.

    Slices are of dimension 0, where it is a multiple of the ranks, whatever the mesh.
    """
    splits = bool(meta.shape) and meta.shape[0] % ranks == 0
    return Layout.parse(["S(0)" if splits else "B"] * ndim)


def by_piece(
    values: FloatArray, annotated: Annotated, of: Mapping[str, int], count: int
) -> FloatArray:
    """Sums over the sites of each piece: [pieces]. Sites of no piece are left out."""
    total = np.zeros(count)
    for at, site in enumerate(annotated.sites):
        piece = of.get(node_of(site))
        if piece is not None:
            total[piece] += values[at]
    return total


def node_of(site: Site) -> str:
    """Name of the graph node that a site stands for."""
    return site.name.partition(":")[0]
