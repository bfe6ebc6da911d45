"""Ring attention: queries, keys and values split along the sequence over one axis.

Keys and values travel around the ring, block by block, and every rank adds what its queries read
of each (Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers", 2023). With a causal
flag, contiguous parts would leave the first ranks idle: rank i of n takes half-parts i and
2n - 1 - i instead ("zigzag"; Brandon et al., "Striped Attention", 2023, balance likewise), and
blocks that the flag hides are left out, so that every rank computes as much at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoplan.runtime.block_attention import Attended, Block, attend, attend_backward, wide
from autoplan.runtime.blockwise import Backward, Forward, View
from autoplan.runtime.requests import Exchange, Request, Shift

Halves = tuple[int, int]
"""The two half-parts of the sequence, of 2n, that a rank holds, in order."""

Places = Callable[[int, int], Halves]
"""The half-parts of rank i of n."""

Meeting = Generator[Request, Any, tuple[Tensor, ...]]


def contiguous(rank: int, ranks: int) -> Halves:
    """As a split tensor lies."""
    return 2 * rank, 2 * rank + 1


def zigzag(rank: int, ranks: int) -> Halves:
    """One early half-part and one late one: as many pairs below the diagonal for every rank."""
    return rank, 2 * ranks - 1 - rank


@dataclass(frozen=True)
class Part:
    """The queries and keys of a rank's shards that meet at one step."""

    queries: slice
    keys: slice
    diagonal: bool = False


