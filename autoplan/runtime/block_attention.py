"""Attention of some queries to some keys, and its gradients, as parts of a larger softmax.

Shapes: q [*b, h, q, d], k [*b, g, k, d], v [*b, g, k, e], where query head i reads key head
i // (h / g); the mask broadcasts to [*b, h, q, k]. Sixteen-bit types are summed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_BYTES = 1 << 26
"""Scores that are held at once where no kernel computes them inside, unless one row has more."""


@dataclass(frozen=True)
class Block:
    """Queries, keys and values that meet. `causal`: query i reads keys up to i of as many."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    causal: bool = False

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.q.shape[-3] // self.k.shape[-3] if self.q.ndim > 2 else 1

    @property
    def is_fused(self) -> bool:
        """Whether one kernel does it: four dimensions, heads of one width, no mask."""
        widths = {self.q.shape[-1], self.k.shape[-1], self.v.shape[-1]}
        shaped = self.q.ndim == 4 and len(widths) == 1 and self.mask is None
        return shaped and self.q.device.type == "cpu" and self.q.numel() * self.k.numel() > 0


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of `dtype` are summed."""
    return torch.float32 if dtype.itemsize < 4 else dtype


@dataclass(frozen=True)
class Attended:
    """Attention `out` [*b, h, q, e], and of each row [*b, h, q] its largest score, `peak`, and
    `total`, the sum of exp(score - peak).

    Apart, as their log-sum-exp loses `total` beside a large peak: rows of which a mask hides every
    key by a large negative number. A row that reads any key has a total of at least one; one that
    reads none has a peak of minus infinity and a total of zero.
    """

    out: Tensor
    peak: Tensor
    total: Tensor

    def rows(self, rows: slice) -> Attended:
        """A view of some queries."""
        return Attended(self.out[..., rows, :], self.peak[..., rows], self.total[..., rows])

    def add(self, other: Attended) -> None:
        """Adds, in place, what the same queries read of further keys; `other` is spent.

        Weighted by what each has of the sum (Milakov, Gimelshein, "Online normalizer calculation
        for softmax", 2018).
        """
        peak = torch.maximum(self.peak, other.peak)
        ours = torch.exp(self.peak - _finite(peak)).mul_(self.total)
        theirs = torch.exp(other.peak - _finite(peak)).mul_(other.total)
        total = ours + theirs
        for out, share in ((self.out, ours), (other.out, theirs)):
            out.mul_(share.div_(_divisor(total)).unsqueeze(-1))
        self.out.add_(other.out)
        self.peak.copy_(peak)
        self.total.copy_(total)


def attend(block: Block) -> Attended:
    """The block's own attention, wide."""
    if block.is_fused:
        # torch >= 2.11: what scaled_dot_product_attention calls on CPU. Without a mask, scores are
        # rounded as coarsely as their log-sum-exp, which stands as a peak with a total of one.
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            block.q, block.k, block.v, 0.0, block.causal, scale=block.scale
        )
        return Attended(out.to(wide(out.dtype)), log_sum, torch.ones_like(log_sum))
    dtype = wide(block.q.dtype)
    out = block.q.new_zeros((*block.q.shape[:-1], block.v.shape[-1]), dtype=dtype)
    peak = block.q.new_full(block.q.shape[:-1], float("-inf"), dtype=dtype)
    total = torch.zeros_like(peak)
    keys, values = block.k.to(dtype), block.v.to(dtype)
    for rows in _tiles(block):
        scores = _scores(block, keys, rows)
        largest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(_finite(largest)).exp_()
        found = weights.sum(-1, keepdim=True)
        out[..., rows, :] = _by_query_head((weights @ values).div_(_divisor(found)), block)
        peak[..., rows] = _by_query_head(largest, block).squeeze(-1)
        total[..., rows] = _by_query_head(found, block).squeeze(-1)
        del scores, weights
    return Attended(out, peak, total)


