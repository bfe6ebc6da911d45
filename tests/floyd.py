"""Floyd's algorithm, the plain way: what faster searches for paths must agree with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def floyd(steps: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Times of all paths and the first point of each, from the times [from, to] of single steps.

    Equal times prefer fewer steps, and among those the path that was found first (Floyd 1962). For
    times whose sums are exact.
    """
    count = len(steps)
    time = steps.copy()
    np.fill_diagonal(time, 0.0)
    length = np.where(np.isfinite(time), 1.0, np.inf)
    np.fill_diagonal(length, 0.0)
    first = np.tile(np.arange(count), (count, 1))
    for k in range(count):
        through = time[:, k, None] + time[None, k, :]
        through_length = length[:, k, None] + length[None, k, :]
        better = (through < time) | ((through == time) & (through_length < length))
        time = np.where(better, through, time)
        length = np.where(better, through_length, length)
        first = np.where(better, first[:, k, None], first)
    return time, first


def points_of(first: NDArray[np.int64], source: int, target: int) -> list[int]:
    """The points of the path from `source` to `target`, without `source`."""
    points, at = [], source
    while at != target:
        at = int(first[at, target])
        points.append(at)
    return points
