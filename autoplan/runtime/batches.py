"""The batch in a tree of arguments: which tensors carry it, and how it is cut into microbatches."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.errors import InputError

Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model."""


def batch_size(example: Example) -> int | None:
    """Size of dimension 0 of the first tensor argument that has one; None without such a tensor."""
    for leaf in pytree.tree_leaves(example):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    return None


def _map_batch(example: Example, change: Any) -> Example:
    """Apply `change` to the tensors whose dimension 0 is the batch."""
    batch = batch_size(example)

    def visit(leaf: Any) -> Any:
        carries = isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == batch
        return change(leaf) if carries else leaf

    result: Example = pytree.tree_map(visit, example)
    return result


def microbatches(example: Example, count: int) -> list[Example]:
    """Cut every batch tensor into `count` equal parts; InputError if the batch is no multiple."""
    if count == 1:
        return [example]
    batch = batch_size(example)
    if batch is None or batch % count:
        raise InputError(
            f"a batch of {batch} cannot be cut into {count} equal microbatches; "
            f"use a batch that is a multiple of {count}, or another number of microbatches."
        )
    rows = batch // count
    return [
        _map_batch(example, lambda leaf, k=k: leaf.narrow(0, k * rows, rows)) for k in range(count)
    ]


def first_microbatch(example: Example, count: int) -> Example:
    """What one microbatch looks like."""
    return microbatches(example, count)[0]


def whole_batch(example: Example, ranks: int) -> Example:
    """Stand-ins for the batch that `ranks` local parts like `example` make together."""
    return _map_batch(
        example, lambda leaf: leaf.new_empty((leaf.shape[0] * ranks, *leaf.shape[1:]))
    )
