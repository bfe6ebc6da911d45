"""Buckets: conversions of parameters travel together, so that a step pays few latencies.

The prologue boxes every parameter; one collective a parameter would be mostly latency. Moves of
equal action on one axis share a collective up to BUCKET_BYTES, as gradient buckets do in
DistributedDataParallel (Li et al. 2020, section 3.2.3). Ledger and emission cut the same buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autoplan.boxing import COLLECTIVES, Move, Router, StepPrice
from autoplan.mesh import Mesh
from autoplan.strategies.rule import TensorMeta

BUCKET_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Conversion:
    """One tensor on its way between layouts; `path` is for reports."""

    moves: tuple[Move, ...]
    meta: TensorMeta
    path: str


Bucket = tuple[tuple[int, Move], ...]
"""Moves that share a collective, each with the number of its conversion."""


def cut_buckets(conversions: Sequence[Conversion], mesh: Mesh) -> Iterator[Bucket]:
    """The moves of all conversions in running order, coalesced; a local move stays alone."""
    depth = max((len(each.moves) for each in conversions), default=0)
    for level in range(depth):
        open_buckets: dict[tuple[object, ...], list[tuple[int, Move]]] = {}
        filled: dict[tuple[object, ...], int] = {}
        for number, each in enumerate(conversions):
            if level >= len(each.moves):
                continue
            move, grad = each.moves[level], each.meta.requires_grad
            actions = move.actions(grad)
            if not any(action in COLLECTIVES for action in actions):
                yield ((number, move),)
                continue
            key = (move.axis, actions, each.meta.dtype, grad)
            size = move.whole_bytes(each.meta.shape, each.meta.itemsize, mesh)
            if key in open_buckets and filled[key] + size > BUCKET_BYTES:
                yield tuple(open_buckets.pop(key))
            filled[key] = size if key not in open_buckets else filled[key] + size
            open_buckets.setdefault(key, []).append((number, move))
        for bucket in open_buckets.values():
            yield tuple(bucket)


def bucketed(price: StepPrice) -> StepPrice:
    """The price of a step as its share of a full bucket."""

    def share(action: str, axis: str, size_bytes: int) -> float:
        if action in COLLECTIVES and size_bytes < BUCKET_BYTES:
            return price(action, axis, BUCKET_BYTES) * size_bytes / BUCKET_BYTES
        return price(action, axis, size_bytes)

    return share


def rounded(price: StepPrice, rounding: Callable[[float], float]) -> StepPrice:
    """A price after `rounding`."""
    return lambda action, axis, size_bytes: rounding(price(action, axis, size_bytes))


@dataclass(frozen=True)
class Routers:
    """Cheapest paths in the body, and in the prologue, where latency is shared."""

    body: Router
    prologue: Router

    @staticmethod
    def of(mesh: Mesh, price: StepPrice, rounding: Callable[[float], float]) -> Routers:
        """Routers whose prices, rounded, are `price` alone and in a bucket."""
        return Routers(
            Router(mesh, rounded(price, rounding)), Router(mesh, rounded(bucketed(price), rounding))
        )
