"""Combine: the best mixture of two choices, part by part, within the limits."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import pulp

from autoplan.solver.ilp import WarmStartedHiGHS
from autoplan.solver.problem import Problem


def combine(problem: Problem, fitting: Sequence[int], cheaper: Sequence[int]) -> tuple[int, ...]:
    """`fitting`, with the parts of `cheaper` that save most and still keep the limits.

    Parts are what hangs together among the variables in which the two differ: each changes cost and
    limits by itself, so that the mixture is a knapsack of a few items. Both choices are allowed,
    and `fitting` keeps the limits.
    """
    parts = _parts(problem, fitting, cheaper)
    if not parts:
        return tuple(fitting)
    mixed = [_replaced(fitting, cheaper, part) for part in parts]
    base = problem.objective(fitting)
    saved = [base - problem.objective(each) for each in mixed]
    model = pulp.LpProblem("mixture", pulp.LpMaximize)
    taken = [model.add_variable(f"t{i}", 0, 1, pulp.LpBinary) for i in range(len(parts))]
    unit = max(map(abs, saved)) or 1.0
    model += pulp.lpDot(taken, [each / unit for each in saved])
    for limit in problem.limits:
        now = limit.total(fitting)
        added = [limit.total(each) - now for each in mixed]
        scale = max(abs(limit.most - now), *map(abs, added), 1e-300)
        model += pulp.lpDot(taken, [a / scale for a in added]) <= (limit.most - now) / scale
    model.solve(WarmStartedHiGHS(msg=False, threads=1, timeLimit=_TIME_LIMIT_S, presolve="off"))
    result = tuple(fitting)
    for variable, part in zip(taken, parts, strict=True):
        if (variable.varValue or 0.0) > 0.5:
            result = _replaced(result, cheaper, part)
    # HiGHS keeps limits within a tolerance only.
    better = problem.is_feasible(result) and problem.objective(result) < base
    return result if better else tuple(fitting)


_TIME_LIMIT_S = 2.0


def _parts(problem: Problem, one: Sequence[int], other: Sequence[int]) -> list[list[int]]:
    """Variables in which two choices differ, by what an edge or a limit joins."""
    differing = {u for u, (a, b) in enumerate(zip(one, other, strict=True)) if a != b}
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(sorted(differing))
    for edges in (problem.edges, *(limit.matrices for limit in problem.limits)):
        graph.add_edges_from(e for e in edges if e[0] in differing and e[1] in differing)
    return [sorted(part) for part in nx.connected_components(graph)]


def _replaced(base: Sequence[int], other: Sequence[int], part: Sequence[int]) -> tuple[int, ...]:
    result = list(base)
    for u in part:
        result[u] = other[u]
    return tuple(result)
