"""The pairwise cost problem: what the planner asks and what the solver answers, as arrays only.

One variable per node with a cost and a memory vector over its candidates, one matrix per edge:
the partitioned boolean quadratic problem (PBQP) of Scholz & Eckstein, "Register allocation for
irregular architectures" (2002), with one knapsack constraint on memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
Edge: TypeAlias = tuple[int, int]

# Sums of bytes that are no integers carry rounding errors of this relative size; more is too much.
MEMORY_ROUNDING = 1e-12


def read_only(array: npt.ArrayLike) -> FloatArray:
    """A read-only float64 view of `array` (no copy if it is float64 already)."""
    view = np.asarray(array, dtype=np.float64).view()
    view.flags.writeable = False
    return view


def _check_costs(costs: FloatArray, what: str) -> None:
    # -inf would outweigh a forbidden +inf, and NaN compares with nothing.
    if not (costs > -np.inf).all():
        raise ValueError(f"{what} holds NaN or -inf; expected seconds, or np.inf to forbid")


@dataclass(frozen=True, eq=False)
class Variable:
    """One choice among k candidates.

    `cost`: float[k], seconds, np.inf forbids the candidate. `memory`: float[k], bytes, finite and
    not negative. Raises ValueError for any other array.
    """

    name: str
    cost: FloatArray
    memory: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost", read_only(self.cost))
        object.__setattr__(self, "memory", read_only(self.memory))
        if self.cost.ndim != 1 or self.cost.size == 0:
            shape = self.cost.shape
            raise ValueError(f"cost of {self.name!r} has shape {shape}; expected (k,), k >= 1")
        if self.memory.shape != self.cost.shape:
            shapes = f"{self.memory.shape}; expected {self.cost.shape}, as its cost"
            raise ValueError(f"memory of {self.name!r} has shape {shapes}")
        _check_costs(self.cost, f"cost of {self.name!r}")
        if not (np.isfinite(self.memory).all() and (self.memory >= 0).all()):
            raise ValueError(f"memory of {self.name!r} must be finite bytes >= 0")

    @property
    def num_candidates(self) -> int:
        """k, the length of both vectors."""
        return int(self.cost.size)


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose one candidate per variable: least total cost, total memory within the limit.

    `edges[u, v]`: float[ku, kv], seconds paid when u takes its row and v its column, np.inf
    forbids the pair; (v, u) is transposed to (u, v) with u < v, and both are added. No edge from a
    variable to itself (`ProblemBuilder.add_edge` folds its diagonal into the cost).
    `memory_limit`: bytes, None for no limit. Raises ValueError for edges that do not fit.
    """

    variables: tuple[Variable, ...]
    edges: Mapping[Edge, FloatArray]
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        edges: dict[Edge, FloatArray] = {}
        for (u, v), given in self.edges.items():
            if u == v:
                raise ValueError(f"edge ({u}, {v}) joins a variable to itself; use ProblemBuilder")
            _accumulate(edges, u, v, _checked_edge(self.variables, u, v, given))
        object.__setattr__(self, "variables", tuple(self.variables))
        object.__setattr__(self, "edges", MappingProxyType(edges))
        if self.memory_limit is not None and not self.memory_limit >= 0:
            raise ValueError(f"memory_limit is {self.memory_limit}; expected bytes >= 0, or None")

    def objective(self, choices: Sequence[int]) -> float:
        """Seconds of `choices` (one candidate index per variable); np.inf if any is forbidden."""
        self._check_choices(choices)
        costs = [float(v.cost[c]) for v, c in zip(self.variables, choices, strict=True)]
        costs += [float(m[choices[u], choices[v]]) for (u, v), m in self.edges.items()]
        return math.fsum(costs)

    def memory(self, choices: Sequence[int]) -> float:
        """Bytes of `choices`, summed over all variables."""
        self._check_choices(choices)
        return math.fsum(float(v.memory[c]) for v, c in zip(self.variables, choices, strict=True))

    def fits(self, memory: float) -> bool:
        """Whether `memory` bytes are within the limit, but for the rounding of a sum."""
        return self.memory_limit is None or memory <= self.memory_limit * (1 + MEMORY_ROUNDING)

    def is_feasible(self, choices: Sequence[int]) -> bool:
        """Whether `choices` avoid everything forbidden and fit under the memory limit."""
        return self.objective(choices) < np.inf and self.fits(self.memory(choices))

    def _check_choices(self, choices: Sequence[int]) -> None:
        if len(choices) != len(self.variables):
            raise ValueError(f"{len(choices)} choices for {len(self.variables)} variables")
        for variable, choice in zip(self.variables, choices, strict=True):
            if not 0 <= choice < variable.num_candidates:
                raise ValueError(
                    f"choice {choice} for {variable.name!r}; expected 0 <= choice < "
                    f"{variable.num_candidates}"
                )


