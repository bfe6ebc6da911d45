"""Examples of variances, deviations and vector norms."""

from __future__ import annotations

import torch

from tests.strategies.examples.base import add, real

for _op, _fn in {
    "var": torch.var,
    "std": torch.std,
    "var_mean": torch.var_mean,
    "std_mean": torch.std_mean,
}.items():
    _default = getattr(torch.ops.aten, _op).default
    add(
        f"{_op}.correction",
        all=(_fn, real(5, 4)),
        rows=(lambda x, fn=_fn: fn(x, dim=(0,), correction=0), real(5, 4) + 100),
        keep=(lambda x, fn=_fn: fn(x, dim=-1, correction=2, keepdim=True), real(7, 4)),
        two=(lambda x, fn=_fn: fn(x, dim=(0, 2), correction=1), real(5, 4, 3)),
        equal=(lambda x, fn=_fn: fn(x, dim=0, correction=1), torch.ones(5, 4).double()),
    )
    add(
        f"{_op}.dim",
        rows=(lambda x, fn=_fn: fn(x, 0), real(5, 4)),
        biased=(lambda x, fn=_fn: fn(x, (1,), False, True), real(7, 4)),
    )
    add(f"{_op}.default", biased=(lambda x, fn=_default: fn(x, False), real(7, 4)))
    add(f"{_op}.default", all=(lambda x, fn=_default: fn(x), real(5)))
_rows_of_zeros = real(7, 4) * (torch.arange(7)[:, None] % 2)
for _order in (1, 2, 2.5, float("inf")):
    add(
        "linalg_vector_norm.default",
        **{
            f"order_{_order}": (
                lambda x, p=_order: torch.linalg.vector_norm(x, p, 1),
                _rows_of_zeros.clone(),
            ),
            f"all_{_order}": (lambda x, p=_order: torch.linalg.vector_norm(x, p), real(5, 4)),
        },
    )
add("linalg_vector_norm.default", keep=(lambda x: x.norm(dim=(0, 2), keepdim=True), real(5, 4, 3)))
_norms = torch.ops.aten.norm
add(
    "norm.ScalarOpt_dim",
    rows=(lambda x: _norms.ScalarOpt_dim(x, 2, [0]), real(5, 4)),
    keep=(lambda x: _norms.ScalarOpt_dim(x, 1, [-1], True), real(7, 4)),
    unsaid=(lambda x: _norms.ScalarOpt_dim(x, None, [1]), real(7, 4)),
    three=(lambda x: _norms.ScalarOpt_dim(x, 3, [1]), real(7, 4)),
)
add("norm.Scalar", two=(lambda x: _norms.Scalar(x), real(5, 4)))
add(
    "linalg_norm.default",
    all=(torch.linalg.norm, real(5, 4)),
    rows=(lambda x: torch.linalg.norm(x, dim=0), real(5, 4)),
    order=(lambda x: torch.linalg.norm(x, 1, -1, True), real(7, 4)),
    matrix=(lambda x: torch.linalg.norm(x, 1, (1, 2)), real(7, 4, 3)),
)
