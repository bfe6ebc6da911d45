"""Fold: variables of one class share one choice, so repeated blocks are solved once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.solver.problem import FloatArray, Problem, ProblemBuilder


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

    Costs and memories of the members are summed, edges between two classes accumulated; an edge
    between members of one class costs its diagonal, since both choose alike. Every choice of the
    folded problem costs and weighs exactly what its expansion does in the full one. Class
    variables stand in the order of their first members. Raises ValueError if the members of a
    class have different numbers of candidates, or if `classes` has another length.
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
    return Folded(builder.build(problem.memory_limit), tuple(class_of))


def _merge(problem: Problem, group: Sequence[int]) -> tuple[str, FloatArray, FloatArray]:
    first, *others = (problem.variables[i] for i in group)
    if not others:
        return first.name, first.cost, first.memory
    for other in others:
        if other.num_candidates != first.num_candidates:
            raise ValueError(
                f"{other.name!r} has {other.num_candidates} candidates, but {first.name!r} of the "
                f"same class has {first.num_candidates}; put them into different classes"
            )
    cost = np.sum([first.cost, *(v.cost for v in others)], axis=0)
    memory = np.sum([first.memory, *(v.memory for v in others)], axis=0)
    return f"{first.name} (x{len(group)})", cost, memory
