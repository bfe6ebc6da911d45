"""Layouts: how a tensor lies on a device mesh, one entry per mesh axis (nd-SBP, Yuan et al. 2021).

An entry says both what a rank holds of the value and what it will hold of the gradient:

    S(d)   a slice along dimension d         gradient S(d)
    P      an addend of the value            gradient whole on every rank
    B      the whole value                   gradient whole on every rank
    B/P    the whole value                   every rank gets an addend of the gradient
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from autoplan.errors import LayoutError
from autoplan.mesh import Mesh


@dataclass(frozen=True)
class Split:
    """A slice along `dim`, cut as `torch.chunk` cuts: ceil(size / n) rows, the last ranks fewer."""

    dim: int

    def __repr__(self) -> str:
        return f"S({self.dim})"


@dataclass(frozen=True)
class Partial:
    """An addend of the value; with `reduction` "max" or "min" nothing may need a gradient."""

    reduction: str = "sum"

    def __repr__(self) -> str:
        return "P" if self.reduction == "sum" else f"P({self.reduction})"


@dataclass(frozen=True)
class Broadcast:
    """The whole value; with `partial_gradient` each rank gets an addend of the gradient (B/P)."""

    partial_gradient: bool = False

    def __repr__(self) -> str:
        return "B/P" if self.partial_gradient else "B"


Entry = Split | Partial | Broadcast

S = Split
P = Partial()
B = Broadcast()
BP = Broadcast(partial_gradient=True)


def dual_entry(entry: Entry) -> Entry:
    """Layout of the gradient of a value that lies as `entry`; an involution.

    An entry is a pair (value, gradient): P is (addend, whole), B/P is (whole, addend), B is (whole,
    whole), S is (slice, slice). The dual swaps the pair, so the gradient of P lies whole, and the
    gradient of that gradient is again an addend.
    """
    if isinstance(entry, Split):
        return entry
    if isinstance(entry, Partial):
        if entry.reduction != "sum":
            raise LayoutError(f"{entry} has no gradient: only sums are linear. Reduce it first.")
        return BP
    return P if entry.partial_gradient else B


class Layout(tuple[Entry, ...]):
    """One entry per mesh axis; compares equal to a plain tuple of entries."""

    __slots__ = ()

    def __new__(cls, entries: Iterable[Entry] = ()) -> Layout:
        entries = tuple(entries)
        for entry in entries:
            if not isinstance(entry, (Split, Partial, Broadcast)):
                raise LayoutError(
                    f"a layout entry is S(dim), P, B or B/P, got {entry!r}; "
                    "write a layout as text with Layout.parse('(B, S(1))')."
                )
        return super().__new__(cls, entries)

    @staticmethod
    def parse(text: str | Sequence[Entry | str] | Entry) -> Layout:
        """Read `"(B, S(1))"`, `"S(0)"`, `"B/P, P"`, a single entry, or a sequence of either."""
        return _parse(text)

    @property
    def dual(self) -> Layout:
        """Layout of this value's gradient."""
        return Layout(dual_entry(entry) for entry in self)

    def replace(self, index: int, entry: Entry) -> Layout:
        return Layout((*self[:index], entry, *self[index + 1 :]))

    def resolve(self, ndim: int) -> Layout:
        """Count negative split dimensions from the end; raises LayoutError beyond `ndim`."""
        entries: list[Entry] = []
        for entry in self:
            if isinstance(entry, Split):
                if not -ndim <= entry.dim < ndim:
                    raise LayoutError(
                        f"{entry} splits a dimension that a tensor of {ndim} dimensions "
                        f"does not have; use S({-ndim}) to S({ndim - 1})."
                        if ndim
                        else f"{entry} splits a scalar; use B or P."
                    )
                entry = Split(entry.dim % ndim)
            entries.append(entry)
        return Layout(entries)

    def without_gradient(self) -> Layout:
        """The same layout for a tensor that needs no gradient, where B/P is B."""
        return Layout(B if entry == BP else entry for entry in self)

    def axes_of(self, dim: int) -> Iterator[int]:
        """Mesh axes that split `dim`, outermost first."""
        return (i for i, entry in enumerate(self) if isinstance(entry, Split) and entry.dim == dim)

    def __repr__(self) -> str:
        return "(" + ", ".join(map(repr, self)) + ")"

    __str__ = __repr__


_ENTRY = re.compile(r"\s*(?:S\(\s*(-?\d+)\s*\)|(B/P)|(B)|P(?:\((sum|max|min)\))?)\s*(?:,|$)")


def parse_entry(text: str) -> Entry:
    """Read one entry, `"S(1)"`, `"P"`, `"B"` or `"B/P"`."""
    layout = _parse(text)
    if len(layout) != 1:
        raise LayoutError(f"expected one layout entry such as S(1), P, B or B/P, got {text!r}.")
    return layout[0]


def _parse(value: str | Sequence[Entry | str] | Entry) -> Layout:
    if isinstance(value, (Split, Partial, Broadcast)):
        return Layout((value,))
    if not isinstance(value, str):
        return Layout(parse_entry(item) if isinstance(item, str) else item for item in value)
    text = value.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip().removesuffix(",")
    entries: list[Entry] = []
    position = 0
    while position < len(text):
        match = _ENTRY.match(text, position)
        if match is None:
            raise LayoutError(
                f"cannot read layout {value!r} at {text[position:]!r}; "
                "entries are S(dim), P, B and B/P, one per mesh axis, e.g. '(B, S(1))'."
            )
        dim, broadcast_partial, broadcast, reduction = match.groups()
        if dim is not None:
            entries.append(Split(int(dim)))
        elif broadcast_partial:
            entries.append(BP)
        elif broadcast:
            entries.append(B)
        else:
            entries.append(Partial(reduction or "sum"))
        position = match.end()
    if not entries and value.strip() != "()":
        raise LayoutError(
            f"cannot read layout {value!r}: it has no entry; "
            "entries are S(dim), P, B and B/P, one per mesh axis, and '()' is for one device."
        )
    return Layout(entries)


def chunk_range(size: int, parts: int, index: int) -> tuple[int, int]:
    """Start and stop of part `index` of `size` rows, cut as `torch.chunk` cuts; may be empty."""
    rows = -(-size // parts)
    return min(index * rows, size), min((index + 1) * rows, size)


@lru_cache(maxsize=65536)
def local_ranges(
    shape: tuple[int, ...], layout: Layout, mesh: Mesh, coordinates: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Start and stop, per dimension, of what the rank at `coordinates` holds of a `shape` tensor.

    Several axes may split one dimension: the first axis cuts first, as DTensor does.
    """
    ranges = [(0, size) for size in shape]
    for axis, entry in enumerate(layout):
        if isinstance(entry, Split):
            start, stop = ranges[entry.dim]
            low, high = chunk_range(stop - start, mesh.sizes[axis], coordinates[axis])
            ranges[entry.dim] = (start + low, start + high)
    return tuple(ranges)


def local_shape(
    shape: tuple[int, ...], layout: Layout, mesh: Mesh, coordinates: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Shape of the shard at `coordinates`; without them the largest one, which rank 0 holds."""
    at = coordinates if coordinates is not None else (0,) * mesh.ndim
    return tuple(stop - start for start, stop in local_ranges(tuple(shape), layout, mesh, at))
