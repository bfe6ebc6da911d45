"""A solver that takes any allowed choice: what runs must be right whatever the solver says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch.distributed

import autoplan.memory.within_memory
from autoplan.solver import Certificate, Problem, Solution


@contextmanager
def any_choice(seed: int) -> Iterator[None]:
    """Plans made inside take a random choice of finite cost for every site.

    Of real ranks rank 0 alone plans; the others follow.
    """
    drawn = 0

    def solve(problem: Problem, *_: Any, **__: Any) -> Solution:
        nonlocal drawn
        drawn += 1
        choices = _draw(problem, random.Random(seed))
        cost = problem.objective(choices)
        size = len(choices)
        return Solution(choices, Certificate(cost, 0.0, 1.0, 0.0, "time limit", size, 0, size))

    with mock.patch.object(autoplan.memory.within_memory, "solve", solve):
        yield
    follows = torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
    assert drawn or follows, "nothing was planned, or another solver was called"


def _draw(problem: Problem, draw: random.Random) -> tuple[int, ...]:
    """Variables in random order; what a choice forbids is struck out before the next is drawn."""
    joined: list[list[tuple[int, Any]]] = [[] for _ in problem.variables]
    for (u, v), matrix in problem.edges.items():
        joined[u].append((v, np.isfinite(matrix)))
        joined[v].append((u, np.isfinite(matrix).T))
    left = [np.isfinite(variable.cost) for variable in problem.variables]
    _strike_out(left, joined, list(range(len(left))))
    for at in draw.sample(range(len(left)), len(left)):
        chosen = draw.choice(np.flatnonzero(left[at]).tolist())
        left[at] = np.arange(left[at].size) == chosen
        _strike_out(left, joined, [at])
    return tuple(int(np.flatnonzero(each)[0]) for each in left)


def _strike_out(left: list[Any], joined: list[list[tuple[int, Any]]], changed: list[int]) -> None:
    """Keep only what some choice left at every neighbour allows (arc consistency)."""
    while changed:
        at = changed.pop()
        for other, allowed in joined[at]:
            kept = left[other] & allowed[left[at]].any(axis=0)
            if not kept.any():
                raise RuntimeError("the draw met a dead end; take another seed.")
            if (kept != left[other]).any():
                left[other] = kept
                changed.append(other)
