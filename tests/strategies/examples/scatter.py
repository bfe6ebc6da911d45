"""Examples of writing by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.strategies.examples.base import (
    add,
    constant,
    flags,
    real,
    whole,
)

_distinct = torch.tensor([3, 0, 4, 1])


def _rows(index: Tensor, *shape: int) -> Tensor:
    return index.reshape(-1, *(1 for _ in shape)).expand(-1, *shape).contiguous()


add(
    "scatter.src",
    rows=(lambda x, i, y: x.scatter(0, i, y), real(5, 3), _rows(_distinct, 3), real(4, 3)),
    columns=(lambda x, i, y: x.scatter(-1, i, y), real(4, 7), _rows(_distinct, 4).T, real(4, 4)),
    fewer=(
        lambda x, i, y: x.scatter(0, i, y),
        real(5, 4),
        _rows(_distinct, 3),
        constant(real(7, 3)),
    ),
)
add(
    "scatter.value",
    ones=(lambda x, i: x.scatter(1, i, 1.0), real(5, 7), whole(0, 7, 5, 2)),
    zeros=(lambda x, i: x.scatter(1, i, 0.0), real(5, 7), whole(0, 7, 5, 2)),
)
add(
    "scatter.reduce",
    sums=(
        lambda x, i, y: x.scatter(1, i, y, reduce="add"),
        whole(0, 9, 5, 4),
        whole(0, 4, 5, 7),
        whole(0, 9, 5, 7),
    ),
    products=(
        lambda x, i, y: x.scatter(1, i, y, reduce="multiply"),
        whole(0, 9, 5, 4),
        whole(0, 4, 5, 7),
        whole(0, 9, 5, 7),
    ),
)
add(
    "scatter.value_reduce",
    products=(
        lambda x, i: x.scatter(1, i, 2, reduce="multiply"),
        whole(0, 9, 5, 4),
        whole(0, 4, 5, 7),
    ),
)
add(
    "scatter_add.default",
    columns=(lambda x, i, y: x.scatter_add(1, i, y), real(5, 4), whole(0, 4, 5, 7), real(5, 7)),
    rows=(lambda x, i, y: x.scatter_add(0, i, y), real(5, 4), whole(0, 5, 7, 4), real(7, 4)),
    fewer=(
        lambda x, i, y: x.scatter_add(0, i, y),
        real(5, 4),
        whole(0, 5, 5, 4),
        constant(real(7, 4)),
    ),
)


def _reduce(kind: str, include_self: bool = True) -> Callable[..., Any]:
    return lambda x, i, y: x.scatter_reduce(-1, i, y, kind, include_self=include_self)


add(
    "scatter_reduce.two",
    **{
        f"{kind}{'' if include_self else '_alone'}": (
            _reduce(kind, include_self),
            real(5, 7),
            whole(0, 7, 5, 4),
            real(5, 4),
        )
        for kind in ("sum", "mean", "amax", "amin", "prod")
        for include_self in (True, False)
    },
)
add(
    "index_add.default",
    rows=(lambda x, i, y: x.index_add(0, i, y), real(5, 4), whole(0, 5, 7), real(7, 4)),
    columns=(
        lambda x, i, y: x.index_add(-1, i, y, alpha=2.0),
        real(5, 7),
        whole(0, 7, 4),
        real(5, 4),
    ),
)
add(
    "index_copy.default",
    rows=(lambda x, i, y: x.index_copy(0, i, y), real(5, 7), _distinct, real(4, 7)),
    columns=(lambda x, i, y: x.index_copy(-1, i, y), real(5, 7), _distinct, real(5, 4)),
)
add(
    "index_fill.int_Scalar",
    ones=(lambda x, i: x.index_fill(1, i, 1.0), real(5, 7), whole(0, 7, 3)),
    zeros=(lambda x, i: x.index_fill(0, i, 0.0), real(5, 7), whole(0, 5, 3)),
)
add(
    "index_fill.int_Tensor",
    rows=(lambda x, i, y: x.index_fill(0, i, y), real(5, 7), whole(0, 5, 3), real()),
)
add(
    "index_reduce.default",
    largest=(
        lambda x, i, y: x.index_reduce(0, i, y, "amax"),
        real(5, 7),
        whole(0, 5, 4),
        real(4, 7),
    ),
)


def _put(*dims: int, accumulate: bool = False) -> Callable[..., Any]:
    """Writes the last tensor where those before it index `dims`."""

    def fn(x: Tensor, *tensors: Tensor) -> Tensor:
        given = dict(zip(dims, tensors[:-1], strict=True))
        indices = [given.get(dim) for dim in range(max(dims) + 1)]
        return torch.ops.aten.index_put.default(x, indices, tensors[-1], accumulate)

    return fn


add(
    "index_put.default",
    rows=(_put(0), real(5, 4), _distinct, real(4, 4)),
    columns=(_put(1), real(4, 5), _distinct - 5, real(4, 4)),
    one_value=(_put(0), real(5, 4), whole(0, 5, 7), real()),
    points=(_put(0, 1), real(5, 7), _distinct, _distinct, real(4)),
    added=(_put(0, accumulate=True), real(5, 4), whole(-5, 5, 7), real(7, 4)),
    added_row=(_put(0, accumulate=True), real(5, 4), whole(0, 5, 7), real(4)),
    added_points=(
        _put(0, 1, accumulate=True),
        real(5, 4, 2),
        whole(0, 5, 7),
        whole(-4, 4, 7),
        real(7, 2),
    ),
    added_apart=(
        _put(0, 2, accumulate=True),
        real(5, 2, 4),
        whole(0, 5, 7, 1),
        whole(0, 4, 3),
        real(7, 3, 2),
    ),
    added_neighbours=(
        _put(1, 2, accumulate=True),
        real(2, 5, 4),
        whole(0, 5, 7),
        whole(0, 4, 7),
        real(2, 7),
    ),
    mask=(_put(0), real(5, 4), flags(5, 4), real()),
    mask_of_rows=(_put(0), real(5, 4), flags(5), real(4)),
    mask_of_columns=(_put(1), real(5, 4, 3), flags(4), real(5, 1, 3)),
    mask_added=(_put(0, accumulate=True), real(5, 4), flags(5, 4), real(1)),
)
