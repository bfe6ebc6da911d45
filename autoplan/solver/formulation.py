"""The ILP of a problem: a binary per candidate, a flow per class pair of an edge, a row per limit.

A node's binaries sum to one; the flows of an edge are a transport from its row classes to its
column classes (the local marginal polytope), so the flows are integral when the binaries are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pulp

from autoplan.solver.problem import Edge, FloatArray, Limit, Problem

IntArray: TypeAlias = npt.NDArray[np.intp]
ClassPair: TypeAlias = tuple[int, int]

# HiGHS' tolerances are absolute: costs and amounts are scaled to reach up to this.
_SCALE = 1e3
# Below this HiGHS takes a coefficient for zero.
_LEAST_WEIGHT = 1e-9


@dataclass(frozen=True, eq=False)
class NormalForm:
    """The problem with every cost and amount >= 0 and a zero in every vector.

    Minima of rows and columns move from the edges into the node costs, and from there into
    `constant` (seconds), a lower bound of every choice. `limits` are what can bind: amounts above
    the least ones, and as `most` what is left for them. Candidates that cannot fit cost np.inf.
    """

    constant: float
    costs: tuple[FloatArray, ...]
    edges: dict[Edge, FloatArray]
    limits: tuple[Limit, ...]

    def excess(self, choices: Sequence[int]) -> float:
        """Seconds of `choices` above `constant`."""
        nodes = sum(float(cost[c]) for cost, c in zip(self.costs, choices, strict=True))
        return nodes + sum(float(m[choices[u], choices[v]]) for (u, v), m in self.edges.items())


def normal_form(problem: Problem) -> NormalForm | None:
    """The normal form, or None if some variable has no candidate that is allowed and fits."""
    costs = [v.cost.copy() for v in problem.variables]
    given = dict(problem.edges)
    limits = []
    for limit in problem.limits:
        vectors = {u: v - v.min() for u, v in limit.vectors.items()}
        matrices = {e: m - m.min() for e, m in limit.matrices.items()}
        least = limit.constant + sum(float(v.min()) for v in limit.vectors.values())
        least += sum(float(m.min()) for m in limit.matrices.values())
        if not limit.holds(least):
            return None
        margin = limit.tolerance
        slack = max(0.0, limit.most - least)
        most = slack * (1 + 1e-9) + margin
        for u, vector in vectors.items():
            costs[u][vector > most] = np.inf
        for edge, matrix in matrices.items():
            given[edge] = given.get(edge, 0.0) + np.where(matrix > most, np.inf, 0.0)
        parts = (*vectors.values(), *matrices.values())
        if slack > margin and sum(float(part.max()) for part in parts) > slack:
            limits.append(Limit(limit.name, slack, vectors, matrices))

    edges: dict[Edge, FloatArray] = {}
    for (u, v), matrix in given.items():
        rest = matrix
        for node, axis in ((u, 1), (v, 0)):
            minima = rest.min(axis=axis, keepdims=True)
            costs[node] += minima.ravel()
            rest = rest - np.where(np.isfinite(minima), minima, 0.0)
        edges[u, v] = rest + 0.0  # no -0.0, so that equal rows have equal bits
    constants = [float(cost.min()) for cost in costs]
    if np.inf in constants:
        return None
    for cost, constant in zip(costs, constants, strict=True):
        cost -= constant
    return NormalForm(sum(constants), tuple(costs), edges, tuple(limits))


@dataclass(frozen=True, eq=False)
class _Flow:
    """The flow variables of `edge` by (row class, column class); classes[-1] means ruled out."""

    edge: Edge
    row_class: IntArray
    column_class: IntArray
    variables: dict[ClassPair, pulp.LpVariable]


@dataclass(frozen=True, eq=False)
class Formulation:
    """The ILP in PuLP. `binaries[i][c]` is candidate c of variable i, None if it is ruled out.

    Seconds = `constant` + `unit_s` * the ILP's objective.
    """

    model: pulp.LpProblem
    constant: float
    unit_s: float
    binaries: tuple[tuple[pulp.LpVariable | None, ...], ...]
    flows: tuple[_Flow, ...]

    @property
    def num_binaries(self) -> int:
        """Binaries that are not ruled out."""
        return sum(x is not None for row in self.binaries for x in row)

    def start_from(self, choices: Sequence[int]) -> None:
        """Gives every ILP variable its value under `choices`, none of which is ruled out."""
        for row, choice in zip(self.binaries, choices, strict=True):
            for c, x in enumerate(row):
                if x is not None:
                    x.varValue = float(c == choice)
        for flow in self.flows:
            u, v = flow.edge
            taken = (int(flow.row_class[choices[u]]), int(flow.column_class[choices[v]]))
            for pair, y in flow.variables.items():
                y.varValue = float(pair == taken)

    def choices(self) -> tuple[int, ...]:
        """The candidate with the largest binary, per variable."""
        values = ([-1.0 if x is None else x.varValue or 0.0 for x in row] for row in self.binaries)
        return tuple(int(np.argmax(row)) for row in values)

    def forbid(self, choices: Sequence[int], variables: Sequence[int]) -> None:
        """Cuts off the `choices` of `variables`, taken together."""
        taken = ((self.binaries[i][choices[i]], 1.0) for i in variables)
        self.model.addConstraint(_sum(taken) <= len(variables) - 1)


def formulate(normal: NormalForm, incumbent: Sequence[int] | None) -> Formulation:
    """The ILP of a problem in normal form, without what alone costs more than `incumbent` does.

    Rows of an edge that are equal become one class, and so do columns; forbidden pairs get no
    flow. Costs are scaled so that the incumbent (or else the median) is far above HiGHS'
    tolerances, amounts so that the limits are.
    """
    if incumbent is None:
        arrays = [*normal.costs, *normal.edges.values()]
        most, unit_s = sys.float_info.max, _median_positive(arrays)
    else:
        most = normal.excess(incumbent) * (1 + 1e-9)
        unit_s = most / _SCALE if most > 0.0 else 1.0

    model = pulp.LpProblem("autoplan", pulp.LpMinimize)
    objective: list[tuple[pulp.LpVariable, float]] = []

    def variable(name: str, category: str, cost: float) -> pulp.LpVariable:
        x = model.add_variable(name, 0, None, category)
        objective.append((x, cost / unit_s))
        return x

    binaries = tuple(
        tuple(
            variable(f"x_{i}_{c}", pulp.LpBinary, seconds) if seconds <= most else None
            for c, seconds in enumerate(cost.tolist())
        )
        for i, cost in enumerate(normal.costs)
    )
    for row in binaries:
        model += _sum((x, 1.0) for x in row if x is not None) == 1

    flows = []
    terms: list[list[tuple[pulp.LpVariable, float]]] = [[] for _ in normal.limits]
    joined = dict.fromkeys((*normal.edges, *(e for each in normal.limits for e in each.matrices)))
    for u, v in joined:
        columns_of, rows_of = binaries[v], binaries[u]
        shape = (len(rows_of), len(columns_of))
        matrix = normal.edges.get((u, v), np.zeros(shape))
        amounts = [limit.matrices.get((u, v), np.zeros(shape)) for limit in normal.limits]
        layers = np.stack([matrix, *amounts])
        rows, columns = _classes(layers, rows_of, columns_of)
        pairs = {
            (int(r), int(s)): (i, j)
            for r, i in zip(*_representatives(rows), strict=True)
            for s, j in zip(*_representatives(columns), strict=True)
        }
        if not any(layers[:, i, j].any() for i, j in pairs.values()):
            continue
        flow = {
            (r, s): variable(f"y_{u}_{v}_{r}_{s}", pulp.LpContinuous, float(matrix[i, j]))
            for (r, s), (i, j) in pairs.items()
            if matrix[i, j] <= most
        }
        for each, amount in zip(terms, amounts, strict=True):
            each.extend((y, float(amount[pairs[pair]])) for pair, y in flow.items())
        flows.append(_Flow((u, v), rows, columns, flow))
        for axis, classes, members in ((0, rows, rows_of), (1, columns, columns_of)):
            for k in range(int(classes.max()) + 1):
                sides = [(y, 1.0) for pair, y in flow.items() if pair[axis] == k]
                sides += [(members[c], -1.0) for c in np.flatnonzero(classes == k).tolist()]
                model += _sum(sides) == 0

    for limit, each in zip(normal.limits, terms, strict=True):
        each.extend(_amounts_of_binaries(limit.vectors, binaries))
        unit = limit.most / _SCALE
        weights = [(x, a / unit) for x, a in each if a / unit > _LEAST_WEIGHT]
        if weights:
            model += _sum(weights) <= _SCALE
    model += _sum(objective)
    return Formulation(model, normal.constant, unit_s, binaries, tuple(flows))


def _amounts_of_binaries(
    vectors: Mapping[int, FloatArray], binaries: Sequence[Sequence[pulp.LpVariable | None]]
) -> Iterable[tuple[pulp.LpVariable, float]]:
    for u, vector in vectors.items():
        for x, amount in zip(binaries[u], vector.tolist(), strict=True):
            if x is not None:
                yield x, amount


def _sum(terms: Iterable[tuple[pulp.LpVariable, float]]) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression(list(terms))


def _median_positive(arrays: Iterable[FloatArray]) -> float:
    positive = np.concatenate([np.zeros(0)] + [a[(a > 0) & np.isfinite(a)] for a in arrays])
    return float(np.median(positive)) if positive.size else 1.0


def _classes(
    layers: FloatArray,
    rows: Sequence[pulp.LpVariable | None],
    columns: Sequence[pulp.LpVariable | None],
) -> tuple[IntArray, IntArray]:
    """Class numbers of rows that are equal in every layer [layer, row, column], and of columns.

    -1 for those that are ruled out.
    """
    live_rows = np.array([i for i, x in enumerate(rows) if x is not None])
    live_columns = np.array([j for j, x in enumerate(columns) if x is not None])
    live = layers[:, live_rows][:, :, live_columns]
    row_class, column_class = np.full(len(rows), -1), np.full(len(columns), -1)
    by_row = live.transpose(1, 0, 2).reshape(len(live_rows), -1)
    by_column = live.transpose(2, 0, 1).reshape(len(live_columns), -1)
    row_class[live_rows] = np.unique(by_row, axis=0, return_inverse=True)[1].ravel()
    column_class[live_columns] = np.unique(by_column, axis=0, return_inverse=True)[1].ravel()
    return row_class, column_class


def _representatives(classes: IntArray) -> tuple[list[int], list[int]]:
    """The class numbers, and the first member of each."""
    numbers, first = np.unique(classes, return_index=True)
    return numbers[numbers >= 0].tolist(), first[numbers >= 0].tolist()
