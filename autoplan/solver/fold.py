"""Fold: variables of one class share one choice, so repeated blocks are solved once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.solver.problem import Edge, FloatArray, Problem, ProblemBuilder


@dataclass(frozen=True, eq=False)
class Folded:
    """`problem` has one variable per class; `class_of[i]` is the class variable of variable i."""

    problem: Problem
    class_of: tuple[int, ...]

    def expand(self, choices: Sequence[int]) -> tuple[int, ...]:
        """One choice per class -> one choice per variable of the full problem."""
        return tuple(choices[c] for c in self.class_of)


def fold(problem: Problem, classes: Sequence[Hashable]) -> Folded:
    """Merges the variables of each class; `classes[i]` is any label of variable i.

    Costs of the members are summed, edges between two classes accumulated, and so are amounts of
    limits; an edge between members of one class costs its diagonal, since both choose alike. Every
    choice of the folded problem costs and adds exactly what its expansion does in the full one.
    Class variables stand in the order of their first members. Raises ValueError if the members of
    a class have different numbers of candidates, or if `classes` has another length.
    """
    if len(classes) != len(problem.variables):
        raise ValueError(f"{len(classes)} classes for {len(problem.variables)} variables")
    index: dict[Hashable, int] = {}
    members: list[list[int]] = []
    class_of: list[int] = []
    for i, label in enumerate(classes):
        position = index.setdefault(label, len(index))
        if position == len(members):
            members.append([])
        members[position].append(i)
        class_of.append(position)

    builder = ProblemBuilder()
    for group in members:
        builder.add_variable(*_merge(problem, group))
    for (u, v), matrix in problem.edges.items():
        builder.add_edge(class_of[u], class_of[v], matrix)
    for limit in problem.limits:
        vectors: dict[int, FloatArray] = {}
        for u, vector in limit.vectors.items():
            vectors[class_of[u]] = vectors.get(class_of[u], 0.0) + vector
        pairs: dict[Edge, FloatArray] = {}
        for (u, v), matrix in limit.matrices.items():
            edge = class_of[u], class_of[v]
            if edge[0] > edge[1]:
                edge, matrix = edge[::-1], matrix.T
            pairs[edge] = pairs.get(edge, 0.0) + matrix
        builder.add_limit(limit.name, limit.most, vectors, pairs, limit.constant, limit.tolerance)
    return Folded(builder.build(), tuple(class_of))


def _merge(problem: Problem, group: Sequence[int]) -> tuple[str, FloatArray]:
    first, *others = (problem.variables[i] for i in group)
    if not others:
        return first.name, first.cost
    for other in others:
        if other.num_candidates != first.num_candidates:
            raise ValueError(
                f"{other.name!r} has {other.num_candidates} candidates, but {first.name!r} of the "
                f"same class has {first.num_candidates}; put them into different classes"
            )
    cost = np.sum([first.cost, *(v.cost for v in others)], axis=0)
    return f"{first.name} (x{len(group)})", cost
