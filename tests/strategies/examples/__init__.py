"""Calls of every op that has a rule, small enough to prove each on several meshes."""

from tests.strategies.examples import (  # noqa: F401  (each adds its examples)
    attention,
    bags,
    convolution,
    copies,
    creation,
    elementwise,
    experts,
    fourier,
    indexing,
    linear_algebra,
    losses,
    matmul,
    moments,
    normalize,
    norms,
    random,
    recurrent,
    reductions,
    scatter,
    shape,
    sorting,
    vectors,
)
from tests.strategies.examples.base import EXAMPLES, Example, constant, flags, positive, real, whole

__all__ = ["EXAMPLES", "Example", "constant", "flags", "positive", "real", "whole"]
