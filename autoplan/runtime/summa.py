"""SUMMA: a product of which no rank ever holds a whole factor (van de Geijn & Watts 1997).

y[b, o] = x[b, i] w[i, o]. Along the `row` axis ranks hold different b of x and y, and different i
of w; along the `column` axis different o of w and y, and different i of x. The index i goes by in
blocks: who holds one of x sends it along `column`, who holds one of w along `row`, and every rank
adds their product to its y. Without `row` a rank holds w over all of i, without `column` x.

Backward the blocks come by once more, and the gradient of each is summed to its owner: that of x,
dy w^H, over `column`, and that of w, x^H dy, over `row`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from autoplan.runtime.blockwise import Backward, Forward, View
from autoplan.runtime.requests import Broadcast, Reduce, Request, Shape


class Block(NamedTuple):
    """A range of i, and its owners: the rank on `row` that has it of w, on `column` of x."""

    start: int
    stop: int
    row: int
    column: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Summa:
    """`beta addend + alpha x w` on one rank, which holds x[..., i], and w[i, o] or w[o, i].

    blocks: all of i that the ranks of a `row` and a `column` hold together, as tuples, in order;
        as many on every rank of the mesh, of which some may be empty.
    transposed: whether w lies as [o, i]. addend: the shape of the addend, if there is one.
    """

    blocks: Sequence[tuple[int, int, int, int]]
    row: str | None = None
    column: str | None = None
    transposed: bool = False
    addend: Sequence[int] | None = None
    alpha: float = 1
    beta: float = 1

    def forward(self, view: View, *tensors: Tensor) -> Forward:
        x, w, *addend = tensors
        of_x, of_w = self._factors(view)
        rows, columns = tuple(x.shape[:-1]), w.shape[0 if self.transposed else 1]
        y = x.new_zeros(*rows, columns)
        if addend and self.beta:
            y.copy_(addend[0])
            if self.beta != 1:
                y.mul_(self.beta)
        flat = y.view(math.prod(rows), columns)
        for block in map(Block._make, self.blocks):
            # Nothing is left of a block before the next one comes.
            left = yield from of_x.bring(block, x, rows)
            right = yield from of_w.bring(block, w, (columns,))
            flat.addmm_(_rows(left), self._turned(right), alpha=self.alpha)
            del left, right
        # Each factor is kept for the gradient of the other.
        factors = zip((w, x), view.wants[:2], strict=True)
        return y, tuple(each for each, wanted in factors if wanted)

    def backward(self, view: View, kept: tuple[Tensor, ...], grad: Tensor) -> Backward:
        wants_x, wants_w, *wants_addend = view.wants
        w, x = kept[0] if wants_x else None, kept[-1] if wants_w else None
        of_x, of_w = self._factors(view)
        rows, columns = tuple(grad.shape[:-1]), grad.shape[-1]
        dy = _rows(grad)
        for block in map(Block._make, self.blocks):
            if w is not None:
                right = yield from of_w.bring(block, w, (columns,))
                part = _scaled(dy @ self._turned(right).mH, self.alpha)
                del right
                yield from of_x.collect(block, part.view(*rows, block.length))
                del part
            if x is not None:
                left = yield from of_x.bring(block, x, rows)
                other = _rows(left)
                part = dy.mT @ other.conj() if self.transposed else other.mH @ dy
                del left, other
                yield from of_w.collect(block, _scaled(part, self.alpha))
                del part
        return (
            of_x.gradient(grad, rows) if wants_x else None,
            of_w.gradient(grad, (columns,)) if wants_w else None,
            *(_scaled(grad.sum_to_size(self.addend or ()), self.beta) for _ in wants_addend),
        )

    def _factors(self, view: View) -> tuple[_Factor, _Factor]:
        """Of x and of w."""
        blocks = [Block._make(each) for each in self.blocks]
        inner = -1 if self.transposed else 0
        of_x = _Factor(view, self.column, -1, {each: each.column for each in blocks})
        return of_x, _Factor(view, self.row, inner, {each: each.row for each in blocks})

    def _turned(self, w: Tensor) -> Tensor:
        """A block of w as [i, o]."""
        return w.mT if self.transposed else w


class _Factor:
    """One factor: its blocks as they come by, and those of its gradient as they go home.

    Without an `axis` this rank owns all blocks. `dim`: that of i, the first or the last.
    """

    def __init__(self, view: View, axis: str | None, dim: int, owners: dict[Block, int]) -> None:
        self.axis, self.dim, self.owners = axis, dim, owners
        self.index = 0 if axis is None else view.index(axis)
        own = [b for b, owner in owners.items() if b.length and self._owns(owner)]
        self.start, self.stop = (own[0].start, own[-1].stop) if own else (0, 0)
        self.collected: Tensor | None = None

    def _owns(self, owner: int) -> bool:
        return self.axis is None or owner == self.index

    def bring(self, block: Block, shard: Tensor, others: Shape) -> Generator[Request, Any, Tensor]:
        """A block of the factor, whose other dimensions are `others`."""
        owner = self.owners[block]
        own = self._part(shard, block) if self._owns(owner) else None
        if self.axis is None:
            assert own is not None
            return own
        shape = self._shape(block.length, others)
        brought: Tensor = yield Broadcast(own, self.axis, owner, shape, shard.dtype)
        return brought

    def collect(self, block: Block, part: Tensor) -> Generator[Request, Any, None]:
        """Sum this rank's addend of a block's gradient with those of the others, to its owner."""
        owner = self.owners[block]
        if self.axis is not None:
            part = yield Reduce(part, self.axis, owner)
        if not block.length or not self._owns(owner):
            return
        if block.length == self.stop - self.start:
            self.collected = part
            return
        if self.collected is None:
            others = part.shape[:-1] if self.dim else part.shape[1:]
            self.collected = part.new_empty(self._shape(self.stop - self.start, others))
        self._part(self.collected, block).copy_(part)

    def gradient(self, like: Tensor, others: Shape) -> Tensor:
        """What was collected; of an empty shard nothing was."""
        if self.collected is None:
            return like.new_zeros(self._shape(0, others))
        return self.collected

    def _part(self, shard: Tensor, block: Block) -> Tensor:
        return shard.narrow(self.dim, block.start - self.start if block.length else 0, block.length)

    def _shape(self, length: int, others: Shape) -> Shape:
        return (*others, length) if self.dim else (length, *others)


def _rows(x: Tensor) -> Tensor:
    """All dimensions but the last as one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor
