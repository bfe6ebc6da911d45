"""Branch and bound over prices: where one large choice makes the duality gap, decide it first.

A limit that binds inside one large tensor leaves a gap between the best prices' bound and the best
choices that fit. Splitting the candidates of that tensor by what they add to the limit gives two
problems with better bounds; best bound first (Land and Doig 1960).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence

import numpy as np

from autoplan.errors import InfeasibleError
from autoplan.solver.lagrangian import Relaxed, relax
from autoplan.solver.problem import Problem, relative_gap, restrict

_MAX_NODES = 60


def branch_and_bound(
    problem: Problem,
    deadline: float,
    gap: float,
    prices: Sequence[float] | None = None,
) -> Relaxed:
    """As `relax`, with a better bound and better choices: until `gap`, `deadline`, or 60 nodes.

    Raises InfeasibleError if nothing is allowed even without limits.
    """
    root = relax(problem, deadline, prices=prices)
    best, objective = root.choices, root.objective
    closed = np.inf
    counter = 0
    nodes = [(root.bound, counter, problem, root)]
    while nodes and counter < _MAX_NODES and time.perf_counter() < deadline:
        bound, _, part, relaxed = nodes[0]
        if best is not None and relative_gap(objective, min(bound, objective)) <= gap:
            break
        split = _split(part, relaxed)
        heapq.heappop(nodes)
        if split is None:
            closed = min(closed, bound)
            continue
        u, low = split
        for mask in (low, ~low):
            child = restrict(part, {u: mask})
            try:
                found = relax(child, deadline, known=objective)
            except InfeasibleError:
                continue
            if found.choices is not None and found.objective < objective:
                best, objective = found.choices, found.objective
            if found.bound >= objective:
                continue
            counter += 1
            heapq.heappush(nodes, (max(bound, found.bound), counter, child, found))
    least = min([closed, *(node[0] for node in nodes)])
    return Relaxed(max(root.bound, min(least, objective)), root.prices, best, objective, root.over)


def _split(
    problem: Problem, relaxed: Relaxed
) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.bool_]]] | None:
    """The variable whose change saves the limits most, and its candidates that add otherwise.

    Compares what breaks a limit at the best prices with what fits. The candidates on the one side
    add to the limits exactly what the one that breaks it does.
    """
    over, fitting = relaxed.over, relaxed.choices
    if over is None:
        return None
    shares = _shares(problem, relaxed.prices, over)
    if fitting is not None:
        lower = _shares(problem, relaxed.prices, fitting)
        shares = [a - b for a, b in zip(shares, lower, strict=True)]
    for u in sorted(range(len(shares)), key=lambda u: (-shares[u], u)):
        if shares[u] <= 0.0:
            break
        alike = _adds_alike(problem, u, over[u])
        allowed = np.isfinite(problem.variables[u].cost)
        if (allowed & ~alike).any() and (fitting is None or not alike[fitting[u]]):
            return u, ~alike
    return None


def _shares(problem: Problem, prices: Sequence[float], choices: Sequence[int]) -> list[float]:
    """What each variable adds to the limits, in seconds; a pair's amount is halved."""
    totals = [0.0] * len(problem.variables)
    for limit, price in zip(problem.limits, prices, strict=True):
        weight = price or _SMALL
        for u, vector in limit.vectors.items():
            totals[u] += weight * float(vector[choices[u]])
        for (u, v), matrix in limit.matrices.items():
            half = weight * float(matrix[choices[u], choices[v]]) / 2
            totals[u] += half
            totals[v] += half
    return totals


_SMALL = 1e-30


def _adds_alike(
    problem: Problem, u: int, choice: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """bool[ku]: candidates that add to every limit what `choice` adds, whatever others choose."""
    alike = np.ones(problem.variables[u].num_candidates, dtype=np.bool_)
    for limit in problem.limits:
        if u in limit.vectors:
            alike &= limit.vectors[u] == limit.vectors[u][choice]
        for (a, b), matrix in limit.matrices.items():
            if u in (a, b):
                rows = matrix if u == a else matrix.T
                alike &= (rows == rows[choice]).all(axis=1)
    return alike
