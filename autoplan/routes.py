"""Routes: cheapest paths between the points of a grid whose steps change one coordinate each.

A layout is such a point, with one coordinate per mesh axis. Points are numbered row-major. A point
has few neighbours, so that relaxing all steps until nothing improves (Bellman 1958) takes a few
rounds of count^2 each, where eliminating one point after another (Floyd 1962) takes count^3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_UNITS_PER_S = 64e9
_STEP = 1 / 64
"""A path's length is one number: its time in units, and a 64th for each of its steps, so that of
equal times fewer steps are shorter. Times of whole nanoseconds add up exactly, in any order."""
_LONGEST = 2.0**40
"""Units of a step: more, and a path's length would not hold its steps. Then units are larger."""


@dataclass(frozen=True)
class Routes:
    """All cheapest paths of one grid with `size` points along every coordinate.

    `weights`: lengths of the steps, one array per coordinate, [from, to, points before, points
    after], infinite where there is no step. `lengths`: of the paths, [source, target].
    """

    size: int
    units_per_s: float
    weights: tuple[FloatArray, ...]
    lengths: FloatArray
    _pivots: dict[tuple[int, int], int] = field(default_factory=dict)

    def time_s(self, sources: Sequence[int], targets: Sequence[int]) -> FloatArray:
        """Seconds of every path, [len(sources), len(targets)]; infinite where there is none."""
        asked = self.lengths[np.ix_(np.asarray(sources, int), np.asarray(targets, int))]
        times: FloatArray = np.floor(asked) / self.units_per_s
        return times

    def path(self, source: int, target: int) -> Iterator[tuple[int, int]]:
        """The coordinate that each step changes and the point that it leads to, in order.

        The target must be reachable.
        """
        at = source
        while at != target:
            goal = target
            while (pivot := self._pivot(at, goal)) >= 0:
                goal = pivot
            yield next(axis for axis, point, _ in self._steps(at) if point == goal), goal
            at = goal

    def _pivot(self, source: int, target: int) -> int:
        """The largest point between the two, on the path where it is smallest; -1 for one step.

        It says which of equal paths is taken: the one that Floyd's algorithm finds first.
        """
        known = self._pivots.get((source, target))
        if known is None:
            length = self.lengths[source, target]
            known = min(
                -1 if point == target else max(point, self._pivot(point, target))
                for _, point, weight in self._steps(source)
                if weight + self.lengths[point, target] == length
            )
            self._pivots[source, target] = known
        return known

    def _steps(self, source: int) -> Iterator[tuple[int, int, float]]:
        """Coordinate, end and length of every step from `source`."""
        after = len(self.lengths)
        for axis, weight in enumerate(self.weights):
            after //= self.size
            before, rest = divmod(source, after * self.size)
            at, behind = divmod(rest, after)
            for to, length in enumerate(weight[at, :, before, behind].tolist()):
                if length < math.inf:
                    yield axis, source + (to - at) * after, length


def cheapest(times_s: Sequence[FloatArray], size: int) -> Routes:
    """The cheapest paths between all points by the seconds of steps, laid out as `weights` are.

    Of equal times the fewest steps are cheapest; times are told apart down to 1/64 ns.
    """
    weights, units_per_s = _weights(times_s)
    count = size ** len(times_s)
    lengths = np.full((count, count), np.inf)
    np.fill_diagonal(lengths, 0.0)
    steps = [
        (lengths.reshape(weight.shape[2], size, weight.shape[3], count), at, to, weight[at, to])
        for weight in weights
        for at in range(size)
        for to in range(size)
        if np.isfinite(weight[at, to]).any()
    ]
    improved = True
    while improved:
        before = lengths.copy()
        for paths, at, to, weight in steps:
            np.minimum(paths[:, at], weight[:, :, None] + paths[:, to], out=paths[:, at])
        improved = not np.array_equal(before, lengths)
    return Routes(size, units_per_s, weights, lengths)


def _weights(times_s: Sequence[FloatArray]) -> tuple[tuple[FloatArray, ...], float]:
    """Lengths of steps of `times_s` seconds, and the units that are a second in them."""
    longest = max((float(each[np.isfinite(each)].max(initial=0.0)) for each in times_s), default=0)
    units_per_s = _UNITS_PER_S
    while longest * units_per_s > _LONGEST:
        units_per_s /= 2
    return tuple(np.rint(each * units_per_s) + _STEP for each in times_s), units_per_s
