"""Examples of new tensors."""

from __future__ import annotations

import torch

from tests.strategies.examples.base import (
    EXAMPLES,
    Example,
    add,
    real,
)

add("complex.default", row=(torch.complex, real(5, 4), real(4)))
add("polar.default", row=(torch.polar, real(5, 4), real(4)))
add(
    "new_zeros.default",
    same=(lambda x: x.new_zeros(5, 4), real(5, 4)),
    other=(lambda x: x.new_zeros(5, 2, 4), real(5, 3, 4)),
    matrix=(lambda x: x.new_zeros((5, 4), dtype=torch.int64), real(7)),
)
add("new_ones.default", other=(lambda x: x.new_ones(5, 2), real(5, 4)))
add(
    "new_full.default",
    two=(lambda x: x.new_full((5, 2), 2.0), real(5, 4)),
    zero=(lambda x: x.new_full((5, 4), 0), real(5, 4)),
)
EXAMPLES.append(
    Example(
        "aten.new_empty.default",
        "zeros",
        lambda x: x.new_empty(5, 2),
        (real(5, 4),),
        lambda x: x.new_zeros(5, 2),
    )
)
add("fill.Tensor", scalar=(torch.fill, real(5, 4), real()))
for _variant, _source in (("same", real(5, 4)), ("row", real(1, 4))):
    EXAMPLES.append(
        Example(
            "aten.copy.default",
            _variant,
            torch.ops.aten.copy.default,
            (real(5, 4), _source),
            lambda x, y: y.expand_as(x),
        )
    )
