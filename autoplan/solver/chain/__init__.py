"""Cuts of a chain of pieces into pipeline stages: arrays in, an assignment with its bound out."""

from autoplan.solver.chain.assign import Assignment, assign
from autoplan.solver.chain.problem import (
    Chain,
    Pipeline,
    StageHintError,
    StageMemoryError,
    TooManyStagesError,
)
from autoplan.solver.chain.recompute import Evaluation, evaluate

__all__ = [
    "Assignment",
    "Chain",
    "Evaluation",
    "Pipeline",
    "StageHintError",
    "StageMemoryError",
    "TooManyStagesError",
    "assign",
    "evaluate",
]
