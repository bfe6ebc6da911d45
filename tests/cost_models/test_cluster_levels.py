"""Links of any number of levels, some of them slower: laws, and a brute force over all groups."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.cost_models import Cluster, Level, Slower, load_profile
from autoplan.cost_models.base import AxisLink
from autoplan.cost_models.profile import Fraction, LinkLevel, Quantity
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh
from autoplan.pipelining.prices import Sending

H100 = load_profile("h100")
NODE = H100.node_link.achievable_bytes_per_s
NETWORK = H100.network_link.achievable_bytes_per_s


def link(rate: float, latency_s: float = 1e-5) -> LinkLevel:
    def quantity(value: float) -> Quantity:
        return Quantity(value, "made up for tests")

    return LinkLevel(quantity(latency_s), quantity(rate), Fraction(1.0, "made up for tests"))


@st.composite
def clusters(draw: st.DrawFn, exceptions: bool = True) -> Cluster:
    """Two to four levels of powers of two, each slower than the one below."""
    factors = draw(st.lists(st.sampled_from([1, 2, 4]), min_size=2, max_size=4))
    levels, size, rate = [], 1, 1e12
    for at, factor in enumerate(factors):
        size, rate = size * factor, rate / draw(st.sampled_from([1, 2, 5]))
        slower = []
        for _ in range(draw(st.integers(0, 2)) if exceptions else 0):
            of = draw(st.integers(0, at))
            unit = math.prod(factors[: of + 1])
            numbers = st.integers(0, math.prod(factors) // unit - 1)
            groups = draw(st.lists(numbers, min_size=1, max_size=2))
            slow = link(rate / draw(st.sampled_from([1, 2, 7])), 1e-5 * draw(st.integers(1, 3)))
            slower.append(Slower(f"level {of}", tuple(groups), slow))
        last = at == len(factors) - 1
        levels.append(Level(f"level {at}", None if last else size, link(rate), tuple(slower)))
    return Cluster(H100, size, levels=tuple(levels))


@st.composite
def on_meshes(draw: st.DrawFn, exceptions: bool = True) -> tuple[Cluster, Mesh]:
    """A cluster, and a mesh over all of it whose sizes are powers of two."""
    cluster = draw(clusters(exceptions))
    sizes, rest = [], cluster.num_devices
    while rest > 1:
        sizes.append(draw(st.sampled_from([n for n in (2, 4, 8, 16) if rest % n == 0])))
        rest //= sizes[-1]
    return cluster, Mesh(tuple("abcdefgh"[: len(sizes)]), tuple(sizes))


def links(cluster: Cluster, mesh: Mesh) -> dict[str, AxisLink]:
    return {axis: cluster.link(mesh, axis) for axis in mesh.axes}


def not_slower(one: AxisLink, other: AxisLink) -> bool:
    def ring(each: AxisLink) -> float:
        return each.ring_bandwidth_bytes_per_s or each.bandwidth_bytes_per_s

    return (
        one.latency_s <= other.latency_s
        and one.bandwidth_bytes_per_s >= other.bandwidth_bytes_per_s
        and ring(one) >= ring(other)
    )


# -- brute force ----------------------------------------------------------------------------------


def rate_between(cluster: Cluster, one: int, other: int) -> float:
    """Of two devices: the link of the level on which they meet, and the exceptions that hold one
    of them."""
    sizes = {level.name: level.size or cluster.num_devices for level in cluster.levels}
    level = next(
        each for each in cluster.levels if one // sizes[each.name] == other // sizes[each.name]
    )
    assert level.link is not None
    rates = [level.link.achievable_bytes_per_s]
    for each in level.exceptions:
        if {one // sizes[each.of], other // sizes[each.of]} & set(each.groups):
            rates.append(each.link.achievable_bytes_per_s)
    return min(rates)


@given(on_meshes())
@settings(max_examples=150, deadline=None)
def test_an_axis_has_the_rate_of_the_slowest_pair_of_any_of_its_groups(
    drawn: tuple[Cluster, Mesh],
) -> None:
    cluster, mesh = drawn
    for axis in mesh.axes:
        rates = [
            rate_between(cluster, one, other)
            for group in mesh.groups(axis)
            for one in group
            for other in group
            if one < other
        ]
        assert cluster.link(mesh, axis).bandwidth_bytes_per_s == min(rates)


@given(on_meshes(exceptions=False))
@settings(max_examples=150, deadline=None)
def test_a_ring_enters_a_group_by_all_its_members_there(drawn: tuple[Cluster, Mesh]) -> None:
    """Over every boundary that a ring crosses it has as many links as members there."""
    cluster, mesh = drawn
    for axis in mesh.axes:
        group = mesh.groups(axis)[0]
        rates, below = [], 1
        for level in cluster.levels:
            assert level.link is not None
            members = sum(rank // below == group[0] // below for rank in group)
            rates.append(members * level.link.achievable_bytes_per_s)
            below = level.size or cluster.num_devices
            if all(rank // below == group[0] // below for rank in group):
                break
        found = cluster.link(mesh, axis)
        assert (found.ring_bandwidth_bytes_per_s or found.bandwidth_bytes_per_s) == min(rates)


# -- laws -----------------------------------------------------------------------------------------


@given(drawn=on_meshes(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_an_exception_makes_nothing_faster(
    drawn: tuple[Cluster, Mesh], data: st.DataObject
) -> None:
    cluster, mesh = drawn
    levels = list(cluster.levels)
    at = data.draw(st.integers(0, len(levels) - 1))
    kept = levels[at].exceptions[: data.draw(st.integers(0, len(levels[at].exceptions)))]
    levels[at] = replace(levels[at], exceptions=kept)
    without = links(replace(cluster, levels=tuple(levels)), mesh)
    for axis, found in links(cluster, mesh).items():
        assert not_slower(without[axis], found)


@given(on_meshes(), st.sampled_from([0.5, 0.1, 2.0]))
@settings(max_examples=100, deadline=None)
def test_the_usual_link_is_never_slower_than_its_exceptions(
    drawn: tuple[Cluster, Mesh], factor: float
) -> None:
    """Also where the usual link becomes slower, as questions about bandwidths make it."""
    cluster, mesh = drawn
    usual = [
        link(each.link.achievable_bytes_per_s * factor) for each in cluster.levels if each.link
    ]
    levels = [replace(each, link=new) for each, new in zip(cluster.levels, usual, strict=True)]
    found = links(replace(cluster, levels=tuple(levels)), mesh)
    plain = links(replace(cluster, levels=tuple(replace(e, exceptions=()) for e in levels)), mesh)
    assert all(not_slower(plain[axis], found[axis]) for axis in mesh.axes)


@given(drawn=on_meshes(exceptions=False), data=st.data())
@settings(max_examples=150, deadline=None)
def test_larger_groups_make_nothing_slower(
    drawn: tuple[Cluster, Mesh], data: st.DataObject
) -> None:
    """Twice the devices in a group of a level, and of those above that would not hold it."""
    cluster, mesh = drawn
    levels = list(cluster.levels)
    at = data.draw(st.integers(0, len(levels) - 2))
    size = 2 * (levels[at].size or 1)
    for number in range(at, len(levels) - 1):
        levels[number] = replace(levels[number], size=max(size, levels[number].size or 1))
    before = links(cluster, mesh)
    for axis, found in links(replace(cluster, levels=tuple(levels)), mesh).items():
        assert not_slower(found, before[axis])


@given(
    sizes=st.lists(st.integers(2, 4), min_size=1, max_size=4),
    node=st.integers(1, 16),
    copies=st.integers(1, 6),
)
@settings(max_examples=150, deadline=None)
def test_two_levels_of_the_profile_are_what_the_profile_says(
    sizes: list[int], node: int, copies: int
) -> None:
    mesh = Mesh(("a", "b", "c", "d")[: len(sizes)], tuple(sizes))
    count = copies * mesh.num_devices
    levels = Level("node", node), Level("network", None)
    plain = Cluster(H100, count, devices_per_node=node)
    assert links(Cluster(H100, count, levels=levels), mesh) == links(plain, mesh)


@given(on_meshes())
@settings(max_examples=100, deadline=None)
def test_a_pipeline_sends_at_the_slowest_boundary_between_its_stages(
    drawn: tuple[Cluster, Mesh],
) -> None:
    """Stages are blocks of ranks; each rank sends to its peer in the next. An exception may count
    although no neighbours meet there: it counts for the axis."""
    cluster, mesh = drawn
    stages = mesh.sizes[0] if mesh.sizes else 1
    ranks = cluster.num_devices // stages
    sent = 1e15  # bytes so many that latencies vanish

    def slowest_s(cluster: Cluster) -> float:
        boundaries = range(cluster.num_devices - ranks)
        rates = [rate_between(cluster, rank, rank + ranks) for rank in boundaries]
        return max((sent / rate for rate in rates), default=0.0)

    def sending_s(cluster: Cluster) -> float:
        return Sending(cluster, stages, ranks).time_s(sent)

    assert sending_s(cluster) >= slowest_s(cluster)
    usual = replace(cluster, levels=tuple(replace(e, exceptions=()) for e in cluster.levels))
    assert sending_s(usual) == pytest.approx(slowest_s(usual), rel=1e-6)


# -- examples -------------------------------------------------------------------------------------


PODS = (
    Level("node", 8),
    Level("pod", 32),
    Level("spine", None, link(5e9)),
)


def test_the_order_of_axes_decides_which_one_crosses_a_level() -> None:
    cluster = Cluster(H100, 64, levels=PODS)

    def rates(*sizes: tuple[str, int]) -> dict[str, float]:
        found = links(cluster, Mesh.of(**dict(sizes)))
        return {axis: each.bandwidth_bytes_per_s for axis, each in found.items()}

    assert rates(("data", 2), ("sequence", 4), ("tensor", 8)) == {
        "data": 5e9,
        "sequence": NETWORK,
        "tensor": NODE,
    }
    assert rates(("tensor", 8), ("sequence", 4), ("data", 2)) == {
        "tensor": 5e9,
        "sequence": NODE,
        "data": NODE,
    }


def test_an_exception_slows_the_axes_that_meet_on_its_level() -> None:
    slow = Slower("node", (3,), link(1e9))
    pod = replace(PODS[1], exceptions=(slow,))
    cluster = Cluster(H100, 64, levels=(PODS[0], pod, PODS[2]))
    found = links(cluster, Mesh.of(data=2, sequence=4, tensor=8))
    assert found["tensor"].bandwidth_bytes_per_s == NODE
    assert found["sequence"].bandwidth_bytes_per_s == 1e9
    assert found["data"].bandwidth_bytes_per_s == 5e9  # one rank of each pod: they meet above it


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((Level("node", 8), Level("node", None)), "two levels are called 'node'"),
        ((Level("node", None), Level("network", None)), r"'node' says no devices, and 'network'"),
        ((Level("node", 8), Level("pod", 12), Level("all", None, link(1e9))),
         "12.*multiple of the 8"),
        ((Level("node", 8), Level("pod", 32)), r"groups of 32.*nothing joins those of 64"),
        ((Level("node", 0), Level("network", None)), "at least 1 device, got devices=0"),
        ((Level("node", 8), Level("pod", 32), Level("spine", None)), "'spine' says no figures"),
        ((Level("node", 8), Level("network", None, None, (Slower("nod", (1,), link(1e9)),))),
         r"'network': the exception of nod 1 names no level up to this one; use one of 'node'"),
        ((Level("node", 8, None, (Slower("network", (0,), link(1e9)),)), Level("network", None)),
         "names no level up to this one"),
        ((Level("node", 8), Level("network", None, None, (Slower("node", (8,), link(1e9)),))),
         "no node 8 among 64 devices; use 0 to 7"),
        ((Level("node", 8), Level("network", None, None, (Slower("node", (), link(1e9)),))),
         "names no node in its groups"),
    ],
)  # fmt: skip
def test_levels_that_are_no_hierarchy_are_refused(levels: tuple[Level, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(H100, 64, levels=levels)


def test_the_size_of_a_node_is_said_once() -> None:
    with pytest.raises(ConfigError, match=r"devices_per_node=8 is the size of the first"):
        Cluster(H100, 64, devices_per_node=8, levels=PODS)
    assert Cluster(H100, 64, levels=PODS).node_size == 8
