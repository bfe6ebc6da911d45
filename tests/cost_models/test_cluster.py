"""Which link an axis runs on, and what a user may name as a cluster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.cost_models import Cluster, load_cluster, load_profile
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh

H100 = load_profile("h100")
NODE = H100.node_link.achievable_bytes_per_s
NETWORK = H100.network_link.achievable_bytes_per_s


@pytest.mark.parametrize(
    ("mesh", "axis", "pair", "ring"),
    [
        (Mesh.of(data=2, tensor=8), "tensor", NODE, None),
        (Mesh.of(data=2, tensor=8), "data", NETWORK, NETWORK),
        (Mesh.of(data=4, tensor=4), "tensor", NODE, None),
        (Mesh.of(data=4, tensor=4), "data", NETWORK, 2 * NETWORK),
        (Mesh.of(data=16), "data", NETWORK, min(NODE, 8 * NETWORK)),
        (Mesh.of(data=8), "data", NODE, None),  # one stage of a cluster of two nodes
        (Mesh.of(data=5, tensor=3), "tensor", NETWORK, 3 * NETWORK),  # ranks 6, 7 | 8 are cut
    ],
)
def test_an_axis_runs_on_the_slowest_link_that_it_crosses(
    mesh: Mesh, axis: str, pair: float, ring: float | None
) -> None:
    link = Cluster(H100, 16).link(mesh, axis)
    assert (link.name, link.size) == (axis, mesh.size(axis))
    assert link.bandwidth_bytes_per_s == pytest.approx(pair)
    assert link.ring_bandwidth_bytes_per_s == (None if ring is None else pytest.approx(ring))
    level = H100.node_link if ring is None else H100.network_link
    assert link.latency_s == level.latency_s.value


@given(sizes=st.lists(st.integers(2, 4), min_size=1, max_size=4), node_size=st.integers(1, 16))
def test_the_node_link_is_used_exactly_when_every_group_stays_in_a_node(
    sizes: list[int], node_size: int
) -> None:
    axes = ("a", "b", "c", "d")[: len(sizes)]
    mesh = Mesh(axes, tuple(sizes))
    # meshes in a row, as pipeline stages are
    cluster = Cluster(H100, mesh.num_devices * node_size, devices_per_node=node_size)
    for axis in axes:
        groups = [
            {(start + rank) // node_size for rank in group}
            for start in range(0, cluster.num_devices, mesh.num_devices)
            for group in mesh.groups(axis)
        ]
        crosses = any(len(nodes) > 1 for nodes in groups)
        link = cluster.link(mesh, axis)
        assert link.bandwidth_bytes_per_s == (NETWORK if crosses else NODE)
        if crosses:
            assert NETWORK <= (link.ring_bandwidth_bytes_per_s or 0) <= NODE


def test_devices_per_node_of_the_user_wins() -> None:
    mesh = Mesh.of(data=4)
    assert Cluster(H100, 4).link(mesh, "data").bandwidth_bytes_per_s == NODE
    assert Cluster(H100, 4, devices_per_node=2).link(mesh, "data").bandwidth_bytes_per_s == NETWORK


def test_one_node_never_reaches_the_network() -> None:
    link = Cluster(H100, 6).link(Mesh.of(data=2, tensor=3), "tensor")
    assert link.bandwidth_bytes_per_s == NODE


def test_a_user_may_name_a_profile_pass_a_cluster_or_nothing() -> None:
    cluster = Cluster(H100, 16)
    assert load_cluster("h100", 16, default="cpu") == cluster
    assert load_cluster(cluster, 16, default="cpu") is cluster
    assert load_cluster(None, 4, default="cpu") == Cluster(load_profile("cpu"), 4)
    assert cluster.memory_bytes == 80e9


def test_impossible_clusters_are_refused() -> None:
    with pytest.raises(ConfigError, match="16 devices, the plan is for 8"):
        load_cluster(Cluster(H100, 16), 8, default="cpu")
    with pytest.raises(ConfigError, match="num_devices=0"):
        Cluster(H100, 0)
    with pytest.raises(ConfigError, match="devices_per_node=0"):
        Cluster(H100, 8, devices_per_node=0)
    with pytest.raises(ConfigError, match="needs 16 devices, the cluster has 8"):
        Cluster(H100, 8).link(Mesh.of(data=16), "data")
    with pytest.raises(ConfigError, match="no mesh axis is called 'model'"):
        Cluster(H100, 8).link(Mesh.of(data=8), "model")
