"""Groups: shapes that differ in little, and which is tried before which."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from autoplan.parallel import MeshChoice
from autoplan.pipelining.stages import kind_of
from autoplan.space.tried import Tried


@dataclass(frozen=True)
class Group:
    """Shapes that differ in microbatches only, fewest first."""

    shapes: list[Tried]

    @property
    def size(self) -> int:
        """Pipeline ranks."""
        return self.shapes[0].shape.size

    @property
    def mesh(self) -> MeshChoice:
        return self.shapes[0].shape.mesh

    def least(self) -> float:
        """The best estimate."""
        known = [each.estimate_s for each in self.shapes if each.estimate_s is not None]
        return min(known, default=math.inf)


def simplicity(each: Tried) -> tuple[int, int, int]:
    """What is tried first where nothing is known: few stages, few axes, few microbatches."""
    shape = each.shape
    return shape.size, shape.mesh.mesh.ndim, shape.microbatches


def refines(group: Group, best: Tried) -> bool:
    """Whether two neighbouring axes of a mesh are one axis of the best, in the same pipeline."""
    sizes, coarse = group.mesh.mesh.sizes, best.shape.mesh.mesh.sizes
    merged = [
        (*sizes[:at], sizes[at] * sizes[at + 1], *sizes[at + 2 :]) for at in range(len(sizes) - 1)
    ]
    return group.size == best.shape.size and (coarse in merged or len(coarse) == 1)


def but_for_schedule(each: Tried) -> Hashable:
    """What shapes with the same mesh, pipeline ranks and microbatches have in common."""
    return each.shape.size, each.shape.microbatches, kind_of(each.shape.mesh)
