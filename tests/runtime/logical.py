"""What layouts mean, written without the code under test: `torch.chunk`, copies and addends."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from zlib import crc32

import torch
from torch import Tensor

from autoplan.boxing import Move
from autoplan.layouts import Broadcast, Entry, Layout, Split
from autoplan.mesh import Mesh


def chunks(x: Tensor, parts: int, dim: int) -> list[Tensor]:
    """`torch.chunk`, with empty shards for the ranks it leaves out."""
    cut = list(torch.chunk(x, parts, dim))
    return cut + [x.narrow(dim, 0, 0)] * (parts - len(cut))


def numbers(shape: tuple[int, ...], dtype: torch.dtype, source: random.Random) -> Tensor:
    """Small whole numbers: sums of a few are exact in every dtype, in every order."""
    low, high = (0, 2) if dtype == torch.bool else (-8, 9)
    generator = torch.Generator().manual_seed(source.getrandbits(32))
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def addends(x: Tensor, parts: int, source: random.Random) -> list[Tensor]:
    """Random tensors that sum to `x` (of truth values: whose disjunction is `x`)."""
    if x.dtype == torch.bool:
        owner = torch.randint(
            parts, x.shape, generator=torch.Generator().manual_seed(source.getrandbits(32))
        )
        return [x & (owner == part) for part in range(parts)]
    terms = [numbers(tuple(x.shape), x.dtype, source) for _ in range(parts - 1)]
    terms.insert(source.randrange(parts), x - sum(terms, torch.zeros_like(x)))
    return terms


def spread(whole: Tensor, layout: Layout, mesh: Mesh, source: random.Random) -> list[Tensor]:
    """One value per rank that together mean `whole` in `layout`; addends are random."""
    values = [whole]
    for entry, size in zip(layout, mesh.sizes, strict=True):
        values = [piece for x in values for piece in _pieces(x, entry, size, source)]
    return [value.clone() for value in values]


def _pieces(x: Tensor, entry: Entry, parts: int, source: random.Random) -> list[Tensor]:
    if isinstance(entry, Split):
        return chunks(x, parts, entry.dim)
    return [x] * parts if isinstance(entry, Broadcast) else addends(x, parts, source)


def meaning(values: list[Tensor], layout: Layout, mesh: Mesh, shape: tuple[int, ...]) -> Tensor:
    """The logical tensor that the ranks' values mean; fails where they mean none.

    Every shard must have the shape that `torch.chunk` gives it, and copies must be equal.
    """
    expected = spread(torch.zeros(shape), layout, mesh, random.Random(0))
    assert [v.shape for v in values] == [e.shape for e in expected], f"shards of {layout}"
    for entry, size in reversed(list(zip(layout, mesh.sizes, strict=True))):
        values = [
            _combined(values[start : start + size], entry) for start in range(0, len(values), size)
        ]
    return values[0]


def _combined(group: list[Tensor], entry: Entry) -> Tensor:
    if isinstance(entry, Split):
        return torch.cat(group, entry.dim)
    if isinstance(entry, Broadcast):
        assert all(torch.equal(group[0], other) for other in group), "copies differ"
        return group[0]
    total = group[0]
    for other in group[1:]:
        total = total + other
    return total


def random_price(seed: int) -> Callable[[str, str, int], float]:
    """Whole prices that depend on action, axis and size in no sensible way: paths take detours."""

    def price(action: str, axis: str, size_bytes: int) -> float:
        noise = crc32(f"{seed} {action} {axis} {size_bytes}".encode())
        return float(noise % 20) if action != "identity" else 0.0

    return price


def single_moves(mesh: Mesh, entries: tuple[Entry, ...]) -> list[Move]:
    """Every change of one entry on a mesh of one axis."""
    return [
        Move(0, Layout((source,)), Layout((target,)))
        for source, target in product(entries, repeat=2)
        if source != target
    ]
