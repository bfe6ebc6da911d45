"""The pairwise cost problem: what the planner asks and what the solver answers, as arrays only.

One variable per node with a cost vector over its candidates, one matrix per edge: the partitioned
boolean quadratic problem (PBQP) of Scholz & Eckstein, "Register allocation for irregular
architectures" (2002). Limits are further sums of the same form, such as the bytes alive at one
moment of a step, each with the most that it may reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from autoplan.errors import InfeasibleError

FloatArray: TypeAlias = npt.NDArray[np.float64]
Edge: TypeAlias = tuple[int, int]

# Sums of amounts that are no integers carry rounding errors, below this part of the largest amount.
_LIMIT_ROUNDING = 1e-12


def read_only(array: npt.ArrayLike) -> FloatArray:
    """A read-only float64 view of `array` (no copy if it is float64 already)."""
    if isinstance(array, np.ndarray) and array.dtype == np.float64 and not array.flags.writeable:
        return array
    view = np.asarray(array, dtype=np.float64).view()
    view.flags.writeable = False
    return view


def _check_costs(costs: FloatArray, what: str) -> None:
    # -inf would outweigh a forbidden +inf, and NaN compares with nothing.
    if not (costs > -np.inf).all():
        raise ValueError(f"{what} holds NaN or -inf; expected seconds, or np.inf to forbid")


@dataclass(frozen=True, eq=False)
class Variable:
    """One choice among k candidates. `cost`: float[k], seconds, np.inf forbids the candidate.

    Raises ValueError for any other array.
    """

    name: str
    cost: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost", read_only(self.cost))
        if self.cost.ndim != 1 or self.cost.size == 0:
            shape = self.cost.shape
            raise ValueError(f"cost of {self.name!r} has shape {shape}; expected (k,), k >= 1")
        _check_costs(self.cost, f"cost of {self.name!r}")

    @property
    def num_candidates(self) -> int:
        """k, the length of the cost vector."""
        return int(self.cost.size)


@dataclass(frozen=True, eq=False)
class Limit:
    """A sum over the choices that may not exceed `most`: bytes alive at one moment of a step.

    The sum is `constant`, plus `vectors[u]`: float[ku], an amount for each candidate of u, plus
    `matrices[u, v]`: float[ku, kv] with u < v, an amount for each pair. Amounts are finite, of
    either sign; what is not mentioned adds nothing.
    """

    name: str
    most: float
    vectors: Mapping[int, FloatArray] = field(default_factory=dict)
    matrices: Mapping[Edge, FloatArray] = field(default_factory=dict)
    constant: float = 0.0
    tolerance: float = math.nan
    """What sums may exceed `most` by, for their rounding; by default 1e-12 of `largest`.

    Whoever rewrites a limit passes it on, so that equal choices fit before and after.
    """

    def __post_init__(self) -> None:
        if math.isnan(self.tolerance):
            object.__setattr__(self, "tolerance", _LIMIT_ROUNDING * self.largest)

    @property
    def largest(self) -> float:
        """The largest absolute value among `most`, `constant` and the amounts."""
        arrays = (*self.vectors.values(), *self.matrices.values())
        most = [float(np.abs(array).max()) for array in arrays if array.size]
        return max(abs(self.most), abs(self.constant), *most)

    def total(self, choices: Sequence[int]) -> float:
        """The sum under `choices`, one candidate index per variable of the problem."""
        amounts = [float(vector[choices[u]]) for u, vector in self.vectors.items()]
        amounts += [float(m[choices[u], choices[v]]) for (u, v), m in self.matrices.items()]
        return math.fsum([self.constant, *amounts])

    def holds(self, total: float) -> bool:
        """Whether `total` is within the limit, but for the rounding of a sum."""
        return total <= self.most + self.tolerance


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose one candidate per variable: least total cost, every limit kept.

    `edges[u, v]`: float[ku, kv], seconds paid when u takes its row and v its column, np.inf
    forbids the pair; (v, u) is transposed to (u, v) with u < v, and both are added. No edge from a
    variable to itself (`ProblemBuilder.add_edge` folds its diagonal into the cost). Raises
    ValueError for edges or limits that do not fit.
    """

    variables: tuple[Variable, ...]
    edges: Mapping[Edge, FloatArray]
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        edges: dict[Edge, FloatArray] = {}
        for (u, v), given in self.edges.items():
            if u == v:
                raise ValueError(f"edge ({u}, {v}) joins a variable to itself; use ProblemBuilder")
            _accumulate(edges, u, v, _checked_edge(self.variables, u, v, given))
        object.__setattr__(self, "variables", tuple(self.variables))
        object.__setattr__(self, "edges", MappingProxyType(edges))
        for limit in self.limits:
            _check_limit(self.variables, limit)

    def objective(self, choices: Sequence[int]) -> float:
        """Seconds of `choices` (one candidate index per variable); np.inf if any is forbidden."""
        self._check_choices(choices)
        costs = [float(v.cost[c]) for v, c in zip(self.variables, choices, strict=True)]
        costs += [float(m[choices[u], choices[v]]) for (u, v), m in self.edges.items()]
        return math.fsum(costs)

    def keeps_limits(self, choices: Sequence[int]) -> bool:
        """Whether `choices` are within every limit."""
        self._check_choices(choices)
        return all(limit.holds(limit.total(choices)) for limit in self.limits)

    def is_feasible(self, choices: Sequence[int]) -> bool:
        """Whether `choices` avoid everything forbidden and keep every limit."""
        return self.objective(choices) < np.inf and self.keeps_limits(choices)

    def without_limits(self) -> Problem:
        """The same costs, nothing limited."""
        return Problem(self.variables, self.edges)

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
    """Collects variables, edges and limits; `build` gives the frozen `Problem`."""

    def __init__(self) -> None:
        self._variables: list[Variable] = []
        self._self_costs: dict[int, FloatArray] = {}
        self._edges: dict[Edge, FloatArray] = {}
        self._limits: list[Limit] = []

    def add_variable(self, name: str, cost: npt.ArrayLike) -> int:
        """Adds a variable with `cost` float[k] seconds; its index."""
        self._variables.append(Variable(name, np.asarray(cost, dtype=np.float64)))
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

    def add_limit(
        self,
        name: str,
        most: float,
        vectors: Mapping[int, npt.ArrayLike],
        matrices: Mapping[Edge, npt.ArrayLike] | None = None,
        constant: float = 0.0,
        tolerance: float = math.nan,
    ) -> None:
        """Adds a limit of `most` on a sum of amounts; `matrices` in either direction, or u to u."""
        rows = {u: read_only(vector) for u, vector in vectors.items()}
        pairs: dict[Edge, FloatArray] = {}
        for (u, v), given in (matrices or {}).items():
            matrix = _checked_edge(self._variables, u, v, given)
            if u == v:
                rows[u] = read_only(np.diagonal(matrix) + rows.get(u, 0.0))
            else:
                _accumulate(pairs, u, v, matrix)
        self._limits.append(Limit(name, most, rows, pairs, constant, tolerance))

    def build(self) -> Problem:
        """The problem so far."""
        variables = list(self._variables)
        for u, costs in self._self_costs.items():
            given = variables[u]
            variables[u] = Variable(given.name, given.cost + costs)
        return Problem(tuple(variables), self._edges, tuple(self._limits))


