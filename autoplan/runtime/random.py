"""Random numbers that depend on the seed, the op, the step and the logical position alone.

A counter-based generator: the number of an element is a hash of its linear index in the logical
tensor, so every rank draws for its shard what one device would draw there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finalizer with full avalanche, on int64 lanes (Wellons 2018, "lowbias32")."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


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
    low, high = index & _MASK, index >> 32
    other = _mix_number(salt ^ 0x85EBCA6B)  # with one salt for both, element 0 would always draw 0
    bits = _mix(_mix((low ^ salt) & _MASK) ^ _mix((high + other) & _MASK))
    return bits.expand(tuple(local_shape))


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
    """
    return random_bits(local_shape, shape, starts, key, device) >= round(drop * 2**32)


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
