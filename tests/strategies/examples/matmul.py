"""Examples of contractions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.strategies.examples.base import (
    add,
    real,
)

add(
    "linear.default",
    bias=(F.linear, real(5, 4), real(7, 4), real(7)),
    plain=(F.linear, real(2, 4, 7), real(4, 7)),
    vector=(F.linear, real(4), real(7, 4), real(7)),
    one_row=(F.linear, real(5, 4), real(4)),
    one_row_bias=(F.linear, real(2, 5, 4), real(4), real()),
)
add(
    "matmul.default",
    vectors=(torch.matmul, real(7), real(7)),
    left_vector=(torch.matmul, real(7), real(3, 7, 4)),
    right_vector=(torch.matmul, real(3, 4, 7), real(7)),
    matrices=(torch.matmul, real(5, 4), real(4, 7)),
    batch=(torch.matmul, real(4, 3, 5), real(4, 5, 2)),
    broadcast=(torch.matmul, real(4, 1, 3, 5), real(7, 5, 2)),
    batch_of_left=(torch.matmul, real(4, 3, 5), real(5, 7)),
)
add("mm.default", uneven=(torch.mm, real(5, 4), real(4, 7)))
add("bmm.default", uneven=(torch.bmm, real(4, 3, 5), real(4, 5, 2)))
add(
    "addmm.default",
    row=(torch.addmm, real(7), real(5, 4), real(4, 7)),
    matrix=(torch.addmm, real(5, 7), real(5, 4), real(4, 7)),
    one_row=(torch.addmm, real(1, 7), real(5, 4), real(4, 7)),
    scalar=(torch.addmm, real(), real(5, 4), real(4, 7)),
    scaled=(
        lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=3.0),
        real(7),
        real(5, 4),
        real(4, 7),
    ),
)
add(
    "baddbmm.default",
    same=(torch.baddbmm, real(4, 3, 2), real(4, 3, 5), real(4, 5, 2)),
    broadcast=(torch.baddbmm, real(1, 3, 1), real(4, 3, 5), real(4, 5, 2)),
    row=(torch.baddbmm, real(2), real(4, 3, 5), real(4, 5, 2)),
)
add("linalg_matmul.default", matrices=(torch.linalg.matmul, real(5, 4), real(4, 7)))
add("mv.default", uneven=(torch.mv, real(5, 4), real(4)))
add("dot.default", uneven=(torch.dot, real(5), real(5)))
add("vdot.default", uneven=(torch.vdot, real(5), real(5)))
add(
    "inner.default",
    vectors=(torch.inner, real(5), real(5)),
    batches=(torch.inner, real(3, 5, 4), real(7, 4)),
    scalar=(torch.inner, real(5, 4), real()),
    scalar_first=(torch.inner, real(), real(5, 4)),
)
add(
    "linalg_vecdot.default",
    last=(torch.linalg.vecdot, real(5, 4), real(4)),
    first=(lambda x, y: torch.linalg.vecdot(x, y, dim=0), real(5, 4), real(5, 1)),
)
add("outer.default", uneven=(torch.outer, real(5), real(4)))
add("ger.default", uneven=(torch.ger, real(5), real(4)))
add(
    "tensordot.default",
    one=(lambda x, y: torch.tensordot(x, y, 1), real(5, 3, 4), real(4, 7)),
    crossed=(lambda x, y: torch.tensordot(x, y, ([0, -1], [1, 0])), real(3, 5, 4), real(4, 3, 2)),
    none=(lambda x, y: torch.tensordot(x, y, 0), real(5), real(4)),
    shared=(lambda x: torch.tensordot(x, x, 2), real(5, 4)),
)


def _einsum(equation: str) -> Callable[..., Tensor]:
    return lambda *operands: torch.einsum(equation, *operands)


add(
    "einsum.default",
    matrices=(_einsum("ij,jk->ik"), real(5, 4), real(4, 7)),
    heads=(_einsum("bhqd, bhkd -> bhqk"), real(2, 3, 5, 4), real(2, 3, 7, 4)),
    implicit=(_einsum("kj,ik"), real(4, 7), real(5, 4)),
    any_batch=(_einsum("...ij,...jk->...ik"), real(5, 3, 4), real(2, 5, 4, 7)),
    batch_of_one=(_einsum("b...d,de"), real(5, 3, 4), real(4, 7)),
    one_broadcast=(_einsum("bi,bi->b"), real(5, 4), real(1, 4)),
    three=(_einsum("bi,ij,bj->b"), real(5, 4), real(4, 7), real(5, 7)),
    summed_alone=(_einsum("ij,jk->k"), real(5, 4), real(4, 7)),
    one_operand=(_einsum("bij->bj"), real(2, 5, 4)),
    transposed=(_einsum("ij->ji"), real(5, 4)),
    diagonal=(_einsum("bii->bi"), real(5, 3, 3)),
    lost_diagonal=(_einsum("bii,bj->bj"), real(5, 3, 3), real(5, 4)),
    capitals=(_einsum("bB,BP->bP"), real(5, 4), real(4, 7)),
    sublists=(
        lambda x, y: torch.einsum(x, [0, 1], y, [1, 2], [0, 2]),
        real(5, 4),
        real(4, 7),
    ),
    scalar=(_einsum("i,i->"), real(5), real(5)),
    itself=(lambda x: torch.einsum("id,jd->ij", x, x), real(5, 4)),
)
add(
    "chain_matmul.default",
    three=(torch.chain_matmul, real(5, 4), real(4, 7), real(7, 3)),
)
add(
    "linalg_multi_dot.default",
    matrices=(lambda *x: torch.linalg.multi_dot(x), real(5, 4), real(4, 7), real(7, 3)),
    vectors=(lambda *x: torch.linalg.multi_dot(x), real(5), real(5, 4), real(4)),
    two=(lambda *x: torch.linalg.multi_dot(x), real(5), real(5, 4)),
)
add(
    "addbmm.default",
    matrix=(torch.addbmm, real(5, 4), real(3, 5, 2), real(3, 2, 4)),
    row=(torch.addbmm, real(4), real(4, 3, 5), real(4, 5, 4)),
    scaled=(
        lambda b, x, y: torch.addbmm(b, x, y, beta=0.5, alpha=3.0),
        real(1, 4),
        real(4, 3, 5),
        real(4, 5, 4),
    ),
)
add(
    "addmv.default",
    vector=(torch.addmv, real(5), real(5, 4), real(4)),
    scalar=(torch.addmv, real(), real(5, 4), real(4)),
)
add(
    "addr.default",
    matrix=(torch.addr, real(5, 4), real(5), real(4)),
    row=(torch.addr, real(4), real(5), real(4)),
)
add(
    "bilinear.default",
    bias=(F.bilinear, real(5, 4), real(5, 3), real(7, 4, 3), real(7)),
    plain=(F.bilinear, real(2, 5, 4), real(2, 5, 3), real(7, 4, 3)),
    narrow=(F.bilinear, real(4, 2), real(4, 5), real(3, 2, 5)),
)
