"""The batch in a tree of arguments: which tensors carry it, and how it is cut into microbatches."""

from __future__ import annotations

from collections.abc import Collection
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


def _map_batch(example: Example, change: Any, without: Collection[int]) -> Example:
    """Apply `change` to the tensors whose dimension 0 is the batch, but those at `without`."""
    batch = batch_size(example)

    def visit(position: int, leaf: Any) -> Any:
        carries = isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == batch
        return change(leaf) if carries and position not in without else leaf

    leaves, spec = pytree.tree_flatten(example)
    result: Example = pytree.tree_unflatten([visit(*each) for each in enumerate(leaves)], spec)
    return result


def microbatches(example: Example, count: int, without: Collection[int] = ()) -> list[Example]:
    """Cut every batch tensor into `count` equal parts; InputError if the batch is no multiple.

    A tensor carries the batch if its dimension 0 is as large, and its flat position is not in
    `without`.
    """
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
        _map_batch(example, lambda leaf, k=k: leaf.narrow(0, k * rows, rows), without)
        for k in range(count)
    ]


def whole_batch(example: Example, ranks: int) -> Example:
    """Stand-ins for the batch that `ranks` local parts like `example` make together."""
    return _map_batch(
        example, lambda leaf: leaf.new_empty((leaf.shape[0] * ranks, *leaf.shape[1:])), ()
    )
