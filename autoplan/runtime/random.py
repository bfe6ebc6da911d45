"""Random numbers that depend on the seed, the op, the step and the logical position alone.

A counter-based generator: the number of an element is a hash of its linear index in the logical
tensor, so every rank draws for its shard what one device would draw there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix_(x: Tensor) -> Tensor:
    """A 32-bit finalizer with full avalanche, in place on int64 (Wellons 2018, "lowbias32")."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x &= _MASK
    x ^= x >> 15
    x *= 0x846CA68B
    x &= _MASK
    x ^= x >> 16
    return x


def _mix_number(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)


def random_bits(
    local_shape: Sequence[int],
    shape: Sequence[int],
    starts: Sequence[int],
    key: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """32-bit numbers (int64) for the shard of `local_shape` that starts at `starts` of `shape`.

    `key` may hold numbers of up to 64 bits.
    """
    stride = 1
    index = torch.zeros((), dtype=torch.int64, device=device)
    for dim in reversed(range(len(shape))):
        positions = torch.arange(starts[dim], starts[dim] + local_shape[dim], device=device)
        index = index + (positions * stride).reshape([-1] + [1] * (len(shape) - 1 - dim))
        stride *= shape[dim]
    salt = 0x9E3779B9
    for number in key:
        for half in (number & _MASK, (number >> 32) & _MASK):
            salt = _mix_number(salt ^ half)
    # With one salt for both halves of an index, element 0 would always draw 0.
    other = _mix_number(salt ^ 0x85EBCA6B)
    above: Tensor | int = _mix_number(other)
    if stride > _MASK:
        above = _mix_(((index >> 32) + other).bitwise_and_(_MASK))
    index &= _MASK
    index ^= salt
    bits = _mix_(index)
    bits ^= above
    return _mix_(bits).expand(tuple(local_shape))


_DIGITS = {torch.float64: 32, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
"""Bits of a uniform number, so that no type rounds it up to one."""


def uniform(
    local_shape: Sequence[int],
    shape: Sequence[int],
    starts: Sequence[int],
    key: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Numbers in [0, 1) for a shard, of a floating `dtype`."""
    digits = _DIGITS[dtype]
    bits = random_bits(local_shape, shape, starts, key, device) >> (32 - digits)
    result: Tensor = bits.to(dtype) / 2**digits
    return result


def normal(
    local_shape: Sequence[int],
    shape: Sequence[int],
    starts: Sequence[int],
    key: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Standard normal numbers for a shard (Box and Muller 1958), computed in float64."""
    radius, angle = (
        uniform(local_shape, shape, starts, (*key, number), torch.float64, device)
        for number in (1, 2)
    )
    result: Tensor = torch.sqrt(-2.0 * torch.log1p(-radius)) * torch.cos(2.0 * math.pi * angle)
    return result.to(dtype)


def integers(
    local_shape: Sequence[int],
    shape: Sequence[int],
    starts: Sequence[int],
    key: tuple[int, ...],
    low: int,
    high: int,
    device: torch.device,
) -> Tensor:
    """Whole numbers from `low` up to, not with, `high` (int64); spans of at most 2**31."""
    return low + (random_bits(local_shape, shape, starts, key, device) * (high - low) >> 32)


def keep_mask(
    local_shape: Sequence[int],
    drop: float,
    shape: Sequence[int],
    starts: Sequence[int],
    key: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Which elements of a shard are kept: each with probability 1 - `drop`.

    Compared as integers: float32 has no room for 32 bits, and the default dtype may be smaller.
    Drawn block by block: the integers take sixteen times the memory of the flags.
    """
    keep = torch.empty(tuple(local_shape), dtype=torch.bool, device=device)
    limit = round(drop * 2**32)
    for block in _blocks(local_shape):
        first = [start + low for start, (low, _) in zip(starts, block, strict=True)]
        sizes = [high - low for low, high in block]
        bits = random_bits(sizes, shape, first, key, device)
        torch.ge(bits, limit, out=keep[tuple(slice(low, high) for low, high in block)])
    return keep


BLOCK = 2**16
"""Elements that are drawn together."""


def _blocks(shape: Sequence[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Ranges per dimension that tile `shape`, of at most BLOCK elements."""
    if math.prod(shape) <= BLOCK:
        yield tuple((0, size) for size in shape)
        return
    rows = max(1, BLOCK // math.prod(shape[1:]))
    for low in range(0, shape[0], rows):
        for rest in _blocks(shape[1:]) if rows == 1 else [tuple((0, n) for n in shape[1:])]:
            yield ((low, min(low + rows, shape[0])), *rest)


def dropout_mask(
    x: Tensor,
    p: float,
    shape: Sequence[int],
    starts: Sequence[int],
    seed: int,
    key: int,
    step: int,
) -> Tensor:
    """Which elements of the shard `x` dropout keeps."""
    return keep_mask(x.shape, p, shape, starts, (seed, key, step), x.device)


class _Dropping(torch.autograd.Function):
    """`x` where the flags are set, scaled; linear, so that backward is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return torch.mul(x, keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (keep,) = ctx.saved_tensors
        return _Dropping.apply(grad, keep, ctx.scale), None, None  # type: ignore[no-untyped-call]


def drop(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """Zero where `keep` is not set, and `x` scaled by the inverse of its probability, 1 - `p`."""
    scale = torch.ones((), dtype=x.dtype) / (1.0 - p if p < 1.0 else 1.0)  # rounded as x is
    result: Tensor = _Dropping.apply(x, keep, float(scale))  # type: ignore[no-untyped-call]
    return result
