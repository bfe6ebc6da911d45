"""Solvers and decompositions: each matrix of a batch by itself."""

from __future__ import annotations

import math
from dataclasses import replace

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, OpMemory, Rule


def _matrices(call: OpCall) -> str | None:
    """The last two dimensions are whole; results keep the batch before whatever else they have."""
    ndim = len(call.inputs[0].shape)
    if ndim < 2 or any(len(meta.shape) != ndim for meta in call.inputs):
        return None
    batch = " ".join(f"d{i}" for i in range(ndim - 2))
    inputs = (f"{batch} [i{at}] [j{at}]" for at in range(len(call.inputs)))
    outputs = (
        f"{batch} {' '.join(f'[o{at}_{i}]' for i in range(ndim - 2, len(meta.shape)))}"
        for at, meta in enumerate(call.outputs)
    )
    return f"{', '.join(inputs)} -> {', '.join(outputs)}"


def _factors(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """Triangular factors and the order of rows, which no output shows."""
    x = context.input_meta(0)
    rows = math.prod(x.shape[:-1])
    return replace(plain, kept=x.num_bytes + 4 * rows, backward=x.num_bytes)


_MATRICES = Rule(_matrices, saves=("output",))
_WITH_FACTORS = Rule(_matrices, saves=(0, "output"), memory=_factors)
_ROOTS = Rule(_matrices, saves=(0, "output"))
_POWERS = Rule(_matrices, saves=(0,))
_SOLUTION = Rule(_matrices, partial=(frozenset({1}),), saves=(0, "output"))

_DECOMPOSITIONS = (
    "linalg_inv linalg_inv_ex inverse cholesky linalg_cholesky linalg_cholesky_ex linalg_qr "
    "linalg_svd linalg_svdvals linalg_eigh linalg_eigvalsh"
)

RULES: dict[str, Rule] = {
    **{f"aten.{name}.default": _MATRICES for name in _DECOMPOSITIONS.split()},
    **{f"aten.{n}.default": _WITH_FACTORS for n in ("det", "linalg_det", "slogdet")},
    "aten.linalg_slogdet.default": _WITH_FACTORS,
    "aten.logdet.default": replace(_WITH_FACTORS, saves=(0,)),
    **{f"aten.{n}.default": _POWERS for n in ("matrix_power", "linalg_matrix_power")},
    **{f"aten.{n}.default": _POWERS for n in ("matrix_exp", "linalg_matrix_exp")},
    "aten.pinverse.default": _ROOTS,
    "aten.linalg_pinv.atol_rtol_float": _ROOTS,
    "aten.linalg_pinv.atol_rtol_tensor": _ROOTS,
    "aten.linalg_solve.default": _SOLUTION,
    "aten.linalg_solve_triangular.default": _SOLUTION,
}
