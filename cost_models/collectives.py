"""How long the collectives take on a link: the alpha-beta model.

With n ranks on the axis, V bytes of the whole tensor, alpha seconds a step and beta bytes/s a rank,
every collective is (steps) alpha + (bytes that a rank sends) / beta. The ring and pairwise
algorithms and their costs: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication
Operations in MPICH", IJHPCA 19(1), 2005, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from autoplan.cost_models.base import AxisLink, unknown_name


def all_gather_time_s(size_bytes: float, link: AxisLink) -> float:
    """Seconds to gather the shards of a tensor of `size_bytes` (its whole, gathered size).

    Ring: (n-1) alpha + (n-1)/n V/beta (Thakur et al. 2005, section 4.1).
    """
    n = link.size
    return (n - 1) * link.latency_s + _gathered_bytes(size_bytes, n) / _ring_bandwidth(link)


def reduce_scatter_time_s(size_bytes: float, link: AxisLink) -> float:
    """Seconds to sum addends of `size_bytes` each and leave a shard of the sum on every rank.

    Ring or pairwise exchange: (n-1) alpha + (n-1)/n V/beta (Thakur et al. 2005, on reduce-scatter).
    Their third term, the additions, runs at memory speed and is left out.
    """
    n = link.size
    return (n - 1) * link.latency_s + _gathered_bytes(size_bytes, n) / _ring_bandwidth(link)


def all_reduce_time_s(size_bytes: float, link: AxisLink) -> float:
    """Seconds to sum addends of `size_bytes` each and leave the whole sum on every rank.

    A reduce-scatter and an all-gather (Rabenseifner's algorithm; Thakur et al. 2005, on
    allreduce).
    """
    return reduce_scatter_time_s(size_bytes, link) + all_gather_time_s(size_bytes, link)


def all_to_all_time_s(size_bytes: float, link: AxisLink) -> float:
    """Seconds to exchange shards so that a tensor of `size_bytes` over all ranks is split anew.

    Each rank holds V/n and sends all of it but its own part, pairwise: (n-1) alpha +
    (n-1)/n (V/n)/beta (Thakur et al. 2005, on all-to-all, long messages).
    """
    n = link.size
    return (n - 1) * link.latency_s + _exchanged_bytes(size_bytes, n) / link.bandwidth_bytes_per_s


def send_time_s(size_bytes: float, link: AxisLink) -> float:
    """Seconds to send a message of `size_bytes` to a neighbour: alpha + V/beta; 0 without one.

    The alpha-beta model of a message itself (Thakur et al. 2005, section 3).
    """
    if link.size == 1:
        return 0.0
    return link.latency_s + size_bytes / _next_bandwidth(link)


def broadcast_time_s(size_bytes: float, link: AxisLink) -> float:
    """Seconds until all ranks hold a message of `size_bytes` that one of them had.

    Short: a binomial tree, ceil(log2 n) (alpha + V/beta). Long: a scatter down the tree and a ring
    all-gather (van de Geijn's algorithm), (ceil(log2 n) + n-1) alpha + 2 (n-1)/n V/beta (Thakur et
    al. 2005, on broadcast).
    """
    scatter = _tree_steps(link.size) * link.latency_s + _scattered_s(size_bytes, link)
    return min(_tree_s(size_bytes, link), scatter + all_gather_time_s(size_bytes, link))


def reduce_time_s(size_bytes: float, link: AxisLink) -> float:
    """Seconds until one rank holds the sum of addends of `size_bytes` each.

    A broadcast backwards: a binomial tree for short ones, a reduce-scatter and a gather for long
    ones (Rabenseifner's algorithm; Thakur et al. 2005, on reduce). The additions are left out.
    """
    gather = _tree_steps(link.size) * link.latency_s + _scattered_s(size_bytes, link)
    return min(_tree_s(size_bytes, link), reduce_scatter_time_s(size_bytes, link) + gather)


def collective_time_s(kind: str, size_bytes: float, link: AxisLink) -> float:
    """Seconds of the collective called `kind`; sizes as in `CostModel.collective_time_s`.

    Raises ConfigError for a kind that is not one of all_gather, reduce_scatter, all_reduce,
    all_to_all, broadcast, reduce, send.
    """
    if kind not in _TIMES_S:
        raise unknown_name("collective", kind, _TIMES_S)
    return _TIMES_S[kind](size_bytes, link)


def collective_bytes(kind: str, size_bytes: float, n: int) -> float:
    """Bytes that one of `n` ranks sends in the collective `kind`; raises ConfigError as above.

    Of a broadcast or a reduce their mean: all ranks but one receive, or send, the message once.
    """
    if kind not in _SENT_BYTES:
        raise unknown_name("collective", kind, _SENT_BYTES)
    return _SENT_BYTES[kind](size_bytes, n)


def _ring_bandwidth(link: AxisLink) -> float:
    return link.ring_bandwidth_bytes_per_s or link.bandwidth_bytes_per_s


def _next_bandwidth(link: AxisLink) -> float:
    return link.next_bandwidth_bytes_per_s or link.bandwidth_bytes_per_s


def _tree_steps(n: int) -> int:
    return math.ceil(math.log2(n))


def _tree_s(size_bytes: float, link: AxisLink) -> float:
    """The message whole down, or up, a binomial tree."""
    step_s = link.latency_s + size_bytes / _next_bandwidth(link)
    return _tree_steps(link.size) * step_s


def _scattered_s(size_bytes: float, link: AxisLink) -> float:
    """The parts of a message from the root, or to it."""
    return _gathered_bytes(size_bytes, link.size) / link.bandwidth_bytes_per_s


def _gathered_bytes(size_bytes: float, n: int) -> float:
    return (n - 1) / n * size_bytes


def _reduced_bytes(size_bytes: float, n: int) -> float:
    return 2 * _gathered_bytes(size_bytes, n)


def _exchanged_bytes(size_bytes: float, n: int) -> float:
    return _gathered_bytes(size_bytes / n, n)


def _message_bytes(size_bytes: float, n: int) -> float:
    return size_bytes if n > 1 else 0.0


_TIMES_S: dict[str, Callable[[float, AxisLink], float]] = {
    "all_gather": all_gather_time_s,
    "reduce_scatter": reduce_scatter_time_s,
    "all_reduce": all_reduce_time_s,
    "all_to_all": all_to_all_time_s,
    "broadcast": broadcast_time_s,
    "reduce": reduce_time_s,
    "send": send_time_s,
}

_SENT_BYTES: dict[str, Callable[[float, int], float]] = {
    "all_gather": _gathered_bytes,
    "reduce_scatter": _gathered_bytes,
    "all_reduce": _reduced_bytes,
    "all_to_all": _exchanged_bytes,
    "broadcast": _gathered_bytes,
    "reduce": _gathered_bytes,
    "send": _message_bytes,
}