class ProblemBuilder:
    """Collects variables and edges; `build` gives the frozen `Problem`."""

    def __init__(self) -> None:
        self._variables: list[Variable] = []
        self._self_costs: dict[int, FloatArray] = {}
        self._edges: dict[Edge, FloatArray] = {}

    def add_variable(
        self, name: str, cost: npt.ArrayLike, memory: npt.ArrayLike | None = None
    ) -> int:
        """Adds a variable with `cost` float[k] seconds, `memory` float[k] bytes; its index."""
        costs = np.asarray(cost, dtype=np.float64)
        bytes_ = np.zeros_like(costs) if memory is None else np.asarray(memory, dtype=np.float64)
        self._variables.append(Variable(name, costs, bytes_))
        return len(self._variables) - 1

    def add_edge(self, u: int, v: int, matrix: npt.ArrayLike) -> None:
        """Adds `matrix` float[ku, kv] seconds to the edge of u and v.

        Parallel edges add up, in either direction. An edge from u to itself costs its diagonal.
        Raises ValueError for an unknown variable or another shape.
        """
        checked = _checked_edge(self._variables, u, v, matrix)
        if u == v:
            diagonal = np.diagonal(checked)
            self._self_costs[u] = diagonal + self._self_costs.get(u, 0.0)
        else:
            _accumulate(self._edges, u, v, checked)

    def build(self, memory_limit: float | None = None) -> Problem:
        """The problem so far, under `memory_limit` bytes (None: no limit)."""
        variables = list(self._variables)
        for u, costs in self._self_costs.items():
            given = variables[u]
            variables[u] = Variable(given.name, given.cost + costs, given.memory)
        return Problem(tuple(variables), self._edges, memory_limit)


def _checked_edge(
    variables: Sequence[Variable], u: int, v: int, given: npt.ArrayLike
) -> FloatArray:
    if not (0 <= u < len(variables) and 0 <= v < len(variables)):
        raise ValueError(f"edge ({u}, {v}) of a problem with {len(variables)} variables")
    matrix = read_only(given)
    names = f"edge {variables[u].name!r} - {variables[v].name!r}"
    expected = (variables[u].num_candidates, variables[v].num_candidates)
    if matrix.shape != expected:
        raise ValueError(f"{names} has shape {matrix.shape}; expected {expected}")
    _check_costs(matrix, names)
    return matrix


def _accumulate(edges: dict[Edge, FloatArray], u: int, v: int, matrix: FloatArray) -> None:
    key, matrix = ((u, v), matrix) if u < v else ((v, u), matrix.T)
    edges[key] = read_only(edges[key] + matrix) if key in edges else matrix


@dataclass(frozen=True)
class Folding:
    """How many variables of the full problem share how many classes."""

    num_variables: int
    num_classes: int


@dataclass(frozen=True)
class Certificate:
    """What is proven of a solution.

    `objective`, `bound`: seconds; no choice costs less than `bound`. `gap`: (objective - bound) /
    |objective|, 0.0 if they differ by float noise only. `status`: "optimal" if the gap asked for
    (0.0 by default) is proven, "time limit" if time ran out. `seconds`: wall clock of the solve.
    `num_variables` of the problem given, `num_variables_after_reduction` and `num_binaries` of
    the ILP (0 if none was needed). `folding`: None, or the bound is that of the folded problem,
    in which the variables of one class choose alike: the full problem may have a lower optimum.
    """

    objective: float
    bound: float
    gap: float
    seconds: float
    status: Literal["optimal", "time limit", "memory limit"]
    num_variables: int
    num_binaries: int
    num_variables_after_reduction: int
    folding: Folding | None = None

    @property
    def bound_of(self) -> Literal["full problem", "folded problem"]:
        """Which problem `bound` and `gap` speak of."""
        return "full problem" if self.folding is None else "folded problem"


@dataclass(frozen=True)
class Solution:
    """`choices[i]` is the candidate of variable i; `certificate` says how good they are."""

    choices: tuple[int, ...]
    certificate: Certificate


def relative_gap(objective: float, bound: float) -> float:
    """(objective - bound) / |objective|; 0.0 within 1e-9 |objective|; np.inf if unbounded."""
    difference = objective - bound
    if difference <= 1e-9 * abs(objective):
        return 0.0
    return difference / abs(objective) if objective != 0.0 else math.inf
