"""Reduce: an equivalent smaller problem, exactly, with the way back.

The reductions of PBQP: Scholz & Eckstein, "Register allocation for irregular architectures"
(2002): R0, RI, RII and the normalisation of edges; Hames & Scholz, "Nearly optimal register
allocation with PBQP" (2006). Dominated candidates: Goldstein, "Efficient rotamer elimination
applied to protein side-chains" (1994). A variable may be eliminated only if it carries no memory,
that is if its choice cannot matter to the memory limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from autoplan.errors import InfeasibleError
from autoplan.solver.candidates import non_dominated, split_sum
from autoplan.solver.problem import MEMORY_ROUNDING, Edge, FloatArray, Problem, Variable

IntArray: TypeAlias = npt.NDArray[np.intp]
_Item = TypeVar("_Item")

# Testing a hub again after every change around it would be quadratic; stopping early is exact too.
_MAX_DOMINANCE_TESTS = 8
_MAX_MEMORY_PASSES = 20


@dataclass(frozen=True, eq=False)
class _Elimination:
    """The best candidate of `variable` for every choice of the neighbours it had (0, 1 or 2).

    `best` is indexed by positions in the neighbours' `kept` arrays of that moment.
    """

    variable: int
    kept: IntArray
    neighbours: tuple[tuple[int, IntArray], ...]
    best: IntArray

    def choice(self, choices: dict[int, int]) -> int:
        at = tuple(int(np.searchsorted(kept, choices[v])) for v, kept in self.neighbours)
        return int(self.kept[self.best[at]])


@dataclass(frozen=True, eq=False)
class Reduced:
    """`problem` plus the constants equals the full problem, for its best completion.

    `survivors[i]` is the full problem's index of variable i, `kept[i]` its candidates that are
    left. `constant_cost`: seconds. `constant_memory`: bytes taken off the limit; 0.0 if
    `problem.memory_limit` is None, because the limit was None or cannot bind any more.
    """

    problem: Problem
    constant_cost: float
    constant_memory: float
    survivors: tuple[int, ...]
    kept: tuple[IntArray, ...]
    eliminations: tuple[_Elimination, ...]

    def expand(self, choices: Sequence[int]) -> tuple[int, ...]:
        """Choices of the reduced problem -> the best choices of the full one that extend them."""
        full = {u: int(k[c]) for u, k, c in zip(self.survivors, self.kept, choices, strict=True)}
        for elimination in reversed(self.eliminations):
            full[elimination.variable] = elimination.choice(full)
        return tuple(full[u] for u in range(len(full)))


def reduce(problem: Problem) -> Reduced:
    """Eliminates what can be decided without search; the optimum stays the same.

    Splits edges that are a sum of node costs, deletes forbidden and dominated candidates, and
    eliminates variables of degree <= 2 that carry no memory, until nothing changes. Near linear
    in the number of variables, cubic in the number of candidates. Raises InfeasibleError if a
    variable loses its last candidate, or if the least memories exceed the limit.
    """
    work = _Work(problem)
    passes = 0
    while True:
        if work.dirty_edges:
            work.normalise(_pop(work.dirty_edges))
        elif work.leaves:
            work.eliminate(_pop(work.leaves))
        elif work.links:
            work.eliminate(_pop(work.links))
        elif work.untested:
            work.delete_dominated(_pop(work.untested))
        elif passes < _MAX_MEMORY_PASSES and work.delete_oversized():
            passes += 1
        else:
            return work.reduced()


def _pop(queue: dict[_Item, None]) -> _Item:
    """The last item: where the work just was, so that it stays local."""
    return queue.popitem()[0]


class _Work:
    """The problem while it shrinks: arrays per variable, and what has to be looked at again.

    `edges[u][v]`: float[ku, kv] and `edges[v][u]` its transpose. The four queues are dicts for
    their order: deterministic, and each item at most once.
    """

    def __init__(self, problem: Problem) -> None:
        self.variables = problem.variables
        self.memory_limit = problem.memory_limit
        self.cost = [v.cost for v in self.variables]
        self.memory = [v.memory for v in self.variables]
        self.kept: list[IntArray] = [np.arange(v.num_candidates) for v in self.variables]
        self.edges: list[dict[int, FloatArray]] = [{} for _ in self.variables]
        self.alive = [True] * len(self.variables)
        self.eliminations: list[_Elimination] = []
        self.constant_cost = 0.0
        self.constant_memory = 0.0
        self.tests_left = [_MAX_DOMINANCE_TESTS] * len(self.variables)
        self.dirty_edges: dict[Edge, None] = {}
        self.leaves: dict[int, None] = {}
        self.links: dict[int, None] = {}
        self.untested: dict[int, None] = {}
        for (u, v), matrix in problem.edges.items():
            self._set_edge(u, v, matrix)
        for u in range(len(self.variables)):
            self._delete_forbidden(u)
            self._look_again(u)

    def normalise(self, edge: Edge) -> None:
        """Deletes candidates without a partner; turns an edge that is a sum into node costs."""
        u, v = edge
        if v not in self.edges[u]:
            return
        if not np.isfinite(self.edges[u][v]).all():
            self._keep(u, self.edges[u][v].min(axis=1) < np.inf)
            self._keep(v, self.edges[v][u].min(axis=1) < np.inf)
        split = split_sum(self.edges[u][v])
        if split is not None:
            del self.edges[u][v], self.edges[v][u]
            self._add_cost(u, split[0])
            self._add_cost(v, split[1])

    def eliminate(self, u: int) -> None:
        """R0, RI and RII: u takes its best candidate, whatever its <= 2 neighbours choose."""
        neighbours = tuple(self.edges[u])
        if not self.alive[u] or len(neighbours) > 2 or self._carries_memory(u):
            return
        total: FloatArray = self.cost[u]  # [ku], then [kv, ku], then [kv, kw, ku]
        for v in neighbours:
            total = total[..., None, :] + self.edges[v][u]
        self.eliminations.append(
            _Elimination(
                variable=u,
                kept=self.kept[u],
                neighbours=tuple((v, self.kept[v]) for v in neighbours),
                best=total.argmin(axis=-1),
            )
        )
        self.alive[u] = False
        self.edges[u] = {}
        for v in neighbours:
            del self.edges[v][u]
        if self.memory_limit is not None:
            self.constant_memory += float(self.memory[u][0])

        least: FloatArray = total.min(axis=-1)
        if not neighbours:
            self.constant_cost += float(least)
        elif len(neighbours) == 1:
            self._add_cost(neighbours[0], least)
        else:
            v, w = neighbours
            self._set_edge(v, w, self.edges[v][w] + least if w in self.edges[v] else least)
            self._look_again(v)
            self._look_again(w)

    def delete_dominated(self, u: int) -> None:
        """Deletes the candidates of u that another one beats against all neighbours."""
        if not self.alive[u] or self.tests_left[u] == 0 or self.cost[u].size == 1:
            return
        self.tests_left[u] -= 1
        memory = self.memory[u] if self._carries_memory(u) else None
        self._keep(u, non_dominated(self.cost[u], memory, self.edges[u].values()))

    def delete_oversized(self) -> bool:
        """Deletes candidates that cannot fit even if all others are least; whether any changed.

        Lifts the limit when even the sum of the largest memories fits.
        """
        if self.memory_limit is None:
            return False
        alive = self._alive()
        least = self.constant_memory + sum(float(self.memory[u].min()) for u in alive)
        most = self.constant_memory + sum(float(self.memory[u].max()) for u in alive)
        if most <= self.memory_limit:
            self.memory_limit = None
            for u in alive:
                self._look_again(u)
            return True
        if least > self.memory_limit * (1 + MEMORY_ROUNDING):
            raise InfeasibleError(
                f"memory limit of {self.memory_limit:.0f} bytes cannot be met: even the least "
                f"candidates take {least:.0f} bytes; raise the limit"
            )
        # The margin keeps what fits exactly, in spite of the rounding of the sums.
        slack = self.memory_limit - least + 1e-9 * self.memory_limit
        return any([self._keep(u, self.memory[u] - self.memory[u].min() <= slack) for u in alive])

    def reduced(self) -> Reduced:
        """The frozen result; least memories are taken off the limit."""
        alive = self._alive()
        position = {u: i for i, u in enumerate(alive)}
        limit = self.memory_limit
        variables = []
        for u in alive:
            least = float(self.memory[u].min())
            memory = np.zeros_like(self.memory[u]) if limit is None else self.memory[u] - least
            self.constant_memory += least
            variables.append(Variable(self.variables[u].name, self.cost[u], memory))
        edges = {
            (position[u], position[v]): matrix
            for u in alive
            for v, matrix in self.edges[u].items()
            if u < v
        }
        if limit is not None:
            limit = max(0.0, limit - self.constant_memory)
        return Reduced(
            problem=Problem(tuple(variables), edges, limit),
            constant_cost=self.constant_cost,
            constant_memory=0.0 if limit is None else self.constant_memory,
            survivors=tuple(alive),
            kept=tuple(self.kept[u] for u in alive),
            eliminations=tuple(self.eliminations),
        )

    def _alive(self) -> list[int]:
        return [u for u, alive in enumerate(self.alive) if alive]

    def _carries_memory(self, u: int) -> bool:
        memory = self.memory[u]
        return self.memory_limit is not None and bool((memory != memory[0]).any())

    def _look_again(self, u: int) -> None:
        self.untested[u] = None
        if len(self.edges[u]) <= 1:
            self.leaves[u] = None
        elif len(self.edges[u]) == 2:
            self.links[u] = None

    def _set_edge(self, u: int, v: int, matrix: FloatArray) -> None:
        self.edges[u][v] = matrix
        self.edges[v][u] = matrix.T
        self.dirty_edges[(u, v) if u < v else (v, u)] = None

    def _add_cost(self, u: int, cost: FloatArray) -> None:
        self.cost[u] = self.cost[u] + cost
        self._delete_forbidden(u)
        self._look_again(u)

    def _delete_forbidden(self, u: int) -> None:
        self._keep(u, self.cost[u] < np.inf)

    def _keep(self, u: int, mask: npt.NDArray[np.bool_]) -> bool:
        """Deletes the candidates of u outside `mask`; whether there were any."""
        if mask.all():
            return False
        if not mask.any():
            raise InfeasibleError(
                f"constraints conflict: no candidate of {self.variables[u].name!r} is left that "
                "is allowed and fits its neighbours; drop a constraint near it"
            )
        self.cost[u], self.memory[u] = self.cost[u][mask], self.memory[u][mask]
        self.kept[u] = self.kept[u][mask]
        for v in self.edges[u]:
            self._set_edge(u, v, self.edges[u][v][mask])
            self._look_again(v)
        self._look_again(u)
        return True
