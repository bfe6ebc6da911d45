"""The rules of every op that autoplan can split, and the presets that name known schemes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from autoplan.strategies import (
    attention,
    bags,
    convolution,
    copies,
    creation,
    cross_entropy,
    ctc,
    elementwise,
    embedding,
    experts,
    fourier,
    indexing,
    linear_algebra,
    loss,
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
from autoplan.strategies.rule import Rule

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **elementwise.RULES,
        **matmul.RULES,
        **vectors.RULES,
        **linear_algebra.RULES,
        **fourier.RULES,
        **shape.RULES,
        **copies.RULES,
        **creation.RULES,
        **reductions.RULES,
        **attention.RULES,
        **embedding.RULES,
        **bags.RULES,
        **loss.RULES,
        **cross_entropy.RULES,
        **ctc.RULES,
        **random.RULES,
        **convolution.RULES,
        **moments.RULES,
        **normalize.RULES,
        **norms.RULES,
        **indexing.RULES,
        **scatter.RULES,
        **sorting.RULES,
        **recurrent.RULES,
        **experts.RULES,
    }
)
"""Rule of each ATen op, by the name that the captured graph shows, e.g. `aten.linear.default`."""
