"""Tables over all intervals i .. j-1 of a chain: seconds and bytes of each as each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.solver.chain.problem import BoolArray, Chain, IntArray, Pipeline
from autoplan.solver.problem import FloatArray


@dataclass(frozen=True, eq=False)
class Intervals:
    """Rows are the first piece i, columns one past the last, j: [S, n+1, n+1], or [n+1, n+1].

    `seconds[s, i, j]` per microbatch without recomputation, np.inf where the interval cannot be
    stage s: by its place, by hints, or since it alone exceeds its group's memory however it is
    recomputed. `once_s[i, j]`: seconds per step. `least_s[s, i, j]`: `seconds` and a lower bound
    of what recomputation adds if the stage is alone in its group; exact where `settled`.
    `bytes_without[s, i, j]`: with no recomputation, and no transients; `transient_bytes[i, j]`;
    `least_bytes[s, i, j]`: the least that recomputation can reach, transients included, whatever
    the limit. `places[s, i, j]`: possible but for memory.
    """

    seconds: FloatArray
    once_s: FloatArray
    least_s: FloatArray
    settled: BoolArray
    bytes_without: FloatArray
    transient_bytes: FloatArray
    least_bytes: FloatArray
    places: BoolArray


def tabulate(chain: Chain, pipeline: Pipeline) -> Intervals:
    """The tables of `chain` on `pipeline`."""
    n, stages = chain.num_pieces, pipeline.num_stages
    position = np.arange(n + 1)
    places = np.stack([_places(chain, stages, s) for s in range(stages)])
    seconds = np.empty(places.shape)
    for s in range(stages):
        start = chain.cut_s[:, None] if pipeline.pays_cut(s) else 0.0
        end = chain.cut_s[None, :] if pipeline.pays_cut(s + 1) else 0.0
        seconds[s] = _sums(chain.time_s) + start + end

    resident = _sums(chain.resident_bytes)
    for pieces, size in chain.shared:
        resident += size * (_sums(np.bincount(pieces, minlength=n).astype(np.float64)) > 0)
    flight = pipeline.in_flight[:, None, None]
    kept = _sums(chain.kept_bytes) + chain.cut_bytes[:, None]
    transient = _extremes(chain.transient_bytes)
    without = resident + flight * kept
    limit = pipeline.most_bytes[list(pipeline.group)][:, None, None]
    least = without + transient
    over = np.where(places, least - limit, -1.0)
    saved = chain.saved_bytes
    if (over > 0.0).any():
        peak = chain.transient_bytes + chain.working_bytes
        for most in np.unique(peak[saved > 0.0]).tolist():
            part = kept - _sums(np.where(peak <= most, saved, 0.0))
            least = np.minimum(least, resident + flight * part + np.maximum(transient, most))
    fits = places & (least <= limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        price = np.where(saved > 0.0, chain.recompute_s / saved, np.inf)
    extra = np.zeros(places.shape)
    tight = fits & (over > 0.0)
    prices = np.broadcast_to(-_extremes(-price, -np.inf) / flight, places.shape)
    extra[tight] = over[tight] * prices[tight]
    seconds[~fits] = np.inf
    return Intervals(
        seconds=seconds,
        once_s=np.where(position[:, None] < position, _sums(chain.once_s), 0.0),
        least_s=seconds + extra,
        settled=~tight,
        bytes_without=without,
        transient_bytes=transient,
        least_bytes=least,
        places=places,
    )


def cheapest_path(tables: FloatArray) -> tuple[float, tuple[int, ...]] | None:
    """The cut with the least sum of `tables[s, first[s], first[s+1]]`, or None if all are np.inf.

    A shortest path over (stage, position), in O(S n^2).
    """
    size = tables.shape[1]
    reached = np.full(size, np.inf)
    reached[0] = 0.0
    steps = []
    for table in tables:
        sums = reached[:, None] + table
        steps.append(sums.argmin(axis=0))
        reached = sums[steps[-1], np.arange(size)]
    if reached[-1] == np.inf:
        return None
    return float(reached[-1]), _walk_back(steps, size - 1)


def smallest_bottleneck(tables: FloatArray) -> tuple[float, tuple[int, ...]]:
    """The cut with the least maximum of `tables[s, first[s], first[s+1]]`."""
    size = tables.shape[1]
    reached = np.full(size, np.inf)
    reached[0] = -np.inf
    steps = []
    for table in tables:
        worst = np.maximum(reached[:, None], table)
        steps.append(worst.argmin(axis=0))
        reached = worst[steps[-1], np.arange(size)]
    return float(reached[-1]), _walk_back(steps, size - 1)


def _walk_back(steps: Sequence[IntArray], end: int) -> tuple[int, ...]:
    first = [end]
    for step in reversed(steps):
        first.append(int(step[first[-1]]))
    return tuple(reversed(first))


def _places(chain: Chain, stages: int, s: int) -> BoolArray:
    """Where stage s may be: a piece for every stage before and after, and hints kept."""
    n = chain.num_pieces
    position = np.arange(n + 1)
    first, end = position[:, None], position[None, :]
    forbidden = ~np.broadcast_to(chain.allowed, (n, stages))[:, s]
    fits = (first < end) & (first >= s) & (n - end >= stages - 1 - s)
    if s == 0:
        fits = fits & (first == 0)
    if s == stages - 1:
        fits = fits & (end == n)
    return np.asarray(fits & (_sums(forbidden.astype(np.float64)) == 0))


def _sums(values: FloatArray) -> FloatArray:
    total = np.r_[0.0, np.cumsum(values)]
    return np.asarray(total[None, :] - total[:, None])


def _extremes(values: FloatArray, empty: float = 0.0) -> FloatArray:
    """The maximum of values[i:j] at [i, j]."""
    n = values.size
    table = np.full((n + 1, n + 1), empty)
    for i in range(n):
        table[i, i + 1 :] = np.maximum.accumulate(values[i:])
    return table
