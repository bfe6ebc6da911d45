"""Examples of views and copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.strategies.examples.base import (
    add,
    complex_numbers,
    constant,
    real,
    whole,
)

for _op in ("view.default", "reshape.default", "_unsafe_view.default"):
    _view: Callable[..., Any] = {
        "view.default": lambda x, *shape: x.view(*shape),
        "reshape.default": lambda x, *shape: x.reshape(*shape),
        "_unsafe_view.default": lambda x, *shape: torch.ops.aten._unsafe_view.default(x, shape),
    }[_op]
    add(
        _op,
        split_heads=(lambda x, view=_view: view(x, 2, 7, 4, 3), real(2, 7, 12)),
        merge_heads=(lambda x, view=_view: view(x, 2, 7, 12), real(2, 7, 4, 3)),
        regroup=(lambda x, view=_view: view(x, 4, 6), real(8, 3)),
        ones=(lambda x, view=_view: view(x, 1, 7, 1, 4, 1), real(7, 4)),
        flat=(lambda x, view=_view: view(x, -1), real(4, 7)),
        scalar=(lambda x, view=_view: view(x, 1, 1), real()),
    )
add("view.default", of_integers=(lambda x: x.view(20), whole(0, 9, 4, 5)))
add(
    "flatten.using_ints",
    all=(lambda x: x.flatten(), real(4, 5)),
    middle=(lambda x: x.flatten(1, 2), real(3, 4, 2, 7)),
)
add("unflatten.int", last=(lambda x: x.unflatten(-1, (3, 4)), real(5, 12)))
add("unflatten.int", first=(lambda x: x.unflatten(0, (4, 2)), real(8, 3)))
add("unsqueeze.default", first=(lambda x: x.unsqueeze(0), real(5, 4)))
add("unsqueeze.default", last=(lambda x: x.unsqueeze(-1), real(5, 4)))
add("squeeze.dim", middle=(lambda x: x.squeeze(1), real(5, 1, 4)))
add("squeeze.dims", two=(lambda x: x.squeeze((0, 2)), real(1, 5, 1, 4)))
add("squeeze.default", all=(lambda x: x.squeeze(), real(1, 5, 1, 2)))
add(
    "transpose.int",
    matrix=(lambda x: x.transpose(0, 1), real(5, 4)),
    heads=(lambda x: x.transpose(1, -2), real(2, 5, 4, 3)),
)
add("t.default", matrix=(torch.t, real(5, 4)), vector=(torch.t, real(5)))
add("numpy_T.default", matrix=(lambda x: x.T, real(5, 4)))
add("permute.default", cycle=(lambda x: x.permute(2, 0, -2), real(5, 4, 3)))
add(
    "expand.default",
    middle=(lambda x: x.expand(5, 4, 3), real(5, 1, 3)),
    left=(lambda x: x.expand(4, -1, 7), real(5, 7)),
    scalar=(lambda x: x.expand(5), real()),
)
add(
    "broadcast_tensors.default",
    row=(torch.broadcast_tensors, real(7, 4), real(4)),
    crossed=(torch.broadcast_tensors, real(5, 1), real(1, 4), real(3, 1, 1)),
)
add(
    "slice.Tensor",
    rows=(lambda x: x[1:4], real(7, 4)),
    columns=(lambda x: x[:, ::2], real(5, 7)),
)
add(
    "split.Tensor",
    rows=(lambda x: x.split(2), real(5, 4)),
    columns=(lambda x: x.split(3, -1), real(4, 7)),
)
add("split_with_sizes.default", columns=(lambda x: x.split([3, 4], -1), real(4, 7)))
add(
    "chunk.default",
    rows=(lambda x: x.chunk(3), real(7, 4)),
    columns=(lambda x: x.chunk(2, dim=-1), real(5, 4)),
)
add("select.int", row=(lambda x: x[2], real(5, 4)), column=(lambda x: x.select(-1, 0), real(5, 4)))
add("ravel.default", matrix=(torch.ravel, real(4, 5)))
for _rank in (1, 2, 3):
    _atleast = getattr(torch, f"atleast_{_rank}d")
    add(f"atleast_{_rank}d.default", scalar=(_atleast, real()), matrix=(_atleast, real(5, 4)))
add("view_as.default", heads=(lambda x, y: x.view_as(y), real(5, 8), real(5, 4, 2)))
add("reshape_as.default", flat=(lambda x, y: x.reshape_as(y), real(4, 5), real(20)))
add(
    "view.dtype",
    same=(lambda x: x.view(torch.float64), whole(0, 9, 5, 4)),
    narrower=(lambda x: x.view(torch.int32), whole(0, 9, 5, 4)),
)
add("swapaxes.default", last=(lambda x: x.swapaxes(0, -1), real(5, 4, 3)))
add("swapdims.default", last=(lambda x: x.swapdims(0, -1), real(5, 4, 3)))
for _name in ("mT", "mH"):
    add(f"{_name}.default", batch=(lambda x, name=_name: getattr(x, name), real(3, 5, 4)))
add("matrix_H.default", matrix=(lambda x: x.H, real(5, 4)))
add("adjoint.default", batch=(lambda x: x.adjoint(), real(3, 5, 4)))
add(
    "movedim.int",
    back=(lambda x: x.movedim(0, -1), real(5, 4, 3)),
    forth=(lambda x: x.movedim(-1, 1), real(5, 4, 3)),
)
add("movedim.intlist", two=(lambda x: x.movedim((0, 1), (2, 0)), real(5, 4, 3)))
add("moveaxis.int", back=(lambda x: torch.moveaxis(x, 0, 2), real(5, 4, 3)))
add("moveaxis.intlist", two=(lambda x: torch.moveaxis(x, (2, 0), (0, 1)), real(5, 4, 3, 2)))
add("broadcast_to.default", left=(lambda x: torch.broadcast_to(x, (5, 4, 3)), real(4, 1)))
add(
    "expand_as.default",
    row=(lambda x, y: x.expand_as(y), real(1, 4), real(5, 4)),
    left=(lambda x, y: x.expand_as(y), real(4), constant(real(5, 7, 4))),
)
add("meshgrid.default", rows=(lambda x, y: torch.ops.aten.meshgrid([x, y]), real(5), real(4)))
add(
    "meshgrid.indexing",
    ij=(lambda x, y: torch.meshgrid(x, y, indexing="ij"), real(5), real(4)),
    xy=(lambda x, y, z: torch.meshgrid(x, y, z, indexing="xy"), real(5), real(4), real(3)),
    scalar=(lambda x, y: torch.meshgrid(x, y, indexing="ij"), real(5), real()),
)
add("narrow.default", columns=(lambda x: x.narrow(-1, 1, 3), real(5, 7)))
add(
    "unbind.int",
    rows=(lambda x: x.unbind(), real(3, 5, 4)),
    last=(lambda x: x.unbind(-1), real(5, 4, 2)),
    numbers=(lambda x: x.unbind(1), real(5, 3)),
)
add(
    "tensor_split.sections",
    rows=(lambda x: x.tensor_split(3), real(7, 4)),
    columns=(lambda x: x.tensor_split(3, -1), real(5, 7)),
)
add("tensor_split.indices", columns=(lambda x: x.tensor_split([1, 4], dim=1), real(5, 7)))
add("hsplit.int", two=(lambda x: x.hsplit(2), real(5, 4)))
add("hsplit.array", three=(lambda x: x.hsplit([1, 3]), real(5, 4)))
add("vsplit.int", two=(lambda x: x.vsplit(2), real(4, 5)))
add("vsplit.array", three=(lambda x: x.vsplit([1, 3]), real(4, 5)))
add("dsplit.int", two=(lambda x: x.dsplit(2), real(5, 4, 2)))
add("dsplit.array", three=(lambda x: x.dsplit([1, 2]), real(5, 4, 3)))
add(
    "diagonal.default",
    first=(lambda x: x.diagonal(), real(3, 4, 5)),
    last=(lambda x: x.diagonal(1, -2, -1), real(5, 3, 4)),
)
add("linalg_diagonal.default", last=(lambda x: torch.linalg.diagonal(x, offset=-1), real(5, 3, 4)))
add(
    "unfold.default",
    last=(lambda x: x.unfold(-1, 3, 2), real(5, 7)),
    first=(lambda x: x.unfold(0, 2, 1), real(4, 5)),
)
add("view_as_complex.default", pairs=(torch.view_as_complex, real(5, 4, 2)))
add("view_as_real.default", numbers=(torch.view_as_real, complex_numbers(5, 4)))
add("real.default", numbers=(torch.real, complex_numbers(5, 4)))
add("imag.default", numbers=(torch.imag, complex_numbers(5, 4)))
add("resolve_conj.default", numbers=(torch.resolve_conj, complex_numbers(5, 4)))
add("resolve_neg.default", numbers=(torch.resolve_neg, real(5, 4)))
