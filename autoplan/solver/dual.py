"""Dual ascent: a lower bound of a problem without limits, good choices, and what each must cost.

Sequential tree-reweighted message passing (TRW-S): Kolmogorov, "Convergent tree-reweighted message
passing for energy minimization", IEEE PAMI 28(10), 2006. It maximises the bound of the same linear
program as the ILP's relaxation, up to its own fixed points, on arrays of candidates alone, and is
orders of magnitude faster than a simplex method on the few hundred candidates of three mesh axes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.solver.local_search import Landscape, descend
from autoplan.solver.problem import FloatArray, Problem

_SWEEPS_A_CHECK = 10
# A check that raises the bound by less than this, relative to its distance from the best choices
# known, is the last one: what is left is pruned, or solved as an ILP.
_LEAST_PROGRESS = 1e-3


@dataclass(frozen=True, eq=False)
class Dual:
    """`bound`: seconds that no choices cost less than. `choices`: the best that were met.

    `objective`: seconds of `choices`, np.inf if they are forbidden.

    `excess[u]`: float[ku]; choices with candidate c of u cost at least `bound + excess[u][c]`.
    """

    bound: float
    choices: tuple[int, ...]
    objective: float
    excess: tuple[FloatArray, ...]
    has_settled: bool
    """Whether more sweeps would not help: the bound is tight, or hardly rose any more."""


def dual_ascent(
    problem: Problem, deadline: float, known: float = np.inf, max_sweeps: int = 600
) -> Dual:
    """Raises a bound of `problem`, whose limits are ignored, until it is tight or stands still.

    Every candidate must be allowed and have an allowed partner on every edge, as `reduce` leaves
    them. `deadline`: of `time.perf_counter()`. `known`: seconds of choices that are known already.
    Stops after `max_sweeps` passes over all variables at the latest.
    """
    ascent, landscape = _Ascent(problem), Landscape(problem)
    forward = range(len(problem.variables))
    backward = forward[::-1]
    best, objective, bound = ascent.round(forward), np.inf, -np.inf
    sweeps = 0
    while True:
        before = bound
        for _ in range(_SWEEPS_A_CHECK // 2):
            ascent.sweep(forward)
            bound = max(bound, ascent.sweep(backward))
        sweeps += _SWEEPS_A_CHECK
        for order in (forward, backward):
            choices = descend(problem, ascent.round(order), landscape=landscape)
            cost = problem.objective(choices)
            if cost < objective:
                best, objective = choices, cost
        distance = min(objective, known) - bound
        if distance == np.inf:  # nothing that is allowed was met
            distance = abs(bound)
        settled = distance <= 1e-12 * abs(bound) or bound - before <= _LEAST_PROGRESS * distance
        if settled:
            break
        if sweeps >= max_sweeps or time.perf_counter() > deadline:
            break
    excess = [np.zeros(v.num_candidates) for v in problem.variables]
    for order in (forward, backward):
        last, found = ascent.sweep_with_excess(order)
        for u, each in enumerate(found):
            # Either bound holds; what this one is short of the best comes off its excess.
            np.maximum(excess[u], each - max(0.0, bound - last), out=excess[u])
    return Dual(min(bound, objective), tuple(best), objective, tuple(excess), settled)


class _Ascent:
    """Messages on every edge, in both directions; `sweep` improves them in one pass."""

    def __init__(self, problem: Problem) -> None:
        self.costs = [v.cost for v in problem.variables]
        # neighbours[u] = (v, number of the message that u gets from v, and of the one that v gets)
        self.neighbours: list[list[tuple[int, int, int]]] = [[] for _ in self.costs]
        self.messages: list[FloatArray] = []
        # matrices[m]: float[receiver, sender], contiguous along the sender.
        self.matrices: list[FloatArray] = []
        for (u, v), matrix in problem.edges.items():
            number = len(self.messages)
            self.neighbours[u].append((v, number, number + 1))
            self.neighbours[v].append((u, number + 1, number))
            self.messages += [np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1])]
            self.matrices += [np.ascontiguousarray(matrix), np.ascontiguousarray(matrix.T)]

    def sweep(self, order: Sequence[int]) -> float:
        """One pass along `order`; the bound that it proves, in seconds."""
        step = order[1] - order[0] if len(order) > 1 else 1
        bound = 0.0
        for u in order:
            total, later, weight, least = self._at(u, step)
            bound += least
            for received, sent in later:
                given = weight * total - self.messages[received]
                message = (self.matrices[sent] + given).min(axis=1)
                shift = float(message.min())
                bound += shift
                self.messages[sent] = message - shift
        return bound

    def sweep_with_excess(self, order: Sequence[int]) -> tuple[float, list[FloatArray]]:
        """As `sweep`, with what each candidate costs at least above the bound.

        After u was visited the problem is rewritten as terms that are zero at their least: what u
        keeps to itself, and the matrices towards later neighbours, which took u's share.
        """
        step = order[1] - order[0] if len(order) > 1 else 1
        bound = 0.0
        excess: list[FloatArray] = [np.zeros(0)] * len(self.costs)
        for u in order:
            total, later, weight, least = self._at(u, step)
            bound += least
            above: FloatArray = (1.0 - len(later) * weight) * total
            for received, sent in later:
                joint = self.matrices[sent] + (weight * total - self.messages[received])
                message = joint.min(axis=1)
                shift = float(message.min())
                bound += shift
                self.messages[sent] = message - shift
                above = above + (joint - message[:, None]).min(axis=0)
            excess[u] = above
        return bound, excess

    def _at(self, u: int, step: int) -> tuple[FloatArray, list[tuple[int, int]], float, float]:
        """u's costs with all messages, above their least; its later neighbours' messages; a weight.

        The weight is one over the number of monotonic chains through u.
        """
        total = self.costs[u].copy()
        later = []
        for v, received, sent in self.neighbours[u]:
            total += self.messages[received]
            if (v - u) * step > 0:
                later.append((received, sent))
        least = float(total.min())
        chains = max(len(later), len(self.neighbours[u]) - len(later), 1)
        return total - least, later, 1.0 / chains, least

    def round(self, order: Sequence[int]) -> list[int]:
        """Choices one by one: the best with those made before, messages standing for the rest."""
        choices = [-1] * len(self.costs)
        for u in order:
            total = self.costs[u].copy()
            for v, received, _ in self.neighbours[u]:
                known = choices[v] >= 0
                total += (
                    self.matrices[received][:, choices[v]] if known else self.messages[received]
                )
            choices[u] = int(total.argmin())
        return choices