def restrict(problem: Problem, kept: Mapping[int, npt.ArrayLike]) -> Problem:
    """The problem with other candidates forbidden; `kept[u]`: bool[ku], the ones that stay."""
    variables = list(problem.variables)
    for u, mask in kept.items():
        given = variables[u]
        cost = np.where(np.asarray(mask, dtype=np.bool_), given.cost, np.inf)
        variables[u] = Variable(given.name, cost)
    return Problem(tuple(variables), problem.edges, problem.limits)


def _check_limit(variables: Sequence[Variable], limit: Limit) -> None:
    what = f"limit {limit.name!r}"
    for u, vector in limit.vectors.items():
        if not 0 <= u < len(variables) or vector.shape != variables[u].cost.shape:
            raise ValueError(f"{what} has {vector.shape} for variable {u}, which does not fit it")
    for (u, v), matrix in limit.matrices.items():
        if u >= v:
            raise ValueError(f"{what} has a matrix of ({u}, {v}); expected u < v")
        _checked_edge(variables, u, v, matrix)
    arrays = (*limit.vectors.values(), *limit.matrices.values())
    if not all(np.isfinite(array).all() for array in arrays) or math.isnan(limit.most):
        raise ValueError(f"{what} must hold finite amounts")


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


class UndecidedError(InfeasibleError):
    """No choices were found in time, and none were ruled out either."""


@dataclass(frozen=True)
class Folding:
    """Repeated blocks, first held to one choice: how many variables shared how many classes.

    `cost_s`: seconds by which the best plan that treats blocks alike exceeds the one returned, or,
    if time ran out before that was settled, the bound: 0.0 is a proof that nothing was lost.
    """

    num_variables: int
    num_classes: int
    cost_s: float


@dataclass(frozen=True)
class Certificate:
    """What is proven of a solution.

    `objective`, `bound`: seconds; no choice costs less than `bound`. `gap`: (objective - bound) /
    |objective|, 0.0 if they differ by float noise only. `status`: "optimal" if the gap asked for
    (0.0 by default) is proven, "time limit" if time ran out, "interrupted" if Ctrl-C ended it.
    `seconds`: wall clock of the solve.
    `num_variables` of the problem given, `num_variables_after_reduction` and `num_binaries` of
    the ILP (0 if none was needed). `folding`: None if no classes were given,
    or if no choices were found that treat their members alike.
    """

    objective: float
    bound: float
    gap: float
    seconds: float
    status: Literal["optimal", "time limit", "not proven", "interrupted"]
    num_variables: int
    num_binaries: int
    num_variables_after_reduction: int
    folding: Folding | None = None


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
