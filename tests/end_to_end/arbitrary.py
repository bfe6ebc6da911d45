"""A solver that takes any allowed choice: what runs must be right whatever the solver says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

import autoplan.planning
from autoplan.solver import Certificate, Problem, Solution


@contextmanager
def any_choice(seed: int) -> Iterator[None]:
    """Plans made inside take a random finite choice for every site."""

    def solve(problem: Problem, classes: Any = None, time_limit_s: float = 0.0) -> Solution:
        choices = _draw(problem, random.Random(seed))
        cost = problem.objective(choices)
        size = len(choices)
        return Solution(choices, Certificate(cost, 0.0, 1.0, 0.0, "time limit", size, 0, size))

    with mock.patch.object(autoplan.planning, "solve", solve):
        yield


def _draw(problem: Problem, draw: random.Random) -> tuple[int, ...]:
    """Variables in order, each among what its neighbours before it leave."""
    earlier: list[list[tuple[int, Any]]] = [[] for _ in problem.variables]
    for (u, v), matrix in problem.edges.items():
        earlier[v].append((u, matrix))
    for _ in range(200):
        choices: list[int] = []
        for at, variable in enumerate(problem.variables):
            allowed = np.isfinite(variable.cost)
            for u, matrix in earlier[at]:
                allowed = allowed & np.isfinite(matrix[choices[u]])
            if not allowed.any():
                break
            choices.append(draw.choice(np.flatnonzero(allowed).tolist()))
        if len(choices) == len(problem.variables):
            return tuple(choices)
    raise RuntimeError("no allowed choice was met in 200 draws.")
