"""Solvers and decompositions: each matrix of a batch by itself."""

from __future__ import annotations

from autoplan.strategies.rule import OpCall, Rule


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


_MATRICES = Rule(_matrices, saves=("output",))
_SOLUTION = Rule(_matrices, partial=(frozenset({1}),), saves=(0, "output"))

_DECOMPOSITIONS = (
    "linalg_inv linalg_inv_ex inverse det linalg_det logdet slogdet linalg_slogdet cholesky "
    "linalg_cholesky linalg_cholesky_ex linalg_qr linalg_svd linalg_svdvals linalg_eigh "
    "linalg_eigvalsh pinverse matrix_power linalg_matrix_power matrix_exp "
    "linalg_matrix_exp"
)

RULES: dict[str, Rule] = {
    **{f"aten.{name}.default": _MATRICES for name in _DECOMPOSITIONS.split()},
    "aten.linalg_pinv.atol_rtol_float": _MATRICES,
    "aten.linalg_pinv.atol_rtol_tensor": _MATRICES,
    "aten.linalg_solve.default": _SOLUTION,
    "aten.linalg_solve_triangular.default": _SOLUTION,
}
