"""Boxing: turning one layout into another, one mesh axis at a time.

One theorem carries the runtime: the backward of boxing a -> b is boxing dual(b) -> dual(a). A step
changes the entry of one axis; what it does to the value is its `action`, what it does to the
gradient is the action of the step between the duals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from autoplan.errors import LayoutError
from autoplan.layouts import (
    BP,
    B,
    Broadcast,
    Entry,
    Layout,
    P,
    Partial,
    Split,
    dual_entry,
    local_shape,
)
from autoplan.mesh import Mesh
from autoplan.routes import Routes, cheapest

COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")
"""Actions that communicate; the others (identity, slice, keep_one, zero_pad) are local."""


def action(source: Entry, target: Entry) -> str:
    """What a step from `source` to `target` does to the value on its axis.

    Raises LayoutError for a conversion that has no meaning, such as making a P(max).
    """
    if source == target:
        return "identity"
    if isinstance(source, Partial):
        if isinstance(target, Broadcast):
            return "all_reduce"
        if isinstance(target, Split):
            return "reduce_scatter"
    elif isinstance(target, Partial):
        if target.reduction == "sum":
            return "keep_one" if isinstance(source, Broadcast) else "zero_pad"
    elif isinstance(source, Broadcast):
        return "slice" if isinstance(target, Split) else "identity"
    else:
        return "all_to_all" if isinstance(target, Split) else "all_gather"
    raise LayoutError(f"no boxing leads from {source} to {target}.")


@dataclass(frozen=True)
class Step:
    """One axis of a tensor goes from `source` to `target`.

    `sizes` are the sizes, before this axis cuts them, of the dimensions that `source` and `target`
    split (0 where they split none); they let the runtime pad and trim uneven shards.
    """

    axis: str
    source: Entry
    target: Entry
    sizes: tuple[int, int]

    @property
    def forward(self) -> str:
        return action(self.source, self.target)

    @property
    def backward(self) -> str:
        return action(dual_entry(self.target), dual_entry(self.source))

    @property
    def reversed(self) -> Step:
        """The step that the gradient takes."""
        return Step(
            self.axis,
            dual_entry(self.target),
            dual_entry(self.source),
            (self.sizes[1], self.sizes[0]),
        )

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} on {self.axis}"


StepPrice = Callable[[str, str, int], float]
"""(action, axis, bytes of the local tensor before this axis cuts it) -> seconds."""


@dataclass(frozen=True)
class Move:
    """One step of a path, not yet bound to a rank: the axis' index and both layouts."""

    axis: int
    source: Layout
    target: Layout

    def actions(self, needs_gradient: bool) -> tuple[str, ...]:
        """Forward action, and the backward one where a gradient flows."""
        source, target = self.source[self.axis], self.target[self.axis]
        forward = action(source, target)
        if not needs_gradient:
            return (forward,)
        return forward, action(dual_entry(target), dual_entry(source))

    def bind(self, shape: tuple[int, ...], mesh: Mesh, coordinates: tuple[int, ...]) -> Step:
        """The runtime step of the rank at `coordinates` for a tensor of logical `shape`."""
        source, target = self.source[self.axis], self.target[self.axis]
        uncut = _uncut_shape(shape, self.source, self.axis, mesh, coordinates)
        size = tuple(uncut[e.dim] if isinstance(e, Split) else 0 for e in (source, target))
        return Step(mesh.axes[self.axis], source, target, (size[0], size[1]))

    def whole_bytes(self, shape: tuple[int, ...], itemsize: int, mesh: Mesh) -> int:
        """Bytes of the largest local tensor before this axis cuts it: a collective's size."""
        at = (0,) * mesh.ndim
        return itemsize * math.prod(_uncut_shape(shape, self.source, self.axis, mesh, at))


def _uncut_shape(
    shape: tuple[int, ...], layout: Layout, axis: int, mesh: Mesh, coordinates: tuple[int, ...]
) -> tuple[int, ...]:
    """Local shape if `axis` did not cut: the other axes' cuts only."""
    return local_shape(shape, layout.replace(axis, B), mesh, coordinates)


def moves_from(layout: Layout, entries: tuple[Entry, ...]) -> Iterator[Move]:
    """Every legal single-axis change of `layout` to one of `entries`.

    Axes that split one dimension nest, the first outermost; only the innermost may change, or the
    pieces would interleave.
    """
    for axis, source in enumerate(layout):
        inner = layout[axis + 1 :]
        if isinstance(source, Split) and source in inner:
            continue
        for target in entries:
            if target == source or (isinstance(target, Split) and target in inner):
                continue
            if isinstance(target, Partial) and target.reduction != "sum":
                continue
            yield Move(axis, layout, layout.replace(axis, target))


def layout_entries(shape: tuple[int, ...], needs_gradient: bool) -> tuple[Entry, ...]:
    """Entries that a tensor of `shape` may have on one axis; dimensions of size 1 stay whole."""
    splits = tuple(Split(dim) for dim, size in enumerate(shape) if size > 1)
    return (B, BP, P, *splits) if needs_gradient else (B, P, *splits)


@lru_cache(maxsize=4096)
def _numbered(shape: tuple[int, ...], needs_gradient: bool) -> dict[Entry, int]:
    """The entries that a tensor may have on one axis, with their numbers."""
    return {entry: i for i, entry in enumerate(layout_entries(shape, needs_gradient))}


