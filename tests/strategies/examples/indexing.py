"""Examples of reading by index."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.strategies.examples.base import (
    add,
    flags,
    real,
    whole,
)

add(
    "index.Tensor",
    rows=(lambda x, i: x[i], real(5, 4), whole(0, 5, 7)),
    table=(lambda x, i: x[i], real(8, 4), whole(0, 8, 3, 5)),
    from_the_back=(lambda x, i: x[i], real(5, 4), whole(-5, 5, 7)),
    columns=(lambda x, i: x[:, i], real(5, 7), whole(0, 7, 4)),
    middle=(lambda x, i: x[:, i], real(3, 5, 4), whole(-5, 5, 2, 4)),
    points=(lambda x, i, j: x[i, j], real(5, 4), whole(0, 5, 7), whole(-4, 4, 7)),
    crossed=(lambda x, i, j: x[i, j], real(5, 4, 3), whole(0, 5, 7, 1), whole(0, 4, 5)),
    neighbours=(lambda x, i, j: x[:, i, j], real(3, 5, 4, 2), whole(0, 5, 7), whole(0, 4, 7)),
    apart=(lambda x, i, j: x[i, :, j], real(5, 3, 4, 2), whole(0, 5, 7), whole(0, 4, 7)),
    apart_later=(lambda x, i, j: x[:, i, :, j], real(3, 5, 2, 4), whole(0, 5, 7), whole(0, 4, 7)),
    scalar=(lambda x, i: torch.ops.aten.index.Tensor(x, [None, i]), real(5, 4), whole(0, 4)),
    of_flags=(lambda x, i: x[:, i], flags(5, 7), whole(0, 7, 4)),
    of_integers=(lambda x, i: x[i], whole(0, 9, 5), whole(0, 5, 7)),
)
add(
    "index_select.default",
    rows=(lambda x, i: x.index_select(0, i), real(5, 4), whole(0, 5, 7)),
    columns=(lambda x, i: x.index_select(-1, i), real(5, 7), whole(0, 7, 4)),
    one=(lambda x, i: x.index_select(1, i), real(5, 7, 2), whole(0, 7)),
)
add(
    "gather.default",
    last=(lambda x, i: x.gather(-1, i), real(5, 7), whole(0, 7, 5, 4)),
    first=(lambda x, i: x.gather(0, i), real(7, 5), whole(0, 7, 4, 5)),
    fewer_rows=(lambda x, i: x.gather(1, i), real(7, 5, 4), whole(0, 5, 4, 5, 4)),
    of_integers=(lambda x, i: x.gather(1, i), whole(0, 9, 5, 4), whole(0, 4, 5, 1)),
)
add(
    "take_along_dim.default",
    last=(lambda x, i: torch.take_along_dim(x, i, -1), real(5, 7), whole(0, 7, 5, 4)),
    broadcast=(lambda x, i: torch.take_along_dim(x, i, 1), real(1, 5, 4), whole(0, 5, 7, 2, 1)),
    flat=(torch.take_along_dim, real(5, 7), whole(0, 35, 4)),
)
add(
    "take.default",
    some=(torch.take, real(5, 4), whole(-20, 20, 7, 3)),
)
add(
    "one_hot.default",
    rows=(lambda i: F.one_hot(i, 7), whole(0, 7, 5)),
    matrix=(lambda i: F.one_hot(i, 5), whole(0, 5, 4, 3)),
)
add(
    "masked_scatter.default",
    same=(torch.masked_scatter, real(5, 4), flags(5, 4), real(20)),
    images=(torch.masked_scatter, real(3, 5, 4), flags(3, 5, 1), real(16, 4)),
)
