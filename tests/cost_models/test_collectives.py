"""The collective formulas: hand-computed values and the laws that tie them together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.cost_models import AxisLink, collective_bytes, collective_time_s
from autoplan.errors import ConfigError

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send")

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


@pytest.mark.parametrize("kind", KINDS)
@given(size=sizes, n=st.integers(1, 512))
def test_time_without_latency_is_the_bytes_sent(kind: str, size: float, n: int) -> None:
    seconds = collective_time_s(kind, size, AxisLink("x", n, 0.0, 1e9))
    assert seconds * 1e9 == pytest.approx(collective_bytes(kind, size, n))


@pytest.mark.parametrize(("kind", "on_ring"), list(zip(KINDS, (1, 1, 1, 0, 0), strict=True)))
def test_rings_use_the_ring_bandwidth_and_pairs_do_not(kind: str, on_ring: int) -> None:
    plain, ring = AxisLink("x", 4, 0.0, 1e9), AxisLink("x", 4, 0.0, 1e9, 2e9)
    speed_up = collective_time_s(kind, 1e9, plain) / collective_time_s(kind, 1e9, ring)
    assert speed_up == pytest.approx(1 + on_ring)


def test_an_unknown_kind_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'allreduce' .did you mean 'all_reduce'"):
        collective_time_s("allreduce", 1.0, AxisLink("x", 2, 0.0, 1.0))
    with pytest.raises(ConfigError, match="known: all_gather, reduce_scatter"):
        collective_bytes("broadcast", 1.0, 2)
