"""The solver: pairwise cost problems as arrays, folded, reduced, solved as an ILP, certified."""

from autoplan.solver.fold import Folded, fold
from autoplan.solver.ilp import solve_ilp
from autoplan.solver.problem import (
    Certificate,
    Folding,
    Limit,
    Problem,
    ProblemBuilder,
    Solution,
    Variable,
    restrict,
)
from autoplan.solver.reduce import Reduced, reduce
from autoplan.solver.solve import solve

__all__ = [
    "Certificate",
    "Folded",
    "Folding",
    "Limit",
    "Problem",
    "ProblemBuilder",
    "Reduced",
    "Solution",
    "Variable",
    "fold",
    "reduce",
    "restrict",
    "solve",
    "solve_ilp",
]