@dataclass(frozen=True)
class Gradients:
    """Gradients of a block's tensors; of the mask where it was wanted."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None


def attend_backward(
    block: Block, whole: Attended, grad: Tensor, mask_too: bool = False
) -> Gradients:
    """What the block adds to gradients, where its queries read `whole` of all keys."""
    if block.is_fused:
        log_sum = whole.peak + whole.total.log()
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(grad, block.q, block.k, block.v, whole.out, log_sum, 0.0, block.causal),
            scale=block.scale,
        )  # torch >= 2.11
        return Gradients(*found)
    dtype = wide(block.q.dtype)
    result = Gradients(
        torch.zeros_like(block.q, dtype=dtype),
        torch.zeros_like(block.k, dtype=dtype),
        torch.zeros_like(block.v, dtype=dtype),
        torch.zeros_like(block.mask, dtype=dtype) if mask_too and block.mask is not None else None,
    )
    keys, values = block.k.to(dtype), block.v.to(dtype)
    for rows in _tiles(block):
        scores = _scores(block, keys, rows)
        ours = whole.rows(rows)
        peak = _by_key_head(_finite(ours.peak).unsqueeze(-1), block)
        total = _by_key_head(_divisor(ours.total).unsqueeze(-1), block)
        weights = scores.sub_(peak).exp_().div_(total)
        del scores
        gradient = _by_key_head(grad[..., rows, :].to(dtype), block)
        result.v.add_(weights.mT @ gradient)
        slope = gradient @ values.mT
        attended = _by_key_head(ours.out.to(dtype), block)
        slope.sub_((gradient * attended).sum(-1, keepdim=True)).mul_(weights)
        del weights, gradient, attended
        if result.mask is not None:
            given = _by_query_head(slope, block)
            own = result.mask if result.mask.shape[-2] == 1 else result.mask[..., rows, :]
            own += given.sum_to_size(own.shape)
        slope.mul_(block.scale)
        result.q[..., rows, :] = _by_query_head(slope @ keys, block)
        result.k.add_(slope.mT @ _by_key_head(block.q[..., rows, :].to(dtype), block))
        del slope
    return result


def tile_rows(rows: int, row_bytes: int) -> int:
    """Queries that are taken at once, where scores of one, of all heads, have `row_bytes`."""
    return max(1, min(rows, TILE_BYTES // max(row_bytes, 1)))


def _tiles(block: Block) -> list[slice]:
    """Queries whose scores are held together; none where there is no key to read."""
    rows = block.q.shape[-2] if block.k.shape[-2] else 0
    heads = math.prod(block.q.shape[:-2])
    count = tile_rows(rows, heads * block.k.shape[-2] * wide(block.q.dtype).itemsize)
    return [slice(start, min(start + count, rows)) for start in range(0, rows, count)]


def _scores(block: Block, keys: Tensor, rows: slice) -> Tensor:
    """Scores of some queries [*b, g, h / g * q, k], or [q, k] without heads."""
    queries = _by_key_head(block.q[..., rows, :].to(keys.dtype), block)
    scores = (queries @ keys.mT).mul_(block.scale)
    grouped = scores if block.q.ndim < 3 else torch.unflatten(scores, -2, (block.groups, -1))
    if block.mask is not None:
        mask = block.mask if block.mask.shape[-2] == 1 else block.mask[..., rows, :]
        if mask.ndim > 2:
            groups = block.groups if mask.shape[-3] > 1 else 1
            mask = torch.unflatten(mask, -3, (mask.shape[-3] // groups, groups))
        if mask.dtype == torch.bool:
            grouped.masked_fill_(~mask, float("-inf"))
        else:
            grouped.add_(mask)
    if block.causal:
        own = torch.arange(rows.start, rows.stop, device=scores.device)
        columns = torch.arange(keys.shape[-2], device=scores.device)
        grouped.masked_fill_(columns > own[:, None], float("-inf"))
    return scores


def _by_key_head(x: Tensor, block: Block) -> Tensor:
    """[*b, h, q, d] as [*b, g, h / g * q, d]: what reads one key head side by side."""
    if x.ndim < 3 or block.groups == 1:
        return x
    return torch.unflatten(x, -3, (x.shape[-3] // block.groups, block.groups)).flatten(-3, -2)


def _by_query_head(x: Tensor, block: Block) -> Tensor:
    """What `_by_key_head` has undone."""
    if x.ndim < 3 or block.groups == 1:
        return x
    return torch.unflatten(x, -2, (block.groups, x.shape[-2] // block.groups)).flatten(-4, -3)


def _finite(peak: Tensor) -> Tensor:
    """Rows that read no key have minus infinity: their weights are then zero, not undefined."""
    return peak.clamp(min=torch.finfo(peak.dtype).min)


def _divisor(total: Tensor) -> Tensor:
    """Totals, but one for rows that read no key; others have at least one."""
    return total.clamp(min=1)
