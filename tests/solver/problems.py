"""Random problems for the tests of the solver, and the brute force that they are held against."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from autoplan.solver import Problem, ProblemBuilder


def best_choices(problem: Problem) -> tuple[int, ...] | None:
    """The best of all choices that are allowed and fit; None if there are none."""
    ranges = [range(v.num_candidates) for v in problem.variables]
    feasible = (c for c in itertools.product(*ranges) if problem.is_feasible(c))
    return min(feasible, key=problem.objective, default=None)


def brute_force(problem: Problem) -> float | None:
    """The least objective over all choices that are allowed and fit; None if there are none."""
    best = best_choices(problem)
    return None if best is None else problem.objective(best)


def random_problem(seed: int) -> Problem:
    """At most 6 variables of at most 4 candidates: every kind of graph, cost, limit and tie."""
    rng = np.random.default_rng(seed)
    integers, scale = bool(rng.integers(2)), float(rng.choice([1.0, 1e-7, 1e4]))
    forbidden = float(rng.choice([0.0, 0.1, 0.3]))

    def costs(*shape: int) -> np.ndarray:
        # Integers for ties.
        values = rng.integers(0, 4, shape) * 1.0 if integers else rng.random(shape) * scale
        if rng.random() < 0.2:  # a sum of node costs
            values = np.add.outer(values[:, 0], values[0]) if len(shape) == 2 else values
        values[rng.random(shape) < forbidden] = np.inf
        return values

    builder = ProblemBuilder()
    sizes = rng.integers(1, 5, rng.integers(1, 7))
    memories = rng.random() < 0.7
    for i, k in enumerate(sizes):
        carries = memories and rng.random() < 0.6
        memory = rng.integers(0, 6, k).astype(float) if carries else np.full(k, 2.0)
        builder.add_variable(f"v{i}", costs(k), memory)
    density = rng.choice([0.0, 0.5, 1.0])
    tree = rng.random() < 0.3
    for u, v in itertools.combinations(range(len(sizes)), 2):
        if (v == u + 1) if tree else rng.random() < density:
            builder.add_edge(u, v, costs(sizes[u], sizes[v]))
            if rng.random() < 0.3:  # a parallel edge, the other way
                builder.add_edge(v, u, costs(sizes[v], sizes[u]))
    if rng.random() < 0.3:
        builder.add_edge(0, 0, costs(sizes[0], sizes[0]))
    limit = float(rng.integers(len(sizes), 5 * len(sizes))) if memories else None
    return builder.build(limit)


def chain_of_blocks(
    num_blocks: int, block: int, candidates: int, seed: int, memory_share: float = 0.1
) -> Problem:
    """Blocks of a chain with a skip edge each, like the layers of a network."""
    rng = np.random.default_rng(seed)
    num = num_blocks * block
    weights = rng.random(num) < memory_share
    builder = ProblemBuilder()
    for i in range(num):
        memory = rng.choice([1.0, 2.0, 4.0, 8.0], candidates) * 1e6 * weights[i]
        cost = rng.choice([1.0, 2.0, 4.0, 8.0], candidates) * 1e-6 + rng.random(candidates) * 1e-7
        builder.add_variable(f"n{i}", cost, memory)

    def boxing() -> np.ndarray:
        matrix = rng.choice([1.0, 3.0, 9.0], (candidates, candidates)) * 1e-6
        np.fill_diagonal(matrix, 0.0)
        return matrix

    for i in range(1, num):
        builder.add_edge(i - 1, i, boxing())
        if i % block in (0, block // 2) and i >= block // 2:
            builder.add_edge(i - block // 2, i, boxing())
    return builder.build(weights.sum() * 2.5e6)


def dense_problem(num: int, candidates: int, seed: int) -> Problem:
    """A complete graph of random costs under a tight limit: hard for any solver."""
    rng = np.random.default_rng(seed)
    builder = ProblemBuilder()
    for i in range(num):
        memory = rng.random(candidates) * 1e9
        builder.add_variable(f"d{i}", rng.random(candidates) * 1e-3, memory)
    for u, v in itertools.combinations(range(num), 2):
        builder.add_edge(u, v, rng.random((candidates, candidates)) * 1e-3)
    return builder.build(num * 3e8)


def folded_optimum(problem: Problem, classes: Sequence[int]) -> float | None:
    """The least objective over the choices in which the members of a class agree."""
    labels = sorted(set(classes))
    first = {label: classes.index(label) for label in labels}
    ranges = [range(problem.variables[first[label]].num_candidates) for label in labels]
    best = None
    for choice in itertools.product(*ranges):
        per_label = dict(zip(labels, choice, strict=True))
        full = [per_label[label] for label in classes]
        if problem.is_feasible(full):
            best = min(problem.objective(full), np.inf if best is None else best)
    return best
