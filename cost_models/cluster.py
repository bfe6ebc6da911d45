"""A cluster: how many devices of one profile, and which link each mesh axis runs on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from autoplan.cost_models.base import AxisLink
from autoplan.cost_models.levels import Level, check_levels
from autoplan.cost_models.profile import LinkLevel, Profile
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh


@dataclass(frozen=True)
class Cluster:
    """`num_devices` devices of `profile`, filled group by group in rank order.

    devices_per_node: where it is not the profile's own. levels: from the node outwards, any number;
    left out, a node and the network between nodes. Raises ConfigError when a count is below 1, and
    for levels that do not nest.
    """

    profile: Profile
    num_devices: int
    devices_per_node: int | None = None
    levels: tuple[Level, ...] = ()

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ConfigError(
                f"a cluster has at least 1 device, got num_devices={self.num_devices}."
            )
        if self.levels and self.devices_per_node is not None:
            raise ConfigError(
                f"devices_per_node={self.devices_per_node} is the size of the first of the levels; "
                "give it there alone."
            )
        if self.devices_per_node is not None and self.devices_per_node < 1:
            raise ConfigError(
                f"a node has at least 1 device, got devices_per_node={self.devices_per_node}."
            )
        check_levels(self.levels, self.num_devices)
        lanes = self.profile.node_lanes
        if lanes is not None and min(self.node_size, self.num_devices) > len(lanes.value):
            raise ConfigError(
                f"the profile {self.profile.name!r} says which lanes join {len(lanes.value)} "
                f"devices of a node, and a node has {self.node_size}; use that many in a node, or "
                "a profile without node_lanes."
            )
        self._links  # noqa: B018  (raises where figures are missing)

    @property
    def node_size(self) -> int:
        """Devices in one node."""
        if self.levels:
            size = self.levels[0].size
            return self.num_devices if size is None else size
        if self.devices_per_node is None:
            return self.profile.devices_per_node.value
        return self.devices_per_node

    @property
    def memory_bytes(self) -> float:
        """Memory of one device."""
        return self.profile.memory_bytes.value

    @cached_property
    def hierarchy(self) -> tuple[Level, ...]:
        """The levels; where none were given, the profile's node and network."""
        return self.levels or (Level("node", self.node_size), Level("network", None))

    @cached_property
    def _links(self) -> tuple[LinkLevel, ...]:
        """The usual link of each level."""
        own = self.profile.node_link, self.profile.network_link
        links = []
        for at, level in enumerate(self.hierarchy):
            if level.link is None and at >= len(own):
                raise ConfigError(
                    f"level {level.name!r} says no figures, and a profile has those of two levels; "
                    "give its latency, bandwidth and fraction."
                )
            links.append(own[at] if level.link is None else level.link)
        return tuple(links)

    def link(self, mesh: Mesh, axis: str) -> AxisLink:
        """The slowest link that the groups of `axis` cross, with its achievable figures.

        The mesh is a block of ranks that starts at a multiple of its own size. A group of s * n
        consecutive ranks (stride s, size n) stays in a node when s * n divides the node; else it
        crosses the next level, and so on up. All ranks wait for the slowest: an exception of a
        level counts for every axis with neighbours that meet on that level.

        Across nodes one rank has one network adapter, so pairs run at its rate. A ring passes each
        node once for all its k members there and so has k adapters, up to the node link: NCCL
        measures 192 GB/s on 8 x 25 GB/s (https://github.com/NVIDIA/nccl/issues/812). So does it
        pass the groups of every level above.

        Without a switch a group has the lanes of its node that stay in the group; one that no lane
        joins goes over the network.

        Raises ConfigError for an unknown axis and a mesh larger than the cluster.
        """
        size, stride = mesh.size(axis), mesh.stride(axis)
        if mesh.num_devices > self.num_devices:
            raise ConfigError(
                f"the mesh {mesh} needs {mesh.num_devices} devices, the cluster has "
                f"{self.num_devices}; use a smaller mesh or a larger cluster."
            )
        top = self._level_of(stride * size)
        latency_s, pair, ring, near = 0.0, float("inf"), float("inf"), float("inf")
        for at in range(top + 1):
            below = self._size(at - 1)
            meets = self._size(at) > max(below, stride) or at == top
            for link in self._links_of(at) if meets else (self._links[at],):
                rate, alone = self._rates(link, size, stride, at)
                latency_s = max(latency_s, link.latency_s.value)
                pair, near = min(pair, rate), min(near, alone)
                ring = min(ring, rate * min(size, max(1, below // stride)))
        return AxisLink(
            axis, size, latency_s, pair, ring if top else None, near if near < pair else None
        )

    def _rates(self, link: LinkLevel, size: int, stride: int, at: int) -> tuple[float, float]:
        """Of a link of level `at`, bytes/s of a rank: to all of its group, and to the next."""
        lanes, whole = self.profile.node_lanes, link.achievable_bytes_per_s
        if at or lanes is None:
            return whole, whole
        shares, neighbours = [1.0], [1.0]
        for group in self._groups_in_node(size, stride):
            shares.append(lanes.share(group))
            neighbours += map(lanes.share, itertools.pairwise(group))
        network = min(whole, self._links[-1].achievable_bytes_per_s)
        return whole * min(shares) or network, whole * min(neighbours) or network

    def _groups_in_node(self, size: int, stride: int) -> Iterator[range]:
        """Ranks of one node that the groups of an axis have there, of more than one member."""
        count = min(self.node_size, self.num_devices)
        reach = stride * min(size, max(1, count // stride))
        for block in range(0, count - reach + 1, reach):
            for first in range(block, block + stride):
                group = range(first, block + reach, stride)
                if len(group) > 1:
                    yield group

    def _level_of(self, ranks: int) -> int:
        """The first level whose groups hold every block of so many consecutive ranks."""
        for at in range(len(self.hierarchy) - 1):
            size = self._size(at)
            if self.num_devices <= size or size % ranks == 0:
                return at
        return len(self.hierarchy) - 1

    def _size(self, at: int) -> int:
        """Devices in one group of a level; below the first level a group is one device."""
        if at < 0:
            return 1
        size = self.hierarchy[at].size
        return self.num_devices if size is None else size

    def _links_of(self, at: int) -> list[LinkLevel]:
        """A level's usual link and those of its exceptions."""
        return [self._links[at], *(each.link for each in self.hierarchy[at].exceptions)]
