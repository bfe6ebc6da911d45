"""Examples of ops that sort, search, or count."""

from __future__ import annotations

import torch

from tests.strategies.examples.base import (
    add,
    constant,
    real,
    whole,
)

add(
    "topk.default",
    last=(lambda x: x.topk(2), real(5, 4)),
    first=(lambda x: x.topk(3, 0, largest=False), real(4, 5)),
)
add(
    "sort.default",
    last=(lambda x: x.sort(), real(5, 4)),
    first=(lambda x: x.sort(0, descending=True), real(4, 5)),
)
add("sort.stable", first=(lambda x: x.sort(stable=True, dim=0), whole(0, 3, 4, 5)))
add("argsort.default", last=(lambda x: x.argsort(), real(5, 4)))
add("argsort.stable", first=(lambda x: x.argsort(stable=True, dim=0), whole(0, 3, 4, 5)))
add("msort.default", rows=(torch.msort, real(4, 5)))
add(
    "searchsorted.Tensor",
    one_row=(torch.searchsorted, constant(real(7).sort()[0]), constant(real(5, 4))),
    rows=(torch.searchsorted, constant(real(5, 7).sort()[0]), constant(real(5, 4))),
    by_order=(
        lambda numbers, order, x: torch.searchsorted(numbers, x, right=True, sorter=order),
        torch.tensor([[3, 1, 5], [9, 7, 8]]),
        torch.tensor([[1, 0, 2], [1, 2, 0]]),
        whole(0, 10, 2, 5),
    ),
)
add("bucketize.Tensor", rows=(torch.bucketize, whole(0, 9, 5, 4), torch.tensor([1, 3, 5])))
add(
    "histc.default",
    counts=(lambda x: torch.histc(x, 4, 0, 8), constant(whole(0, 9, 5, 4).double())),
)
