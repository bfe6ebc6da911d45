"""Families of ops that a random program is made of."""

from tests.fuzz.families import (  # noqa: F401  (each registers its families)
    indexing,
    layers,
    losses,
    pointwise,
    products,
    reductions,
    shapes,
    writes,
)
from tests.fuzz.families.base import FAMILIES, Family

__all__ = ["FAMILIES", "Family"]
