"""The collective formulas: hand-computed values and the laws that tie them together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.cost_models import AxisLink, collective_bytes, collective_time_s
from autoplan.errors import ConfigError

EVEN = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send")
"""Collectives in which every rank sends the same."""

ROOTED = ("broadcast", "reduce")
KINDS = EVEN + ROOTED

links = st.builds(
    AxisLink,
    name=st.just("x"),
    size=st.integers(1, 512),
    latency_s=st.floats(0, 1e-2),
    bandwidth_bytes_per_s=st.floats(1e6, 1e13),
    ring_bandwidth_bytes_per_s=st.none() | st.floats(1e6, 1e13),
)
sizes = st.floats(0, 1e13)


@pytest.mark.parametrize(
    ("kind", "seconds", "sent"),
    [
        # n = 4, V = 8e9 bytes, alpha = 1 ms, beta = 1e9 bytes/s
        ("all_gather", 0.003 + 6.0, 6e9),
        ("reduce_scatter", 0.003 + 6.0, 6e9),
        ("all_reduce", 0.006 + 12.0, 12e9),
        ("all_to_all", 0.003 + 1.5, 1.5e9),
        ("send", 0.001 + 8.0, 8e9),
        # Scatter (or gather) in 2 steps down a tree, and all ranks in 3 around the ring.
        ("broadcast", 0.002 + 6.0 + 0.003 + 6.0, 6e9),
        ("reduce", 0.003 + 6.0 + 0.002 + 6.0, 6e9),
    ],
)
def test_formulas_by_hand(kind: str, seconds: float, sent: float) -> None:
    assert collective_time_s(kind, 8e9, AxisLink("x", 4, 1e-3, 1e9)) == pytest.approx(seconds)
    assert collective_bytes(kind, 8e9, 4) == pytest.approx(sent)


@pytest.mark.parametrize("kind", KINDS)
@given(size=sizes, more=sizes, link=links)
def test_times_grow_with_size_and_are_not_negative(
    kind: str, size: float, more: float, link: AxisLink
) -> None:
    small, large = (collective_time_s(kind, each, link) for each in (size, size + more))
    assert 0 <= small <= large


@given(size=sizes, link=links)
def test_all_reduce_is_reduce_scatter_and_all_gather(size: float, link: AxisLink) -> None:
    halves = [collective_time_s(kind, size, link) for kind in ("reduce_scatter", "all_gather")]
    assert collective_time_s("all_reduce", size, link) == pytest.approx(sum(halves))


@pytest.mark.parametrize("kind", KINDS)
@given(size=sizes)
def test_one_rank_costs_nothing(kind: str, size: float) -> None:
    assert collective_time_s(kind, size, AxisLink("x", 1, 1e-5, 1e9)) == 0
    assert collective_bytes(kind, size, 1) == 0


@pytest.mark.parametrize("kind", EVEN)
@given(size=sizes, n=st.integers(1, 512))
def test_time_without_latency_is_the_bytes_sent(kind: str, size: float, n: int) -> None:
    seconds = collective_time_s(kind, size, AxisLink("x", n, 0.0, 1e9))
    assert seconds * 1e9 == pytest.approx(collective_bytes(kind, size, n))


@pytest.mark.parametrize("kind", ROOTED)
def test_short_messages_go_down_a_tree(kind: str) -> None:
    """Three doublings reach eight ranks; a scatter and a ring would be ten steps."""
    seconds = collective_time_s(kind, 8.0, AxisLink("x", 8, 1e-3, 1e9))
    assert seconds == pytest.approx(3 * (1e-3 + 8e-9))


@given(size=sizes, link=links, adapters=st.integers(1, 8))
def test_blocks_one_by_one_are_never_faster_than_all_at_once(
    size: float, link: AxisLink, adapters: int
) -> None:
    """A broadcast of every rank's shard gathers them, a reduce of every block scatters them.

    On the links that clusters have, where a ring enters a node by some of its adapters at once.
    """
    link = replace(link, ring_bandwidth_bytes_per_s=adapters * link.bandwidth_bytes_per_s)
    for one, all_at_once in (("broadcast", "all_gather"), ("reduce", "reduce_scatter")):
        blocks_s = link.size * collective_time_s(one, size / link.size, link)
        assert blocks_s >= collective_time_s(all_at_once, size, link) * (1 - 1e-9)
        n = link.size
        sent = n * collective_bytes(one, size / n, n)
        assert sent == pytest.approx(collective_bytes(all_at_once, size, n))


@pytest.mark.parametrize(("kind", "on_ring"), list(zip(EVEN, (1, 1, 1, 0, 0), strict=True)))
def test_rings_use_the_ring_bandwidth_and_pairs_do_not(kind: str, on_ring: int) -> None:
    plain, ring = AxisLink("x", 4, 0.0, 1e9), AxisLink("x", 4, 0.0, 1e9, 2e9)
    speed_up = collective_time_s(kind, 1e9, plain) / collective_time_s(kind, 1e9, ring)
    assert speed_up == pytest.approx(1 + on_ring)


def test_an_unknown_kind_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'allreduce' .did you mean 'all_reduce'"):
        collective_time_s("allreduce", 1.0, AxisLink("x", 2, 0.0, 1.0))
    with pytest.raises(ConfigError, match="known: all_gather, reduce_scatter"):
        collective_bytes("gather", 1.0, 2)
