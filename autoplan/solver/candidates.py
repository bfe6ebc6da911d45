"""Functions of one variable's candidates and of one edge: arrays only, no graph, no state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from autoplan.solver.problem import FloatArray

IntArray: TypeAlias = npt.NDArray[np.intp]

_EPS = float(np.finfo(np.float64).eps)
# Columns looked at before all of them: most pairs of candidates fail on a few.
_PROBED_COLUMNS = 8
# Differences held at once, 32 MB: pairs of candidates against hundreds of columns are many.
_BLOCK_ELEMENTS = 1 << 22


def split_sum(matrix: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """(a[ku], b[kv]) with matrix[i, j] == a[i] + b[j], or None if there are none.

    Equal up to the rounding of one sum, entry by entry. A matrix that holds np.inf is no sum of
    finite vectors (rows and columns that are forbidden as a whole are deleted before).
    """
    if not np.isfinite(matrix).all():
        return None
    a: FloatArray = matrix.min(axis=1)
    b: FloatArray = (matrix - a[:, None]).min(axis=0)
    residual = np.abs(matrix - (a[:, None] + b[None, :]))
    return (a, b) if bool((residual <= 4 * _EPS * np.abs(matrix)).all()) else None


Amounts = tuple[FloatArray, Sequence[FloatArray]]
"""What the candidates of one variable add to a limit: float[k], and float[k, kv] per neighbour."""


def non_dominated(
    cost: FloatArray, edges: Iterable[FloatArray], limits: Iterable[Amounts] = ()
) -> npt.NDArray[np.bool_]:
    """bool[k]: the candidates that are worth keeping, whatever the neighbours choose.

    Candidate a is dominated by b if cost_b - cost_a + sum over edges of
    max_j (edge[b, j] - edge[a, j]) <= 0 (Goldstein 1994), and likewise for what b adds to every
    limit. Where the terms have both signs, the sum must be negative beyond its rounding error. Of
    equal candidates the first one stays. `cost`: float[k], finite; `edges`: float[k, kv] each, no
    row all np.inf.
    """
    k = cost.size
    pairs = ~np.eye(k, dtype=np.bool_)
    for vector, matrices in limits:
        better, worse = np.nonzero(pairs)
        pairs[better, worse] = _dominates(vector, matrices, better, worse)
    held = list(edges)
    steps = [-(-matrix.shape[1] // _PROBED_COLUMNS) for matrix in held]
    probes = [matrix[:, ::step] for matrix, step in zip(held, steps, strict=True)]
    for tested in (probes, held) if any(step > 1 for step in steps) else (held,):
        better, worse = np.nonzero(pairs)
        pairs[better, worse] = _dominates(cost, tested, better, worse)

    kept = np.ones(k, dtype=np.bool_)
    for candidate in range(k - 1, -1, -1):
        kept[candidate] = not (pairs[:, candidate] & kept).any()
    return kept


def non_dominated_unlimited(cost: FloatArray, *edges: FloatArray) -> npt.NDArray[np.bool_]:
    """`non_dominated` of a variable that no limit counts."""
    return non_dominated(cost, edges)


def _dominates(
    cost: FloatArray,
    edges: Iterable[FloatArray],
    better: npt.NDArray[np.intp],
    worse: npt.NDArray[np.intp],
) -> npt.NDArray[np.bool_]:
    """bool[pairs]: whether candidate `better[p]` costs no more than `worse[p]`, come what may."""
    total = cost[better] - cost[worse]
    magnitude = np.abs(total)
    never_worse = total <= 0.0
    with np.errstate(invalid="ignore"):  # inf - inf: both forbidden, replaced below
        for matrix in edges:
            term = _worst_difference(matrix, better, worse)
            total += term
            magnitude += np.abs(term)
            never_worse &= term <= 0.0
        dominates: npt.NDArray[np.bool_] = never_worse | (total <= -8 * _EPS * magnitude)
    # inf - inf is NaN in `total` too, and compares as False: worse on an edge, so not dominated.
    return dominates


def _worst_difference(
    matrix: FloatArray, better: npt.NDArray[np.intp], worse: npt.NDArray[np.intp]
) -> FloatArray:
    """float[pairs]: max over columns of matrix[better] - matrix[worse], block by block."""
    forbidden = np.isinf(matrix) if not np.isfinite(matrix).all() else None
    term = np.empty(better.size)
    block = max(1, _BLOCK_ELEMENTS // max(1, matrix.shape[1]))
    for start in range(0, better.size, block):
        high, low = better[start : start + block], worse[start : start + block]
        difference = matrix[high] - matrix[low]
        if forbidden is not None:
            difference[forbidden[low]] = -np.inf
        term[start : start + block] = difference.max(axis=1)
    return term


def all_finite(matrix: FloatArray) -> bool:
    """Whether no pair is forbidden."""
    return bool(np.isfinite(matrix).all())


def with_partner(matrix: FloatArray) -> npt.NDArray[np.bool_]:
    """bool[k]: the rows that are not forbidden with every column."""
    result: npt.NDArray[np.bool_] = matrix.min(axis=1) < np.inf
    return result


def is_allowed(cost: FloatArray) -> npt.NDArray[np.bool_]:
    """bool[k]: the candidates that are not forbidden."""
    result: npt.NDArray[np.bool_] = cost < np.inf
    return result


def masked(array: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The rows of `array` that `mask` keeps."""
    return array[mask]


def least_with(cost: FloatArray, *edges: FloatArray) -> tuple[FloatArray, IntArray]:
    """Least cost and its candidate, for every choice of the neighbours: [], [kv] or [kv, kw].

    `edges`: float[kv, ku] for each neighbour.
    """
    if len(edges) < 2:
        total = edges[0] + cost if edges else cost
        return total.min(axis=-1), total.argmin(axis=-1)
    first, second = edges
    least = np.empty((first.shape[0], second.shape[0]))
    best = np.empty(least.shape, dtype=np.intp)
    for row, given in enumerate(first):  # one row at a time: [kv, kw, ku] would be large
        total = second + (cost + given)
        best[row] = total.argmin(axis=1)
        least[row] = np.take_along_axis(total, best[row][:, None], axis=1)[:, 0]
    return least, best
