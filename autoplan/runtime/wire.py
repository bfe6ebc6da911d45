"""What a collective sends: tensors as rows of one buffer, one row a rank, and back.

Every shard is padded to the largest, so that rows are equal; several tensors lie side by side in
one buffer, so that a bucket is one collective.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoplan.boxing import Step
from autoplan.layouts import Split, chunk_range


def pack(name: str, x: Tensor, step: Step, parts: int) -> Tensor:
    """The operand of collective `name`: [1, k] to gather or reduce, [parts, k] to scatter."""
    if name == "all_reduce":
        return x.reshape(1, -1)
    if name == "all_gather":
        assert isinstance(step.source, Split)
        return pad(x, step.source.dim, -(-step.sizes[0] // parts)).reshape(1, -1)
    assert isinstance(step.target, Split)
    dim, rows = step.target.dim, -(-step.sizes[1] // parts)
    if name == "all_to_all":
        assert isinstance(step.source, Split)
        x = pad(x, step.source.dim, -(-step.sizes[0] // parts))
    pieces = torch.unflatten(pad(x, dim, rows * parts), dim, (parts, rows))
    return pieces.movedim(dim, 0).reshape(parts, -1)


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
