"""A cluster: how many devices of one profile, and which link each mesh axis runs on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoplan.cost_models.base import AxisLink
from autoplan.cost_models.profile import Profile, load_profile
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh


@dataclass(frozen=True)
class Cluster:
    """`num_devices` devices of `profile`, filled node by node in rank order.

    devices_per_node: where it is not the profile's own. Raises ConfigError when a count is below 1.
    """

    profile: Profile
    num_devices: int
    devices_per_node: int | None = None

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ConfigError(
                f"a cluster has at least 1 device, got num_devices={self.num_devices}."
            )
        if self.node_size < 1:
            raise ConfigError(
                f"a node has at least 1 device, got devices_per_node={self.node_size}."
            )

    @property
    def node_size(self) -> int:
        """Devices in one node."""
        if self.devices_per_node is None:
            return self.profile.devices_per_node.value
        return self.devices_per_node

    @property
    def memory_bytes(self) -> float:
        """Memory of one device."""
        return self.profile.memory_bytes.value

    def link(self, mesh: Mesh, axis: str) -> AxisLink:
        """The slowest link level that the groups of `axis` cross, with its achievable figures.

        The mesh is a block of ranks that starts at a multiple of its own size. A group of s * n
        consecutive ranks (stride s, size n) stays in a node when s * n divides the node.

        Across nodes one rank has one network adapter, so pairs run at its rate. A ring passes each
        node once for all its k members there and so has k adapters, up to the node link: NCCL
        measures 192 GB/s on 8 x 25 GB/s (https://github.com/NVIDIA/nccl/issues/812).

        Raises ConfigError for an unknown axis and a mesh larger than the cluster.
        """
        size, stride = mesh.size(axis), mesh.stride(axis)
        if mesh.num_devices > self.num_devices:
            raise ConfigError(
                f"the mesh {mesh} needs {mesh.num_devices} devices, the cluster has "
                f"{self.num_devices}; use a smaller mesh or a larger cluster."
            )
        node, network = self.profile.node_link, self.profile.network_link
        one_node = self.num_devices <= self.node_size
        if one_node or self.node_size % (stride * size) == 0:
            return AxisLink(axis, size, node.latency_s.value, node.achievable_bytes_per_s)
        members = min(size, max(1, self.node_size // stride))
        return AxisLink(
            axis,
            size,
            max(node.latency_s.value, network.latency_s.value),
            min(node.achievable_bytes_per_s, network.achievable_bytes_per_s),
            min(node.achievable_bytes_per_s, members * network.achievable_bytes_per_s),
        )


def load_cluster(cluster: str | Path | Cluster | None, num_devices: int, default: str) -> Cluster:
    """The cluster that a user names: a profile, a .toml file, or a Cluster of the right size.

    None means the profile called `default`. Raises ConfigError as `load_profile` does, and when a
    Cluster has another number of devices than `num_devices`.
    """
    if isinstance(cluster, Cluster):
        if cluster.num_devices != num_devices:
            raise ConfigError(
                f"the cluster has {cluster.num_devices} devices, the plan is for {num_devices}; "
                f"make the two equal."
            )
        return cluster
    return Cluster(load_profile(default if cluster is None else cluster), num_devices)
