"""Boxing: turning one layout into another, one mesh axis at a time.

One theorem carries the runtime: the backward of boxing a -> b is boxing dual(b) -> dual(a). A step
changes the entry of one axis; what it does to the value is its `action`, what it does to the
gradient is the action of the step between the duals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

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


class Router:
    """Cheapest boxing paths for tensors on one mesh, under one price of a step; memoised.

    All pairs of layouts of one tensor at once (Floyd 1962, on numpy rows); equal times prefer fewer
    steps, so that the answer does not depend on the order of the search.
    """

    def __init__(self, mesh: Mesh, price: StepPrice) -> None:
        self.mesh = mesh
        self._price = price
        self._tables: dict[tuple[object, ...], _Table] = {}

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
        table = self._table(shape, itemsize, needs_gradient)
        rows = [table.at(layout) for layout in sources]
        columns = [table.at(layout) for layout in targets]
        return table.time_s[np.ix_(rows, columns)]

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
        table = self._table(shape, itemsize, needs_gradient)
        at, goal = table.at(source), table.at(target)
        if not np.isfinite(table.time_s[at, goal]):
            raise LayoutError(f"no boxing leads from {source} to {target}.")
        moves = []
        while at != goal:
            move = table.moves[at, int(table.next_step[at, goal])]
            moves.append(move)
            at = table.index[move.target]
        return tuple(moves)

    def _table(self, shape: tuple[int, ...], itemsize: int, needs_gradient: bool) -> _Table:
        key = (shape, itemsize, needs_gradient)
        if key not in self._tables:
            self._tables[key] = self._all_pairs(shape, itemsize, needs_gradient)
        return self._tables[key]

    def _all_pairs(self, shape: tuple[int, ...], itemsize: int, needs_gradient: bool) -> _Table:
        entries = layout_entries(shape, needs_gradient)
        layouts = [Layout(each) for each in product(entries, repeat=self.mesh.ndim)]
        index = {layout: i for i, layout in enumerate(layouts)}
        count = len(layouts)
        time_s = np.full((count, count), np.inf)
        steps = np.full((count, count), np.inf)
        next_step = np.tile(np.arange(count), (count, 1))
        moves: dict[tuple[int, int], Move] = {}
        for layout, i in index.items():
            time_s[i, i] = steps[i, i] = 0.0
            for move in moves_from(layout, entries):
                j = index[move.target]
                size = move.whole_bytes(shape, itemsize, self.mesh)
                axis = self.mesh.axes[move.axis]
                names = move.actions(needs_gradient)
                time_s[i, j] = sum(self._price(name, axis, size) for name in names)
                steps[i, j] = 1.0
                moves[i, j] = move
        for k in range(count):
            through = time_s[:, k, None] + time_s[None, k, :]
            through_steps = steps[:, k, None] + steps[None, k, :]
            better = (through < time_s) | ((through == time_s) & (through_steps < steps))
            time_s = np.where(better, through, time_s)
            steps = np.where(better, through_steps, steps)
            next_step = np.where(better, next_step[:, k, None], next_step)
        return _Table(index, time_s, next_step, moves)


def layout_entries(shape: tuple[int, ...], needs_gradient: bool) -> tuple[Entry, ...]:
    """Entries that a tensor of `shape` may have on one axis; dimensions of size 1 stay whole."""
    splits = tuple(Split(dim) for dim, size in enumerate(shape) if size > 1)
    return (B, BP, P, *splits) if needs_gradient else (B, P, *splits)


@dataclass(frozen=True)
class _Table:
    """All-pairs conversions of one tensor: [layout, layout] seconds and the first step of each."""

    index: dict[Layout, int]
    time_s: NDArray[np.float64]
    next_step: NDArray[np.int64]
    moves: dict[tuple[int, int], Move]

    def at(self, layout: Layout) -> int:
        """Row and column of `layout`."""
        try:
            return self.index[layout]
        except KeyError:
            entries = ", ".join(dict.fromkeys(str(e) for known in self.index for e in known))
            raise LayoutError(
                f"no boxing for layout {layout}: the entries of this tensor are {entries}."
            ) from None
