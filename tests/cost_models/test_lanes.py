"""Nodes without a switch: what a group has of the lanes that join its devices."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autoplan.cost_models.profile as profile_module
from autoplan.cost_models import AxisLink, Cluster, collective_time_s, load_profile
from autoplan.cost_models.profile import Lanes
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh

V100 = load_profile("v100")
LANES: Lanes = msgspec.convert(msgspec.to_builtins(V100.node_lanes), Lanes)
LANE = V100.node_link.achievable_bytes_per_s / 6
NETWORK = V100.network_link.achievable_bytes_per_s


def rings(lanes: Lanes, group: Sequence[int]) -> int:
    """The most rings over a group of which no two use one lane in one direction, by brute force.

    Each ring of lanes is two rings, one in each direction; of a pair its one lane is both.
    """
    if len(group) == 2:
        return lanes.value[group[0]][group[1]]
    cycles = [
        [frozenset(step) for step in itertools.pairwise((group[0], *order, group[0]))]
        for order in itertools.permutations(group[1:])
        if order[0] < order[-1]
    ]
    left = Counter(
        {frozenset((a, b)): lanes.value[a][b] for a, b in itertools.combinations(group, 2)}
    )

    def packed(start: int) -> int:
        best = 0
        for number in range(start, len(cycles)):
            if all(left[lane] for lane in cycles[number]):
                left.subtract(cycles[number])
                best = max(best, 1 + packed(number))
                left.update(cycles[number])
            if best == 3:  # six lanes a device
                break
        return best

    return 2 * packed(0)


def groups() -> Iterator[range]:
    """Of a node's devices those that an axis of a mesh of two's powers has in it."""
    for stride, size in ((1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (1, 8)):
        for first in range(0, 8, stride * size):
            for offset in range(first, first + stride):
                yield range(offset, first + stride * size, stride)


@pytest.mark.parametrize("group", list(groups()), ids=str)
def test_the_share_of_a_group_is_what_rings_over_it_have(group: range) -> None:
    assert LANES.share(group) * 6 == pytest.approx(rings(LANES, group), rel=1e-12)


@pytest.mark.parametrize(
    ("devices", "mesh", "axis", "lanes", "near"),
    [
        (2, Mesh.of(tensor=2), "tensor", 1, 1),
        (8, Mesh.of(data=4, tensor=2), "tensor", 1, 1),
        (8, Mesh.of(data=2, tensor=4), "tensor", 4, 1),
        (8, Mesh.of(data=2, tensor=4), "data", 1, 1),  # 2 and 6 have one lane, 0 and 4 two
        (8, Mesh.of(tensor=8), "tensor", 6, None),  # 3 and 4 have none
        (8, Mesh.of(data=4, tensor=2), "data", 2, None),  # 2 and 4 have none
    ],
)
def test_an_axis_has_the_lanes_that_stay_in_its_groups(
    devices: int, mesh: Mesh, axis: str, lanes: int, near: int | None
) -> None:
    link = Cluster(V100, devices).link(mesh, axis)
    assert link.bandwidth_bytes_per_s == pytest.approx(lanes * LANE, rel=1e-12)
    alone = link.next_bandwidth_bytes_per_s or link.bandwidth_bytes_per_s
    assert alone == pytest.approx(NETWORK if near is None else near * LANE, rel=1e-12)


def test_a_group_that_no_lane_joins_goes_over_the_network() -> None:
    link = Cluster(V100, 6).link(Mesh.of(data=2, tensor=3), "data")  # 1 and 4
    assert link.bandwidth_bytes_per_s == NETWORK


def test_a_ring_over_nodes_has_no_more_of_a_node_than_its_lanes() -> None:
    link = Cluster(V100, 16).link(Mesh.of(data=16), "data")
    assert link.ring_bandwidth_bytes_per_s == min(6 * LANE, 8 * NETWORK)
    assert link.bandwidth_bytes_per_s == NETWORK


@given(size=st.sampled_from((2, 4, 8)), stride=st.sampled_from((1, 2, 4)))
def test_joined_each_to_each_a_device_has_a_link_for_every_peer(size: int, stride: int) -> None:
    profile = load_profile("mi300x")
    sizes = {"outer": max(1, 8 // (size * stride)), "axis": size, "inner": stride}
    if size * stride <= 8:
        link = Cluster(profile, 8).link(Mesh.of(**sizes), "axis")
        whole = profile.node_link.achievable_bytes_per_s
        assert link.bandwidth_bytes_per_s == pytest.approx(whole * (size - 1) / 7, rel=1e-12)


@pytest.mark.parametrize(
    "kind", ["send", "reduce_scatter", "all_gather", "all_reduce", "all_to_all"]
)
def test_only_what_goes_to_the_next_rank_alone_waits_for_its_lanes(kind: str) -> None:
    plain = AxisLink("x", 4, 0.0, 4e9)
    slower = collective_time_s(kind, 1e3, replace(plain, next_bandwidth_bytes_per_s=1e9))
    waits = slower > collective_time_s(kind, 1e3, plain)
    assert waits == (kind == "send")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[0, 1, 1, 2, 2, 0, 0, 0]", "[1, 1, 1, 2, 2, 0, 0, 0]", "0 to itself"),
        ("[0, 1, 1, 2, 2, 0, 0, 0]", "[0, 1, 1, 2, 2, 0, 0]", "a column for each"),
        ("[0, 1, 1, 2, 2, 0, 0, 0]", "[0, 2, 1, 2, 2, 0, 0, 0]", "to another as back"),
    ],
)
def test_lanes_that_cannot_be_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (Path(profile_module.__file__).parent / "profiles" / "v100.toml").read_text()
    assert old in text
    broken = tmp_path / "mine.toml"
    broken.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_profile(broken)


def test_more_devices_than_lanes_join_are_refused() -> None:
    with pytest.raises(ConfigError, match="join 8 devices of a node, and a node has 16"):
        Cluster(V100, 16, devices_per_node=16)
    assert Cluster(msgspec.structs.replace(V100, node_lanes=None), 16, devices_per_node=16)
