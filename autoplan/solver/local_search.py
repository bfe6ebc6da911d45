"""Local search: choices that no change of a single variable improves."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from autoplan.solver.problem import FloatArray, Limit, Problem

_MOVES_PER_VARIABLE = 20


def greedy(problem: Problem) -> list[int]:
    """Chooses in index order, as if every later neighbour could take its best; limits aside."""
    before: list[list[tuple[int, FloatArray]]] = [[] for _ in problem.variables]
    totals = [variable.cost.copy() for variable in problem.variables]
    for (u, v), matrix in problem.edges.items():
        totals[u] += matrix.min(axis=1)
        before[v].append((u, matrix))
    choices: list[int] = []
    for total, sources in zip(totals, before, strict=True):
        for u, matrix in sources:
            total += matrix[choices[u]]
        choices.append(int(total.argmin()))
    return choices


def local_search(problem: Problem) -> tuple[int, ...] | None:
    """Feasible choices that no single allowed change improves, or None if none were found."""
    choices = tuple(descend(problem, greedy(problem)))
    return choices if problem.is_feasible(choices) else None


def descend(
    problem: Problem,
    start: Sequence[int],
    keep_limits: bool = False,
    landscape: Landscape | None = None,
) -> list[int]:
    """Changes one variable at a time while that costs less; deterministic.

    With `keep_limits`, which `start` must keep, only to what keeps them, too. Forbidden choices
    cost more than all others together, so that their number falls first. `landscape`: of `problem`,
    where it is at hand.
    """
    land = Landscape(problem) if landscape is None else landscape
    choices = list(start)
    fields = land.fields(choices)
    limits = [_Sum(limit, problem, choices) for limit in problem.limits] if keep_limits else []
    queue = deque(range(len(choices)))
    waiting = [True] * len(choices)
    moves_left = _MOVES_PER_VARIABLE * len(choices)
    while queue and moves_left:
        u = queue.popleft()
        waiting[u] = False
        old, field = choices[u], fields[u]
        for limit in limits:
            field = np.where(limit.allows(u, old), field, np.inf)
        new = int(field.argmin())
        if not field[new] < fields[u][old]:
            continue
        moves_left -= 1
        choices[u] = new
        for limit in limits:
            limit.change(u, old, new)
        for v, matrix in land.neighbours[u]:
            fields[v] += matrix[new] - matrix[old]
        # What left room in a limit may let anything else move.
        for v in range(len(choices)) if limits else (v for v, _ in land.neighbours[u]):
            if not waiting[v] and v != u:
                waiting[v] = True
                queue.append(v)
    return choices


class Landscape:
    """Finite costs: what is forbidden costs more than any feasible choice can."""

    def __init__(self, problem: Problem) -> None:
        arrays = [v.cost for v in problem.variables] + list(problem.edges.values())
        magnitudes = (np.abs(a, where=np.isfinite(a), out=np.zeros(a.shape)).max() for a in arrays)
        span = 2 * float(sum(magnitudes)) + 1e-30
        self.costs = [_finite(v.cost, span) for v in problem.variables]
        self.neighbours: list[list[tuple[int, FloatArray]]] = [[] for _ in problem.variables]
        for (u, v), matrix in problem.edges.items():
            finite = _finite(matrix, span)
            self.neighbours[u].append((v, finite))
            self.neighbours[v].append((u, finite.T))

    def fields(self, choices: Sequence[int]) -> list[FloatArray]:
        """float[ku] for every u: what its candidates cost beside the others' choices."""
        result = []
        for cost, around in zip(self.costs, self.neighbours, strict=True):
            field = cost.copy()
            for v, matrix in around:
                field += matrix[:, choices[v]]
            result.append(field)
        return result


def _finite(array: FloatArray, span: float) -> FloatArray:
    return np.where(np.isfinite(array), array, span)


class _Sum:
    """A limit's sum, kept up while choices change."""

    def __init__(self, limit: Limit, problem: Problem, choices: Sequence[int]) -> None:
        self.limit = limit
        self.fields = [np.zeros(v.num_candidates) for v in problem.variables]
        self.neighbours: dict[int, list[tuple[int, FloatArray]]] = {}
        for u, vector in limit.vectors.items():
            self.fields[u] += vector
        for (u, v), matrix in limit.matrices.items():
            self.fields[u] += matrix[:, choices[v]]
            self.fields[v] += matrix[choices[u]]
            self.neighbours.setdefault(u, []).append((v, matrix))
            self.neighbours.setdefault(v, []).append((u, matrix.T))
        self.total = limit.total(choices)

    def allows(self, u: int, now: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """bool[ku]: which candidates of u keep the limit; the one it has now does."""
        field = self.fields[u]
        allowed: np.ndarray[tuple[int], np.dtype[np.bool_]]
        allowed = self.total - field[now] + field <= self.limit.most + self.limit.tolerance
        allowed[now] = True
        return allowed

    def change(self, u: int, old: int, new: int) -> None:
        self.total += float(self.fields[u][new] - self.fields[u][old])
        for v, matrix in self.neighbours.get(u, ()):
            self.fields[v] += matrix[new] - matrix[old]
