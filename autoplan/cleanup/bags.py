"""Bags of embeddings: those of equal size are a matrix of ids, whose rows can be split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def write_bags_as_rows(graph: fx.Graph, constants: Mapping[str, torch.Tensor]) -> None:
    """`embedding_bag` reads the matrix of ids that the caller gave it, not its flat run.

    `F.embedding_bag` flattens a matrix of ids and counts the offsets of its rows; where the graph
    shows both, the ids (and their weights) go back to a matrix, which only the rule understands.
    """
    for overload in (aten.embedding_bag.default, aten.embedding_bag.padding_idx):
        for node in graph.find_nodes(op="call_function", target=overload):
            arguments: list[Any] = list(node.args)
            shape = _matrix_shape(arguments[1])
            places = [1, 6] if len(arguments) > 6 and arguments[6] is not None else [1]
            if shape is None or any(_matrix_shape(arguments[at]) != shape for at in places):
                continue
            if not _counts_rows(arguments[2], constants, shape) or node.kwargs:
                continue
            for at in places:
                arguments[at] = arguments[at].args[0]
            node.args = tuple(arguments)


def _matrix_shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the matrix that `node` flattens."""
    if node.target is not aten.reshape.default:
        return None
    shape = tuple(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
    return shape if len(shape) == 2 and node.meta["val"].dim() == 1 else None


def _counts_rows(
    offsets: fx.Node, constants: Mapping[str, torch.Tensor], shape: tuple[int, ...]
) -> bool:
    value = constants.get(offsets.name)
    rows, length = shape
    return value is not None and torch.equal(value, torch.arange(rows, dtype=value.dtype) * length)
