"""Bounds: what no plan of a shape takes less than."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from autoplan.annotate import annotate
from autoplan.cost_models import Cluster, Roofline, Work
from autoplan.mesh import Mesh
from autoplan.pipelining.floors import busiest_part
from autoplan.pricing import local_work
from autoplan.registry import rules_in_force
from autoplan.space.estimate import site_weights
from autoplan.space.shapes import Shape
from autoplan.space.shorten import Short


@dataclass(frozen=True)
class WholeOp:
    """The work of an op on one device, forward, and backward where a gradient flows."""

    forward: Work
    backward: Work | None


def ops_of(short: Short) -> Counter[WholeOp]:
    """The ops of one microbatch of the whole model, and how often it has each.

    What depends on parameters alone runs once a step, and is left out.
    """
    mesh = Mesh.of(devices=1)
    annotated = annotate(short.captured, mesh, rules_in_force())
    found: Counter[WholeOp] = Counter()
    for site, weight in zip(annotated.sites, site_weights(annotated, short), strict=True):
        if site.call is not None and not site.parameter_only:
            found[WholeOp(*local_work(site, site.candidates[0], mesh))] += int(weight)
    return found


def compute_s(ops: Counter[WholeOp], cluster: Cluster, ranks: int) -> float:
    """Seconds that the ops of one microbatch take at least on `ranks` that share each evenly.

    Nothing is communicated. No rank has less than an even share of an op's arithmetic, or of the
    bytes of any of its tensors, and every rank launches the kernel.
    """
    model = Roofline(cluster, Mesh.of(ranks=ranks))

    def least_s(work: Work | None) -> float:
        if work is None:
            return 0.0
        share = replace(work, flops=work.flops / ranks, bytes_moved=work.bytes_moved / ranks)
        return max(0.0, model.op_time_s(share) - _ROUNDING_S)

    return sum(n * (least_s(each.forward) + least_s(each.backward)) for each, n in ops.items())


_ROUNDING_S = 1e-9
"""Prices of plans are whole nanoseconds."""


def pipeline_floor_s(work_s: float, shape: Shape, once: bool = False) -> float:
    """Seconds of a step whose microbatches take `work_s` together, on the ranks of one stage.

    `once`: what is paid once a step may be among it, which nobody waits for: then the busiest
    pipeline rank has at least the mean, as it has where a rank has several stages.
    """
    if shape.pipeline is None:
        return work_s
    if shape.is_plain and not once:
        return work_s * busiest_part(shape.size, shape.microbatches)
    return work_s / shape.size