def part(causal: bool, rank: int, owner: int, queries: int, keys: int) -> Part:
    """What `queries` rows of `rank` read of the `keys` rows that `owner` holds.

    Causal, zigzag: a rank's own shards meet under the flag; every query reads the early half of
    an earlier owner; the late half of the queries reads all of a later one.
    """
    if not causal or rank == owner:
        return Part(slice(0, queries), slice(0, keys), causal)
    if owner < rank:
        return Part(slice(0, queries), slice(0, keys // 2))
    return Part(slice(queries // 2, queries), slice(0, keys))


@dataclass(frozen=True)
class RingAttention:
    """softmax(scale q k' + mask) v on shards along dimension -2; the mask holds all keys.

    Kept for backward: this rank's q, k, v, output, peaks and totals of its rows, and the mask. With
    a causal flag, which allows no mask, the number of rows is a multiple of two.
    """

    axis: str
    scale: float
    causal: bool = False

    def forward(self, view: View, *tensors: Tensor) -> Forward:
        q, k, v, *mask = tensors
        if self.causal:
            q, k, v = yield from rearrange(view, self.axis, [q, k, v], contiguous, zigzag)
        ranks, rank = view.size(self.axis), view.index(self.axis)
        keys, values = k, v
        whole: Attended | None = None
        for step in range(ranks):
            if step:
                keys, values = yield Shift((keys, values), self.axis)
            owner = (rank - step) % ranks
            rows, block = self._block(rank, owner, q, keys, values, mask)
            if whole is None:
                whole = attend(block)  # a rank's own shards: every query
            else:
                whole.rows(rows.queries).add(attend(block))
        assert whole is not None
        out = whole.out.to(q.dtype)
        kept = (q, k, v, out, whole.peak, whole.total, *mask)
        del keys, values, block, whole
        if self.causal:
            (out,) = yield from rearrange(view, self.axis, [out], zigzag, contiguous)
        return out, kept

    def backward(self, view: View, kept: tuple[Tensor, ...], grad: Tensor) -> Backward:
        q, k, v, out, peak, totals, *mask = kept
        whole = Attended(out, peak, totals)
        if self.causal:
            (grad,) = yield from rearrange(view, self.axis, [grad], contiguous, zigzag)
        ranks, rank = view.size(self.axis), view.index(self.axis)
        travels = view.wants[1] or view.wants[2]
        of_q, of_k, of_v = (torch.zeros_like(each, dtype=wide(q.dtype)) for each in (q, k, v))
        learned = [torch.zeros_like(each, dtype=wide(q.dtype)) for each in mask if view.wants[3]]
        keys, values = k, v
        for step in range(ranks):
            owner = (rank - step) % ranks
            rows, block = self._block(rank, owner, q, keys, values, mask)
            found = attend_backward(
                block,
                whole.rows(rows.queries),
                grad[..., rows.queries, :],
                mask_too=bool(learned),
            )
            of_q[..., rows.queries, :] += found.q
            of_k[..., rows.keys, :] += found.k
            of_v[..., rows.keys, :] += found.v
            for total in learned:
                _columns(total, owner, keys.shape[-2]).add_(found.mask)  # type: ignore[arg-type]
            del block, found
            # The sums travel with their keys, and go home when every rank has added to them.
            if step < ranks - 1 and travels:
                keys, values, of_k, of_v = yield Shift((keys, values, of_k, of_v), self.axis)
            elif step < ranks - 1:
                keys, values = yield Shift((keys, values), self.axis)
            elif travels:
                of_k, of_v = yield Shift((of_k, of_v), self.axis)
        del keys, values, grad
        sums = [of_q, of_k, of_v]
        del of_q, of_k, of_v
        wanted = []
        for wants in view.wants[:3]:
            total = sums.pop(0)
            if wants:
                wanted.append(total.to(q.dtype))
        del total
        if self.causal:
            wanted = list((yield from rearrange(view, self.axis, wanted, zigzag, contiguous)))
        of_masks = [each.to(q.dtype) for each in learned] if learned else [None] * len(mask)
        return *(wanted.pop(0) if wants else None for wants in view.wants[:3]), *of_masks

    def _block(
        self, rank: int, owner: int, q: Tensor, k: Tensor, v: Tensor, mask: Sequence[Tensor]
    ) -> tuple[Part, Block]:
        """What this rank's queries `q` read of the keys of `owner`."""
        each = part(self.causal, rank, owner, q.shape[-2], k.shape[-2])
        flags = _columns(mask[0], owner, k.shape[-2]) if mask else None
        queries, keys, values = q[..., each.queries, :], k[..., each.keys, :], v[..., each.keys, :]
        return each, Block(queries, keys, values, flags, self.scale, each.diagonal)


def _columns(mask: Tensor, owner: int, keys: int) -> Tensor:
    """The view of a mask for the keys of `owner`; one that broadcasts over keys is for all."""
    return mask if mask.shape[-1] == 1 else mask.narrow(-1, owner * keys, keys)


def rearrange(
    view: View, axis: str, tensors: list[Tensor], source: Places, target: Places
) -> Meeting:
    """Tensors of one type, split along dimension -2, as `target` has the half-parts of `source`.

    All travel in one exchange. They are taken from the list, so that they are free to go.
    """
    ranks, rank = view.size(axis), view.index(axis)
    held, wanted = source(rank, ranks), target(rank, ranks)
    halves = [torch.unflatten(each, -2, (2, each.shape[-2] // 2)) for each in tensors]
    tensors.clear()
    shapes = [each.select(-3, 0).shape for each in halves]
    sizes = [shape.numel() for shape in shapes]
    empty = halves[0].new_empty(0)
    parts = [
        [(half, at) for at, each in enumerate(held) if each in target(other, ranks)
         for half in halves]
        for other in range(ranks)
    ]  # fmt: skip
    arriving = [[each for each in source(other, ranks) if each in wanted] for other in range(ranks)]
    lengths = tuple((len(each) * sum(sizes),) for each in arriving)
    sent = tuple(
        torch.cat([half.select(-3, at).reshape(-1) for half, at in each]) if each else empty
        for each in parts
    )
    del halves, parts
    request = [Exchange(sent, lengths, axis)]
    del sent
    found: dict[int, Sequence[Tensor]] = {}
    for numbers, flat in zip(arriving, (yield request.pop()), strict=True):
        for number, piece in zip(numbers, flat.split(sum(sizes)), strict=False):
            found[number] = piece.split(sizes)
    return tuple(
        torch.stack([found[number][at].view(shape) for number in wanted], -3).flatten(-3, -2)
        for at, shape in enumerate(shapes)
    )
