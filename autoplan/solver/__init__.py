"""The solver: pairwise cost problems as arrays, folded, reduced, solved as an ILP, certified."""

from autoplan.solver.fold import Folded, fold
from autoplan.solver.ilp import solve_ilp
from autoplan.solver.problem import (
    Certificate,
    Folding,
    Problem,
    ProblemBuilder,
    Solution,
    Variable,
)
from autoplan.solver.reduce import Reduced, reduce
from autoplan.solver.solve import solve

__all__ = [
    "Certificate",
    "Folded",
    "Folding",
    "Problem",
    "ProblemBuilder",
    "Reduced",
    "Solution",
    "Variable",
    "fold",
    "reduce",
    "solve",
    "solve_ilp",
]
