"""Random problems for the tests of the solver, and the brute force that they are held against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.solver import Limit, Problem, ProblemBuilder, Variable
from autoplan.solver.problem import Edge


@dataclass(frozen=True, eq=False)
class Enumeration:
    """Every choice of a small problem. `choices`: int[n, variables]; `costs`: float[n], seconds,
    np.inf where forbidden; `totals`: float[limits, n]; `fits`: bool[n], every limit kept.
    """

    problem: Problem
    choices: np.ndarray
    costs: np.ndarray
    totals: np.ndarray
    fits: np.ndarray

    @property
    def best(self) -> tuple[int, ...] | None:
        """The best of all choices that are allowed and fit; None if there are none."""
        costs = np.where(self.fits, self.costs, np.inf)
        at = int(costs.argmin())
        return None if costs[at] == np.inf else tuple(map(int, self.choices[at]))

    @property
    def optimum(self) -> float | None:
        """The least objective over all choices that are allowed and fit; None if there are none."""
        return None if self.best is None else self.problem.objective(self.best)


def enumerate_choices(problem: Problem, classes: Sequence[int] | None = None) -> Enumeration:
    """All choices; with `classes`, those in which variables with one label choose alike."""
    labels = list(range(len(problem.variables))) if classes is None else list(classes)
    first = [labels.index(label) for label in dict.fromkeys(labels)]
    position = {labels[u]: i for i, u in enumerate(first)}
    sizes = [problem.variables[u].num_candidates for u in first]
    grid = np.indices(sizes).reshape(len(sizes), math.prod(sizes)).T
    choices = grid[:, [position[label] for label in labels]]
    vectors = {u: variable.cost for u, variable in enumerate(problem.variables)}
    costs = _sums(choices, vectors, problem.edges)
    totals = np.zeros((len(problem.limits), len(choices)))
    fits = np.ones(len(choices), dtype=np.bool_)
    for i, limit in enumerate(problem.limits):
        totals[i] = limit.constant + _sums(choices, limit.vectors, limit.matrices)
        kept = totals[i] <= limit.most
        # The order of a sum may decide these; `Limit` is the judge.
        for at in np.flatnonzero(np.abs(totals[i] - limit.most) <= 1e-9 * _largest(limit)):
            kept[at] = limit.holds(limit.total(choices[at]))
        fits &= kept
    return Enumeration(problem, choices, costs, totals, fits)


def _sums(
    choices: np.ndarray, vectors: Mapping[int, np.ndarray], matrices: Mapping[Edge, np.ndarray]
) -> np.ndarray:
    result = np.zeros(len(choices))
    for u, vector in vectors.items():
        result += vector[choices[:, u]]
    for (u, v), matrix in matrices.items():
        result += matrix[choices[:, u], choices[:, v]]
    return result


def _largest(limit: Limit) -> float:
    arrays = (*limit.vectors.values(), *limit.matrices.values())
    return max([abs(limit.most), *(float(np.abs(array).max()) for array in arrays)])


def brute_force(problem: Problem) -> float | None:
    """The least objective over all choices that are allowed and fit; None if there are none."""
    return enumerate_choices(problem).optimum


def random_problem(seed: int) -> Problem:
    """At most 6 variables of at most 4 candidates: every kind of graph, cost, limit and tie."""
    rng = np.random.default_rng(seed)
    integers, scale = bool(rng.integers(2)), float(rng.choice([1.0, 1e-7, 1e4]))
    forbidden = float(rng.choice([0.0, 0.1, 0.3]))

    def costs(*shape: int) -> np.ndarray:
        # Integers for ties.
        values = rng.integers(0, 4, shape) * 1.0 if integers else rng.random(shape) * scale
        if rng.random() < 0.2 and len(shape) == 2:  # a sum of node costs
            values = np.add.outer(values[:, 0], values[0])
        values[rng.random(shape) < forbidden] = np.inf
        return values

    builder = ProblemBuilder()
    sizes = rng.integers(1, 5, rng.integers(1, 7)).tolist()
    for i, k in enumerate(sizes):
        builder.add_variable(f"v{i}", costs(k))
    density = rng.choice([0.0, 0.5, 1.0])
    tree = rng.random() < 0.3
    for u, v in itertools.combinations(range(len(sizes)), 2):
        if (v == u + 1) if tree else rng.random() < density:
            builder.add_edge(u, v, costs(sizes[u], sizes[v]))
            if rng.random() < 0.3:  # a parallel edge, the other way
                builder.add_edge(v, u, costs(sizes[v], sizes[u]))
    if rng.random() < 0.3:
        builder.add_edge(0, 0, costs(sizes[0], sizes[0]))
    problem = builder.build()
    limits = [_random_limit(rng, f"limit {i}", sizes) for i in range(rng.choice([0, 1, 1, 2, 3]))]
    return Problem(problem.variables, problem.edges, tuple(limits))


def _random_limit(rng: np.random.Generator, name: str, sizes: Sequence[int]) -> Limit:
    """Amounts of vectors and pairs, of either sign; a limit that may bind, or not be kept."""
    unit = float(rng.choice([1.0, 1e9, 0.1]))  # sums of tenths are rounded
    exact = rng.random() < 0.7

    def amounts(low: int, high: int, shape: int | tuple[int, int]) -> np.ndarray:
        if exact:
            return rng.integers(low, high, shape) * unit
        return (low + (high - low) * rng.random(shape)) * unit

    least = int(rng.choice([-3, 0]))
    vectors = {u: amounts(least, 6, k) for u, k in enumerate(sizes) if rng.random() < 0.6}
    pairs = [e for e in itertools.combinations(range(len(sizes)), 2) if rng.random() < 0.2]
    matrices = {(u, v): amounts(-2, 4, (sizes[u], sizes[v])) for u, v in pairs}
    if matrices and rng.random() < 0.3:  # a sum of two vectors, in disguise
        (u, v), matrix = next(iter(matrices.items()))
        matrices[u, v] = np.add.outer(matrix[:, 0], matrix[0])
    constant = float(rng.choice([0.0, 2.0, -1.0])) * unit
    most = float(rng.integers(-1, 3 * len(sizes) + 3)) * unit
    return Limit(name, most, vectors, matrices, constant)


def random_classes(seed: int, problem: Problem) -> list[int]:
    """Random classes of variables of one size."""
    rng = np.random.default_rng(seed)
    return [10 * v.num_candidates + int(rng.integers(2)) for v in problem.variables]


def copied(problem: Problem) -> Problem:
    """The same problem; every array in a place of its own."""
    return Problem(
        tuple(Variable(v.name, v.cost.copy()) for v in problem.variables),
        {edge: matrix.copy() for edge, matrix in problem.edges.items()},
        tuple(
            Limit(
                limit.name,
                limit.most,
                {u: vector.copy() for u, vector in limit.vectors.items()},
                {edge: matrix.copy() for edge, matrix in limit.matrices.items()},
                limit.constant,
            )
            for limit in problem.limits
        ),
    )


def chain_of_blocks(
    num_blocks: int, block: int, candidates: int, seed: int, memory_share: float = 0.1
) -> Problem:
    """Blocks of a chain with a skip edge each, like the layers of a network, under one limit."""
    rng = np.random.default_rng(seed)
    num = num_blocks * block
    weights = rng.random(num) < memory_share
    builder = ProblemBuilder()
    amounts = {}
    for i in range(num):
        memory = rng.choice([1.0, 2.0, 4.0, 8.0], candidates) * 1e6
        if weights[i]:
            amounts[i] = memory
        cost = rng.choice([1.0, 2.0, 4.0, 8.0], candidates) * 1e-6 + rng.random(candidates) * 1e-7
        builder.add_variable(f"n{i}", cost)

    def boxing() -> np.ndarray:
        matrix = rng.choice([1.0, 3.0, 9.0], (candidates, candidates)) * 1e-6
        np.fill_diagonal(matrix, 0.0)
        return matrix

    for i in range(1, num):
        builder.add_edge(i - 1, i, boxing())
        if i % block in (0, block // 2) and i >= block // 2:
            builder.add_edge(i - block // 2, i, boxing())
    builder.add_limit("memory", float(weights.sum()) * 2.5e6, amounts)
    return builder.build()


def dense_problem(num: int, candidates: int, seed: int, pairs: bool = False) -> Problem:
    """A complete graph of random costs under a tight limit: hard for any solver.

    `pairs`: the limit counts what pairs add, too.
    """
    rng = np.random.default_rng(seed)
    builder = ProblemBuilder()
    vectors, matrices = {}, {}
    for i in range(num):
        vectors[i] = rng.random(candidates) * 1e9
        builder.add_variable(f"d{i}", rng.random(candidates) * 1e-3)
    for u, v in itertools.combinations(range(num), 2):
        builder.add_edge(u, v, rng.random((candidates, candidates)) * 1e-3)
        if pairs:
            matrices[u, v] = (rng.random((candidates, candidates)) - 0.5) * 1e8
    builder.add_limit("memory", num * 3e8, vectors, matrices)
    return builder.build()
