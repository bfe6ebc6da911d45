"""Examples of solvers and decompositions."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.strategies.examples.base import (
    add,
    real,
)


def _symmetric(x: Tensor) -> Tensor:
    return x @ x.mT + torch.eye(x.shape[-1])


_batch = _symmetric(real(5, 3, 3))
for _name in (
    "linalg_inv",
    "linalg_inv_ex",
    "inverse",
    "det",
    "linalg_det",
    "logdet",
    "slogdet",
    "linalg_slogdet",
    "cholesky",
    "linalg_cholesky",
    "linalg_cholesky_ex",
    "linalg_qr",
    "linalg_eigh",
    "linalg_eigvalsh",
    "linalg_svdvals",
    "pinverse",
    "matrix_exp",
):
    add(f"{_name}.default", batch=(getattr(torch.ops.aten, _name), _batch))
add(
    "linalg_pinv.atol_rtol_float",
    batch=(lambda x: torch.ops.aten.linalg_pinv.atol_rtol_float(x, rtol=1e-9), _batch),
)
add("linalg_pinv.atol_rtol_tensor", batch=(torch.linalg.pinv, _batch))
add("linalg_matrix_exp.default", batch=(torch.ops.aten.linalg_matrix_exp, real(5, 3, 3)))
add("linalg_svd.default", batch=(lambda x: torch.linalg.svd(x, False), real(5, 4, 3)))
add("matrix_power.default", batch=(lambda x: torch.matrix_power(x, 3), real(5, 3, 3)))
add("linalg_matrix_power.default", batch=(lambda x: torch.linalg.matrix_power(x, 2), real(5, 3, 3)))
add("linalg_solve.default", batch=(torch.linalg.solve, _batch, real(5, 3, 2)))
add(
    "linalg_solve_triangular.default",
    batch=(
        lambda a, b: torch.linalg.solve_triangular(a, b, upper=False),
        torch.linalg.cholesky(_batch),
        real(5, 3, 2),
    ),
)
