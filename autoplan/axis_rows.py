"""Axis rows: what the rows of a plan say of one mesh axis, and what departs from a scheme there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from autoplan.errors import LayoutError
from autoplan.layouts import B, Entry, Layout, Partial, Split
from autoplan.plan import OperationRow, Plan, TensorRow
from autoplan.planfiles.patterns import shortened
from autoplan.strategies.rule import STREAMS

PRODUCTS = re.compile(
    r"aten\.(linear|addmm|mm|matmul|bmm|baddbmm|mv|einsum|bilinear|conv\w*)\.|.*grouped_mm"
)
BLOCK = re.compile(r"(?:[^.\d][^.]*\.)*\d+")


@dataclass(frozen=True)
class Product:
    """A product with a weight, how it is split on the axis, and how many elements the weight has.

    kind: "batch", "sequence", "column" (output features), "row" (input features), "experts",
    "whole". streams: its operands arrive block by block, as in SUMMA.
    """

    row: OperationRow
    kind: str
    numel: float
    streams: bool = False


@dataclass(frozen=True)
class Parameter:
    """A trained parameter on the axis. fits: some dimension has a row for every rank."""

    row: TensorRow
    stored: Entry
    use: Entry
    fits: bool


class AxisRows:
    """What the rows of a plan say of one axis."""

    def __init__(self, plan: Plan, at: int) -> None:
        self.plan, self._at = plan, at
        self.size = plan.sizes[at]
        self._values = {row.path: row for row in plan.tensors if row.kind == "module"}

    def _entry(self, layout: str) -> Entry:
        """The axis' entry; of figures that an edited plan file has wrong, whole."""
        try:
            entries = Layout.parse(layout)
        except LayoutError:
            return B
        return entries[self._at] if self._at < len(entries) else B

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Every parameter once, tied ones by their first path."""
        result = []
        for row in self.plan.tensors:
            if row.kind != "parameter" or f"parameter {row.path}" not in self.plan.choices:
                continue  # an alias of one that is there
            stored, use = self._entry(row.layout), self._entry(row.use or row.layout)
            fits = any((self.size - 1) * -(-n // self.size) < n for n in row.shape)
            result.append(Parameter(row, stored, use, fits))
        return result

    @cached_property
    def products(self) -> list[Product]:
        weights: dict[str, float] = {}
        for row in self.plan.tensors:
            if row.kind == "parameter" and len(row.shape) > 1:
                path, _, _ = row.path.rpartition(".")
                weights[path] = weights.get(path, 0.0) + numel_of(row.shape)
        rows = [each for each in self.plan.operations if PRODUCTS.match(each.op)]
        rows = [each for each in rows if each.path in weights]
        counts: dict[str, int] = {}
        for each in rows:
            counts[each.path] = counts.get(each.path, 0) + 1
        return [
            Product(
                each,
                self._kind(each),
                weights[each.path] / counts[each.path],
                self._label(each).endswith(STREAMS),
            )
            for each in rows
        ]

    def _label(self, row: OperationRow) -> str:
        labels = row.choice.split(" | ")
        return labels[self._at] if self._at < len(labels) else ""  # of a damaged plan file

    def _kind(self, row: OperationRow) -> str:
        if self._label(row) in ("te", "e"):
            return "experts"
        entry = self._entry(row.layout)
        if isinstance(entry, Partial):
            return "row"
        if not isinstance(entry, Split):
            return "whole"
        features = 1 if row.op.startswith("aten.conv") else len(row.shape) - 1
        if entry.dim == features:
            return "column"
        value = self._values.get(row.path)  # not flattened, as the product's own operands may be
        if value is not None and len(value.shape) > len(row.shape):
            entry = self._entry(value.layout)
        return "sequence" if isinstance(entry, Split) and entry.dim else "batch"

    @cached_property
    def blocks(self) -> list[Entry]:
        """How the results of numbered modules with several products lie."""
        counts: dict[str, int] = {}
        for product in self.products:
            match = BLOCK.match(product.row.path)
            if match and match.group() != product.row.path:
                counts[match.group()] = counts.get(match.group(), 0) + 1
        paths = [path for path, count in counts.items() if count > 1 and path in self._values]
        return [self._entry(self._values[path].layout) for path in paths]

    @cached_property
    def arguments(self) -> list[TensorRow]:
        """Arguments that carry the batch, as the first one does in its first dimension."""
        rows = [row for row in self.plan.tensors if row.kind == "input" and row.shape]
        return [row for row in rows if row.shape[0] == rows[0].shape[0]]

    @property
    def splits_arguments(self) -> bool:
        """Whether every one of them is split, or there is none."""
        return all(isinstance(self._entry(row.layout), Split) for row in self.arguments)

    @cached_property
    def attention(self) -> str:
        """The label of most attention ops; none without."""
        labels = [self._label(row) for row in self.plan.operations if "attention" in row.op]
        return max(labels, key=labels.count, default="")

    def share(self, *kinds: str) -> float:
        """The part of the weights, experts' aside, whose products are of these kinds."""
        dense = [p for p in self.products if p.kind != "experts"] or self.products
        total = sum(product.numel for product in dense)
        return sum(p.numel for p in dense if p.kind in kinds) / total if total else 0.0

    # -- departures -------------------------------------------------------------------------

    def departing(self, *kinds: str) -> list[str]:
        """Products of other kinds, in one line a kind; not of a router or the like alone."""
        found: dict[str, list[str]] = {}
        numel: dict[str, float] = {}
        for product in self.products:
            if product.kind not in kinds:
                name, text = self._said(product)
                found.setdefault(text, []).append(name)
                numel[text] = numel.get(text, 0.0) + product.numel
        least = LEAST * sum(product.numel for product in self.products)
        return [f"{named(names)} {text}" for text, names in found.items() if numel[text] >= least]

    def _said(self, product: Product) -> tuple[str, str]:
        """What of a product is to be named, and what is said of it."""
        weights = [p for p in self.parameters if p.row.path.rpartition(".")[0] == product.row.path]
        split = [p for p in weights if len(p.row.shape) == 2 and isinstance(p.use, Split)]
        if len(split) != 1 or product.kind not in ("column", "row"):
            return product.row.path or "the model's own products", WORDS[product.kind]
        (weight,) = split
        text = f"split by {_LINES[weight.use]}"
        last = product is self.products[-1] and product.kind == "column"
        if last and any("cross_entropy" in row.op for row in self.plan.operations):
            text += " (vocabulary-parallel head)"
        return weight.row.path, text

    def between(self, expected: Sequence[Entry]) -> Iterator[str]:
        others = [entry for entry in self.blocks if entry not in expected]
        if others:
            kinds = ", ".join(dict.fromkeys(map(str, others)))
            yield f"{len(others)} of {len(self.blocks)} values between blocks lie as {kinds}"

    def unsplit_arguments(self) -> Iterator[str]:
        """Arguments that carry the batch, as the first does, and are not split along it."""
        for row in self.arguments:
            entry = self._entry(row.layout)
            if entry != Split(0):
                yield f"argument {row.path!r} lies as {entry}"

    def read_split(self) -> Iterator[str]:
        """Parameters that are read split, other than those of products told of already."""
        told = {product.row.path for product in self.products if product.kind != "whole"}
        found: dict[str, list[str]] = {}
        for each in self.parameters:
            if not isinstance(each.use, Split) or each.row.path.rpartition(".")[0] in told:
                continue
            text = f"split by {_LINES.get(each.use, str(each.use))}"
            module = each.row.path.rpartition(".")[0]
            if any(r.path == module and "embedding" in r.op for r in self.plan.operations):
                text += " (vocabulary-parallel embedding)" * (each.use == Split(0))
            found.setdefault(text, []).append(each.row.path)
        for text, names in found.items():
            yield f"{named(names)} {text}"

    def stored_split(self) -> Iterator[str]:
        split = [p.row.path for p in self.parameters if isinstance(p.stored, Split)]
        if split:
            yield f"{len(split)} of {len(self.parameters)} parameters stored split: {named(split)}"


WORDS = {
    "batch": "split over the batch",
    "sequence": "split over the sequence",
    "column": "split over output features",
    "row": "split over input features",
    "experts": "split over experts",
    "whole": "computed whole on every rank",
}
_LINES: dict[Entry, str] = {Split(0): "rows", Split(1): "columns"}
_MOST_NAMED = 3
LEAST = 0.001
"""The part of the weights below which products that do otherwise are not told of."""


def numel_of(shape: Iterable[int]) -> int:
    return math.prod(shape)


def named(paths: Iterable[str]) -> str:
    """`h.{0..3}.attn, lm_head`; of many the first ones."""
    ordered = sorted(dict.fromkeys(paths), key=lambda path: re.sub(r"\d+", "#", path))
    texts = shortened(ordered)
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more
