"""The choice of a mesh: its axes, and the scheme that each is bound to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autoplan.mesh import Mesh


@dataclass(frozen=True)
class MeshChoice:
    """A mesh, and the scheme (a name in `presets`) that an axis is bound to; others are free."""

    mesh: Mesh
    schemes: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    """Every axis as the user named it, those of size 1 too: hints may speak of them."""
    written: Mapping[str, str] = field(default_factory=dict)
    """Bound axis -> what the user wrote that binds it; axes bound by one text are one demand."""
    resolved: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The `parallel` that means this choice and no other, where it was read from one."""

    def without_schemes(self, axes: Collection[str]) -> MeshChoice:
        """The same mesh with `axes` free."""
        schemes = {axis: name for axis, name in self.schemes.items() if axis not in axes}
        return replace(self, schemes=schemes, resolved=self.resolved if not axes else {})

    def as_parallel(self) -> Mapping[str, Any]:
        """A `parallel` that means this choice and no other."""
        if self.resolved:
            return self.resolved
        sizes = dict(zip(self.mesh.axes, self.mesh.sizes, strict=True))
        return {
            "mesh": {
                axis: {"size": size, "preset": self.schemes[axis]} if axis in self.schemes else size
                for axis, size in sizes.items()
            }
        }
