"""Reduce: an equivalent smaller problem, exactly, with the way back.

The reductions of PBQP: Scholz & Eckstein, "Register allocation for irregular architectures"
(2002): R0, RI, RII and the normalisation of edges; Hames & Scholz, "Nearly optimal register
allocation with PBQP" (2006). Dominated candidates: Goldstein, "Efficient rotamer elimination
applied to protein side-chains" (1994). A variable may be eliminated only if its choice cannot
matter to a limit.

Equal blocks of a model share their arrays, so that what was worked out for one is remembered for
the others (`ArrayCache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from autoplan.errors import InfeasibleError
from autoplan.solver.amounts import Amounts
from autoplan.solver.array_cache import ArrayCache
from autoplan.solver.candidates import (
    all_finite,
    is_allowed,
    least_with,
    masked,
    non_dominated,
    non_dominated_unlimited,
    split_sum,
    with_partner,
)
from autoplan.solver.problem import Edge, FloatArray, Problem, Variable

IntArray: TypeAlias = npt.NDArray[np.intp]
_Item = TypeVar("_Item")

# Testing a hub again after every change around it would be quadratic; stopping early is exact too.
_MAX_DOMINANCE_TESTS = 8
_MAX_LIMIT_PASSES = 20


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
    """`problem` plus `constant_cost` seconds equals the full problem, for its best completion.

    `survivors[i]` is the full problem's index of variable i, `kept[i]` its candidates that are
    left. Limits that cannot bind any more are gone.
    """

    problem: Problem
    constant_cost: float
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
    eliminates variables of degree <= 2 that no limit counts, until nothing changes. Near linear
    in the number of variables, cubic in the number of candidates. Raises InfeasibleError if a
    variable loses its last candidate, or if the least amounts exceed a limit.
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
        elif passes < _MAX_LIMIT_PASSES and work.tighten():
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
        self.remember = ArrayCache()
        self.limits = [Amounts(limit) for limit in problem.limits]
        self.cost = [v.cost for v in self.variables]
        self.kept: list[IntArray] = [np.arange(v.num_candidates) for v in self.variables]
        self.edges: list[dict[int, FloatArray]] = [{} for _ in self.variables]
        self.alive = [True] * len(self.variables)
        self.eliminations: list[_Elimination] = []
        self.constant_cost = 0.0
        self.tightened: dict[str, None] = {}  # limits that candidates were deleted for
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
        if not self.remember(all_finite, self.edges[u][v]):
            self._keep(u, self.remember(with_partner, self.edges[u][v]))
            self._keep(v, self.remember(with_partner, self.edges[v][u]))
        split = self.remember(split_sum, self.edges[u][v])
        if split is not None:
            del self.edges[u][v], self.edges[v][u]
            self._add_cost(u, split[0])
            self._add_cost(v, split[1])

    def eliminate(self, u: int) -> None:
        """R0, RI and RII: u takes its best candidate, whatever its <= 2 neighbours choose."""
        neighbours = tuple(self.edges[u])
        if not self.alive[u] or len(neighbours) > 2 or self._is_limited(u):
            return
        least, choice = self.remember(
            least_with, self.cost[u], *(self.edges[v][u] for v in neighbours)
        )
        self.eliminations.append(
            _Elimination(u, self.kept[u], tuple((v, self.kept[v]) for v in neighbours), choice)
        )
        self.alive[u] = False
        self.edges[u] = {}
        for v in neighbours:
            del self.edges[v][u]
        for limit in self.limits:
            limit.settle(u)

        if not neighbours:
            self.constant_cost += float(least)
        elif len(neighbours) == 1:
            self._add_cost(neighbours[0], least)
        else:
            v, w = neighbours
            joined = self.edges[v].get(w)
            self._set_edge(v, w, least if joined is None else self.remember(np.add, joined, least))
            self._look_again(v)
            self._look_again(w)

    def delete_dominated(self, u: int) -> None:
        """Deletes the candidates of u that another one beats against all neighbours."""
        if not self.alive[u] or self.tests_left[u] == 0 or self.cost[u].size == 1:
            return
        self.tests_left[u] -= 1
        if self._is_limited(u):
            amounts = [limit.around(u, self.cost[u].size) for limit in self.limits]
            self._keep(u, non_dominated(self.cost[u], self.edges[u].values(), amounts))
        else:
            self._keep(
                u, self.remember(non_dominated_unlimited, self.cost[u], *self.edges[u].values())
            )

    def tighten(self) -> bool:
        """Deletes candidates that break a limit even if all others are least; whether any changed.

        Lifts a limit that even the largest amounts keep.
        """
        changed = False
        for limit in tuple(self.limits):
            least, most = limit.range()
            if limit.given.holds(most):
                self.limits.remove(limit)
                for u in limit.variables():
                    self._look_again(u)
                changed = True
                continue
            if not limit.given.holds(least):
                raise InfeasibleError(
                    f"limit {limit.given.name!r} of {limit.given.most:.0f} cannot be met: even the "
                    f"least candidates need {least:.0f}; raise the limit"
                )
            # The margin keeps what fits exactly, in spite of the rounding of the sums.
            slack = limit.given.most - least + 1e-9 * abs(limit.given.most) + limit.given.tolerance
            for u in limit.variables():
                mask = limit.excess(u, self.cost[u].size) <= slack
                if not mask.all():
                    self.tightened[limit.given.name] = None
                changed |= self._keep(u, mask)
        return changed

    def reduced(self) -> Reduced:
        """The frozen result."""
        alive = [u for u, alive in enumerate(self.alive) if alive]
        position = {u: i for i, u in enumerate(alive)}
        edges = {
            (position[u], position[v]): matrix
            for u in alive
            for v, matrix in self.edges[u].items()
            if u < v
        }
        variables = tuple(Variable(self.variables[u].name, self.cost[u]) for u in alive)
        return Reduced(
            problem=Problem(variables, edges, tuple(each.frozen(position) for each in self.limits)),
            constant_cost=self.constant_cost,
            survivors=tuple(alive),
            kept=tuple(self.kept[u] for u in alive),
            eliminations=tuple(self.eliminations),
        )

    def _conflict(self, name: str) -> str:
        if self.tightened:
            limits = ", ".join(repr(limit) for limit in self.tightened)
            return (
                f"limits conflict with other constraints: no candidate of {name!r} is left that is "
                f"allowed, fits its neighbours and keeps {limits}; raise a limit or drop a "
                "constraint near it"
            )
        return (
            f"constraints conflict: no candidate of {name!r} is left that is allowed and fits its "
            "neighbours; drop a constraint near it"
        )

    def _is_limited(self, u: int) -> bool:
        return any(limit.counts(u) for limit in self.limits)

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
        self.cost[u] = self.remember(np.add, self.cost[u], cost)
        self._delete_forbidden(u)
        self._look_again(u)

    def _delete_forbidden(self, u: int) -> None:
        self._keep(u, self.remember(is_allowed, self.cost[u]))

    def _keep(self, u: int, mask: npt.NDArray[np.bool_]) -> bool:
        """Deletes the candidates of u outside `mask`; whether there were any."""
        if mask.all():
            return False
        if not mask.any():
            raise InfeasibleError(self._conflict(self.variables[u].name))
        self.cost[u] = self.remember(masked, self.cost[u], mask)
        self.kept[u] = self.remember(masked, self.kept[u], mask)
        for v in self.edges[u]:
            self._set_edge(u, v, self.remember(masked, self.edges[u][v], mask))
            self._look_again(v)
        for limit in self.limits:
            for v in limit.keep(u, mask):
                self._look_again(v)
        self._look_again(u)
        return True
