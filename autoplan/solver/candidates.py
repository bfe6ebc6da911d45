"""Array tests on one variable's candidates and on one edge: no graph, no state."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from autoplan.solver.problem import FloatArray

_EPS = float(np.finfo(np.float64).eps)
# Columns looked at before all of them: most pairs of candidates fail on a few.
_PROBED_COLUMNS = 8


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


def non_dominated(
    cost: FloatArray, memory: FloatArray | None, edges: Iterable[FloatArray]
) -> npt.NDArray[np.bool_]:
    """bool[k]: the candidates that are worth keeping, whatever the neighbours choose.

    Candidate a is dominated by b if b weighs no more (`memory` None: weight does not matter) and
    cost_b - cost_a + sum over edges of max_j (edge[b, j] - edge[a, j]) <= 0 (Goldstein 1994).
    Where the terms have both signs, the sum must be negative beyond its rounding error. Of equal
    candidates the first one stays. `cost`: float[k], finite; `edges`: float[k, kv] each, no row
    all np.inf.
    """
    k = cost.size
    pairs = ~np.eye(k, dtype=np.bool_)
    if memory is not None:
        pairs &= memory[:, None] <= memory[None, :]
    matrices = list(edges)
    steps = [-(-matrix.shape[1] // _PROBED_COLUMNS) for matrix in matrices]
    probes = [matrix[:, ::step] for matrix, step in zip(matrices, steps, strict=True)]
    for tested in (probes, matrices) if any(step > 1 for step in steps) else (matrices,):
        better, worse = np.nonzero(pairs)
        pairs[better, worse] = _dominates(cost, tested, better, worse)

    kept = np.ones(k, dtype=np.bool_)
    for candidate in range(k - 1, -1, -1):
        kept[candidate] = not (pairs[:, candidate] & kept).any()
    return kept


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
            difference = matrix[better] - matrix[worse]
            if not np.isfinite(matrix).all():
                difference[np.isinf(matrix[worse])] = -np.inf
            term = difference.max(axis=1)
            total += term
            magnitude += np.abs(term)
            never_worse &= term <= 0.0
        dominates: npt.NDArray[np.bool_] = never_worse | (total <= -8 * _EPS * magnitude)
    # inf - inf is NaN in `total` too, and compares as False: worse on an edge, so not dominated.
    return dominates
