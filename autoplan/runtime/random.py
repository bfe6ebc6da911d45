"""Random numbers that depend on the seed, the op, the step and the logical position alone.

A counter-based generator: the number of an element is a hash of its linear index in the logical
tensor, so every rank draws for its shard what one device would draw there.
"""

from __future__ import annotations

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
    bits = _mix(_mix((low ^ salt) & _MASK) ^ _mix((high + salt) & _MASK))
    return bits.expand(tuple(local_shape))


def dropout_mask(
    x: Tensor,
    p: float,
    shape: Sequence[int],
    starts: Sequence[int],
    seed: int,
    key: int,
    step: int,
) -> Tensor:
    """Which elements of the shard `x` are kept: each with probability 1 - p.

    Compared as integers: float32 has no room for 32 bits, and the default dtype may be smaller.
    """
    return random_bits(x.shape, shape, starts, (seed, key, step), x.device) >= round(p * 2**32)
