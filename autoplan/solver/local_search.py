"""A first feasible choice: greedy, then one variable at a time, with a price on memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.solver.problem import FloatArray, Problem

_PRICE_STEPS = 12
_BISECTIONS = 5
_MOVES_PER_VARIABLE = 20
_MAX_PASSES = 10


@dataclass(frozen=True, eq=False)
class _Landscape:
    """Finite costs: what is forbidden costs more than any feasible choice can."""

    costs: tuple[FloatArray, ...]
    memories: tuple[FloatArray, ...]
    # neighbours[u] = ((v, matrix[ku, kv]), ...)
    neighbours: tuple[tuple[tuple[int, FloatArray], ...], ...]
    span: float


def local_search(problem: Problem) -> tuple[int, ...] | None:
    """A feasible choice that no single allowed change improves, or None if none was found.

    Memory is priced (seconds per byte): the price rises until the choice fits, is bisected back,
    and the leanest fit is improved within the limit. Deterministic, and no proof of anything.
    """
    land = _landscape(problem)
    choices = _descend(land, _greedy(land, 0.0), 0.0)
    if problem.is_feasible(choices):
        return tuple(choices)
    heaviest = sum(float(m.max()) for m in land.memories)
    if problem.memory_limit is None or heaviest == 0.0:
        return None

    low, high = 0.0, land.span / heaviest * 1e-3
    for _ in range(_PRICE_STEPS):
        choices = _descend(land, _greedy(land, high), high)
        if problem.is_feasible(choices):
            break
        low, high = high, high * 8
    else:
        return None
    found = [choices]
    for _ in range(_BISECTIONS):
        price = (low * high) ** 0.5 if low > 0.0 else high / 8
        choices = _descend(land, list(found[-1]), price)
        if problem.is_feasible(choices):
            found.append(choices)
            high = price
        else:
            low = price
    improved = [_descend_within(land, choices, problem.memory_limit) for choices in found]
    # The prices' own choices too: a sum kept up step by step may have drifted over the limit.
    feasible = [tuple(c) for c in improved + found if problem.is_feasible(c)]
    return min(feasible, key=problem.objective, default=None)


def _landscape(problem: Problem) -> _Landscape:
    arrays = [v.cost for v in problem.variables] + list(problem.edges.values())
    magnitudes = (np.abs(a, where=np.isfinite(a), out=np.zeros_like(a)).max() for a in arrays)
    span = 2 * float(sum(magnitudes)) + 1e-30
    neighbours: list[list[tuple[int, FloatArray]]] = [[] for _ in problem.variables]
    for (u, v), matrix in problem.edges.items():
        finite = np.where(np.isfinite(matrix), matrix, span)
        neighbours[u].append((v, finite))
        neighbours[v].append((u, finite.T))
    return _Landscape(
        costs=tuple(np.where(np.isfinite(v.cost), v.cost, span) for v in problem.variables),
        memories=tuple(v.memory for v in problem.variables),
        neighbours=tuple(tuple(n) for n in neighbours),
        span=span,
    )


def _greedy(land: _Landscape, price: float) -> list[int]:
    """Chooses in index order, as if every later neighbour could take its best."""
    choices: list[int] = []
    for u, cost in enumerate(land.costs):
        total = cost + price * land.memories[u]
        for v, matrix in land.neighbours[u]:
            total = total + (matrix[:, choices[v]] if v < u else matrix.min(axis=1))
        choices.append(int(total.argmin()))
    return choices


def _descend_within(land: _Landscape, start: list[int], memory_limit: float) -> list[int]:
    """Descends within the limit, again while changes have made room for others."""
    choices = start
    for _ in range(_MAX_PASSES):
        before, choices = choices, _descend(land, choices, 0.0, memory_limit)
        if choices == before:
            break
    return choices


def _descend(
    land: _Landscape, start: Sequence[int], price: float, memory_limit: float | None = None
) -> list[int]:
    """Changes one variable at a time while that lowers cost + price * memory.

    With `memory_limit` only changes that fit are made; `start` must fit.
    """
    choices = list(start)
    fields = []
    for u, cost in enumerate(land.costs):
        field = cost + price * land.memories[u]
        for v, matrix in land.neighbours[u]:
            field += matrix[:, choices[v]]
        fields.append(field)
    used = sum(float(m[c]) for m, c in zip(land.memories, choices, strict=True))

    queue = deque(range(len(choices)))
    waiting = [True] * len(choices)
    moves_left = _MOVES_PER_VARIABLE * len(choices)
    while queue and moves_left:
        u = queue.popleft()
        waiting[u] = False
        old, memory = choices[u], land.memories[u]
        field = fields[u]
        if memory_limit is not None:
            field = np.where(used - memory[old] + memory <= memory_limit, field, np.inf)
        new = int(field.argmin())
        if not field[new] < field[old]:
            continue
        moves_left -= 1
        choices[u] = new
        used += float(memory[new] - memory[old])
        for v, matrix in land.neighbours[u]:
            fields[v] += matrix[new] - matrix[old]
            if not waiting[v]:
                waiting[v] = True
                queue.append(v)
    return choices
