"""What a collective sends: tensors as rows of one buffer, one row a rank, and back.

Every shard is padded to the largest, so that rows are equal; several tensors lie side by side in
one buffer, so that a bucket is one collective.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoplan.boxing import Step
from autoplan.layouts import Split, chunk_range


def pack(name: str, x: Tensor, step: Step, parts: int) -> Tensor:
    """The operand of collective `name`: [1, ...] to gather or reduce, [parts, ...] to scatter.

    A view of `x` where nothing is padded: `fill` copies it to the buffer that is sent.
    """
    if name == "all_reduce":
        return x.unsqueeze(0)
    if name == "all_gather":
        assert isinstance(step.source, Split)
        return pad(x, step.source.dim, -(-step.sizes[0] // parts)).unsqueeze(0)
    assert isinstance(step.target, Split)
    dim, rows = step.target.dim, -(-step.sizes[1] // parts)
    if name == "all_to_all":
        assert isinstance(step.source, Split)
        x = pad(x, step.source.dim, -(-step.sizes[0] // parts))
    pieces = torch.unflatten(pad(x, dim, rows * parts), dim, (parts, rows))
    return pieces.movedim(dim, 0)


def fill(packed: Sequence[Tensor]) -> Tensor:
    """The buffer [rows, k] that holds packed operands side by side; a view of a single one."""
    rows = packed[0].shape[0]
    if len(packed) == 1:
        return packed[0].reshape(rows, -1).contiguous()
    widths = [each.numel() // rows for each in packed]
    buffer = packed[0].new_empty(rows, sum(widths))
    # Copied where it belongs at once: the operand of a scatter is no row of its tensor.
    for place, each in zip(torch.split(buffer, widths, 1), packed, strict=True):
        torch.unflatten(place, 1, each.shape[1:]).copy_(each)
    return buffer


def unpack(
    name: str, rows: Tensor, shape: torch.Size, step: Step, parts: int, index: int
) -> Tensor:
    """The result on rank `index`: `rows` is [1, k] after a reduction, [parts, k] otherwise.

    `shape` is that of the operand before packing.
    """
    if name == "all_reduce":
        return rows.reshape(shape)
    sent = list(shape)
    if isinstance(step.source, Split):
        sent[step.source.dim] = -(-step.sizes[0] // parts)
    if isinstance(step.target, Split):
        sent[step.target.dim] = -(-step.sizes[1] // parts)
    if name == "reduce_scatter":
        return _trim(rows.reshape(sent), step, parts, index)
    assert isinstance(step.source, Split)
    dim = step.source.dim
    whole = rows.reshape(parts, *sent).movedim(0, dim).flatten(dim, dim + 1)
    whole = whole.narrow(dim, 0, step.sizes[0])
    return _trim(whole, step, parts, index) if name == "all_to_all" else whole


def _trim(x: Tensor, step: Step, parts: int, index: int) -> Tensor:
    """Without the rows that padding added along the target dimension."""
    assert isinstance(step.target, Split)
    start, stop = chunk_range(step.sizes[1], parts, index)
    return x.narrow(step.target.dim, 0, stop - start)


def pad(x: Tensor, dim: int, rows: int) -> Tensor:
    """`x` with zeros appended along `dim` up to `rows`."""
    missing = rows - x.shape[dim]
    if missing == 0:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim)
