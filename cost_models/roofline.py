"""The default cost model: rooflines for ops, alpha-beta for collectives."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoplan.cost_models.base import AxisLink, ParameterBytes, Work, parameter_bytes
from autoplan.cost_models.cluster import Cluster
from autoplan.cost_models.collectives import collective_time_s
from autoplan.mesh import Mesh


@dataclass(frozen=True)
class Roofline:
    """Prices ops and collectives of a mesh on a cluster from its hardware profile alone.

    An op takes the longer of its arithmetic at the achievable rate and its bytes at the achievable
    memory bandwidth, and a kernel launch (Williams, Waterman, Patterson, "Roofline", CACM 52(4),
    2009). Small matmuls need no efficiency curve of their own: bytes and launch bound them.
    """

    cluster: Cluster
    mesh: Mesh
    _links: dict[str, AxisLink] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        links = {axis: self.cluster.link(self.mesh, axis) for axis in self.mesh.axes}
        object.__setattr__(self, "_links", links)

    def op_time_s(self, work: Work) -> float:
        """Seconds of `work`; 0 for a view.

        Arithmetic of "memory" work runs at float32's rate whatever its dtype: it does not use the
        matrix units. So does a dtype that the profile has no peak for.
        """
        profile = self.cluster.profile
        if work.kind == "free":
            return 0.0
        dtype = "float32" if work.kind == "memory" else work.dtype
        attention = work.kind == "attention"
        fraction = profile.attention_fraction if attention else profile.matmul_fraction
        arithmetic_s = work.flops / (profile.peak(dtype) * fraction.value)
        memory_s = work.bytes_moved / profile.achievable_memory_bytes_per_s
        return max(arithmetic_s, memory_s) + profile.kernel_launch_s.value

    def collective_time_s(self, kind: str, size_bytes: float, axis: str) -> float:
        """Seconds of a collective: a kernel launch and the formula of `collectives`.

        0 on an axis of size 1. Raises ConfigError for an unknown kind or axis.
        """
        if axis not in self._links:
            self.mesh.index(axis)  # raises, naming the axes
        link = self._links[axis]
        launch_s = self.cluster.profile.kernel_launch_s.value if link.size > 1 else 0.0
        return launch_s + collective_time_s(kind, size_bytes, link)

    def resident_bytes(
        self, numel: float, dtype: str, optimizer: str, trained: bool
    ) -> ParameterBytes:
        """Bytes that a parameter keeps alive; see `parameter_bytes`."""
        return parameter_bytes(numel, dtype, optimizer, trained)
