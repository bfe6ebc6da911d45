"""Tensor parallelism on one axis: matrix products split over rows or columns of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autoplan.hints import Hint
from autoplan.layouts import Split
from autoplan.strategies.matmul import RULES as PRODUCTS
from autoplan.strategies.presets.data import WHOLE
from autoplan.strategies.presets.structure import blocks, paths_of_weighted_products

if TYPE_CHECKING:
    from autoplan.capture import Captured

ATTENTION = "aten.scaled_dot_product_attention.default"


def tensor_1d(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Products with a weight split over its rows or columns, attention over heads."""
    origin = "tensor mode '1d'"
    for each in captured.inputs_of("input"):
        yield Hint(each.path, "value", {axis: WHOLE}, origin)
    weighted, attention = frozenset(PRODUCTS), frozenset({ATTENTION})
    for path in paths_of_weighted_products(captured):
        yield Hint(path, "op", {axis: frozenset({"i", "o"})}, origin, weighted, required=False)
    yield Hint("*", "op", {axis: frozenset({"h"})}, origin, attention, required=False)
    tables = frozenset({"aten.embedding.default"})
    yield Hint("*", "op", {axis: frozenset({"v", "B", "B/P"})}, origin, tables, required=False)


def megatron(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """1d, with whole activations between blocks."""
    yield from tensor_1d(captured, axis, size)
    for path in blocks(captured):
        yield Hint(path, "value", {axis: WHOLE}, "preset 'megatron'")


def megatron_sp(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """1d, with activations between blocks split along dimension 1, the sequence."""
    yield from tensor_1d(captured, axis, size)
    for path in blocks(captured):
        yield Hint(path, "value", {axis: frozenset({Split(1)})}, "preset 'megatron-sp'")