class Router:
    """Cheapest boxing paths for tensors on one mesh, under one price of a step; memoised.

    All pairs of layouts of one tensor at once. Tensors that differ in dimensions of size 1 only
    share them. Equal times prefer fewer steps, and the answer does not depend on the order of the
    search.
    """

    def __init__(self, mesh: Mesh, price: StepPrice) -> None:
        self.mesh = mesh
        self._price = price
        self._routes: dict[tuple[tuple[int, ...], int, bool], Routes] = {}
        self._legal: dict[tuple[Entry, ...], list[NDArray[np.bool_]]] = {}

    def costs(
        self,
        sources: Sequence[Layout],
        targets: Sequence[Layout],
        shape: tuple[int, ...],
        itemsize: int,
        needs_gradient: bool,
    ) -> NDArray[np.float64]:
        """Seconds, forward and backward, of every conversion: [len(sources), len(targets)].

        Infinite where no path is finite; raises LayoutError for a layout that the tensor cannot
        have.
        """
        entries = _numbered(shape, needs_gradient)
        rows = [self._point(layout, entries) for layout in sources]
        columns = [self._point(layout, entries) for layout in targets]
        return self._routes_of(shape, itemsize, needs_gradient).time_s(rows, columns)

    def path(
        self,
        source: Layout,
        target: Layout,
        shape: tuple[int, ...],
        itemsize: int,
        needs_gradient: bool,
    ) -> tuple[Move, ...]:
        """The moves of the cheapest conversion.

        Raises LayoutError for a layout that the tensor cannot have, and where no path is finite.
        """
        entries = _numbered(shape, needs_gradient)
        start, stop = self._point(source, entries), self._point(target, entries)
        if start == stop:
            return ()
        routes = self._routes_of(shape, itemsize, needs_gradient)
        if not np.isfinite(routes.lengths[start, stop]):
            raise LayoutError(f"no boxing leads from {source} to {target}.")
        by_number, moves, at = list(entries), [], source
        for axis, point in routes.path(start, stop):
            number = point // len(entries) ** (self.mesh.ndim - 1 - axis) % len(entries)
            moves.append(Move(axis, at, at.replace(axis, by_number[number])))
            at = moves[-1].target
        return tuple(moves)

    def _point(self, layout: Layout, entries: dict[Entry, int]) -> int:
        """The number of `layout` among all layouts of a tensor."""
        point = 0
        numbers = [entries.get(entry, -1) for entry in layout]
        if -1 in numbers or len(numbers) != self.mesh.ndim:
            known = ", ".join(map(str, entries))
            raise LayoutError(
                f"no boxing for layout {layout} on mesh {self.mesh}: a layout has one entry per "
                f"axis, and the entries of this tensor are {known}."
            )
        for number in numbers:
            point = point * len(entries) + number
        return point

    def _routes_of(self, shape: tuple[int, ...], itemsize: int, needs_gradient: bool) -> Routes:
        sizes = tuple(size for size in shape if size != 1)
        key = (sizes, itemsize, needs_gradient)
        if key not in self._routes:
            entries = layout_entries(sizes, needs_gradient)
            if entries not in self._legal:
                self._legal[entries] = _legal_steps(entries, self.mesh.ndim)
            times = [
                np.where(
                    legal,
                    self._step_times_s(axis, sizes, itemsize, entries, needs_gradient),
                    np.inf,
                )
                for axis, legal in enumerate(self._legal[entries])
            ]
            self._routes[key] = cheapest(times, len(entries))
        return self._routes[key]

    def _step_times_s(
        self,
        axis: int,
        sizes: tuple[int, ...],
        itemsize: int,
        entries: tuple[Entry, ...],
        needs_gradient: bool,
    ) -> NDArray[np.float64]:
        """Seconds of every change on `axis`: [from, to, layouts before, layouts after]."""
        name, count = self.mesh.axes[axis], len(entries)
        whole, place = np.unique(
            self._whole_bytes(axis, sizes, itemsize, entries), return_inverse=True
        )
        known: dict[str, NDArray[np.float64]] = {}

        def price(action: str) -> NDArray[np.float64]:
            if action not in known:
                known[action] = np.array([self._price(action, name, int(size)) for size in whole])
            return known[action]

        times = np.zeros((count, count, *place.shape))
        for (at, source), (to, target) in permutations(enumerate(entries), 2):
            move = Move(0, Layout((source,)), Layout((target,)))
            each = [price(action) for action in move.actions(needs_gradient)]
            times[at, to] = np.sum(each, axis=0)[place]
        return times

    def _whole_bytes(
        self, axis: int, sizes: tuple[int, ...], itemsize: int, entries: tuple[Entry, ...]
    ) -> NDArray[np.int64]:
        """`Move.whole_bytes` of moves on `axis`, by the other axes: [before, after]."""
        grid = [1 if each == axis else len(entries) for each in range(self.mesh.ndim)]
        result = np.full(grid, itemsize, dtype=np.int64)
        for dim, size in enumerate(sizes):
            rows = np.full(grid, size, dtype=np.int64)
            for other, parts in enumerate(self.mesh.sizes):
                if other != axis:
                    cuts = np.array([entry == Split(dim) for entry in entries])
                    along = [-1 if each == other else 1 for each in range(self.mesh.ndim)]
                    rows = np.where(cuts.reshape(along), -(-rows // parts), rows)
            result = result * rows
        return result.reshape(len(entries) ** axis, -1)


def _legal_steps(entries: tuple[Entry, ...], ndim: int) -> list[NDArray[np.bool_]]:
    """Whether a change is legal, per axis: [from, to, layouts before, layouts after]."""
    count = len(entries)
    legal = [np.zeros((count,) * (ndim + 1), dtype=np.bool_) for _ in range(ndim)]
    for at in product(range(count), repeat=ndim):
        for move in moves_from(Layout(entries[number] for number in at), entries):
            legal[move.axis][(*at, entries.index(move.target[move.axis]))] = True
    return [
        np.moveaxis(each, (axis, ndim), (0, 1)).reshape(count, count, count**axis, -1)
        for axis, each in enumerate(legal)
    ]
