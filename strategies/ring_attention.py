"""Ring attention as a candidate: what it needs, what it runs, and what it costs.

Label `ring` splits queries and keys along the sequence on one axis; `autoplan.runtime.ring` is the
program. Other axes may split batch and heads beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound
from autoplan.strategies.rule import InnerCollective, OpCall, OpMemory, TensorMeta

RING = "ring"

TILE_BYTES = 1 << 26
"""As in `autoplan.runtime.block_attention`: rules do not know the runtime."""


def indices(call: OpCall) -> tuple[str, str]:
    """How queries and keys along the sequence are called; a causal flag ties them together."""
    causal = bool(call.argument(5, "is_causal", False))
    if not _parts(call):
        return "[q]" if causal else "q", "[k]"
    return (RING, RING) if causal else ("q", "k")


def _parts(call: OpCall) -> int:
    """A number that ring sizes must divide; 0 where no ring does it.

    Every rank has as many queries, and as many keys, as the others; with a causal flag two half-
    parts of both. Dropout has no ring.
    """
    queries, keys = (meta.shape[-2] for meta in call.inputs[:2])
    if call.argument(4, "dropout_p", 0.0) or not call.inputs[0].dtype.is_floating_point:
        return 0
    if call.argument(5, "is_causal", False):
        return queries // 2 if queries == keys and queries % 2 == 0 and queries > 2 else 0
    found = math.gcd(queries, keys)
    return found if found > 1 else 0


def with_ring(call: OpCall, bound: Bound) -> Bound:
    """`bound` of `indices`, with the size that a ring cuts; a mask then holds every key."""
    parts = _parts(call)
    if not parts:
        return bound
    masks = tuple(tuple(None if i == "k" else i for i in dims) for dims in bound.inputs[3:])
    return replace(
        bound,
        inputs=(*bound.inputs[:3], *masks),
        sizes={**bound.sizes, RING: parts},
        aligned=bound.aligned | {RING},
    )


def permits(labels: tuple[str, ...]) -> bool:
    """One axis is the ring, which alone splits the sequence."""
    return labels.count(RING) == 1 and "q" not in labels


def program(context: LocalContext, q: Any, k: Any, v: Any, given: Mapping[str, Any]) -> Any:
    """The call of the blockwise program; `given` are the op's arguments after the value."""
    (axis,) = context.axes(RING)
    mask, scale = given.get("attn_mask"), given.get("scale")
    return context.comm.blockwise(
        "ring_attention",
        *(q, k, v, *(() if mask is None else (mask,))),
        axis=axis,
        scale=1.0 / math.sqrt(context.call.inputs[0].shape[-1]) if scale is None else scale,
        causal=bool(given.get("is_causal")),
    )


def inner(
    call: OpCall, context: LocalContext, k: TensorMeta, v: TensorMeta
) -> Iterator[InnerCollective]:
    """Keys and values on their way, with their gradients on the way back; `k`, `v`: a rank's own.

    A causal flag adds the exchanges of half-parts: operands there, the result back, and in
    backward the other way.
    """
    (axis,) = context.axes(RING)
    ranks = context.mesh.size(axis)
    q, out = context.input_meta(0), context.output_meta()
    sums = sum(meta.numel * _wide(meta) for meta in (k, v))
    operands = {0: q, 1: k, 2: v}
    causal = bool(call.argument(5, "is_causal", False))
    there = ranks * sum(meta.num_bytes for meta in operands.values())
    if causal:
        yield InnerCollective("all_to_all", there, axis)
        yield InnerCollective("all_to_all", ranks * out.num_bytes, axis)
    blocks = k.num_bytes + v.num_bytes
    for _ in range(ranks - 1):
        yield InnerCollective("send", blocks, axis)
    if not any(meta.requires_grad for meta in call.outputs):
        return
    wanted = [meta for at, meta in operands.items() if call.inputs[at].requires_grad]
    travels = any(meta.requires_grad for meta in call.inputs[1:3])
    for _ in range(ranks - 1):
        yield InnerCollective("send", blocks + (sums if travels else 0), axis, backward=True)
    if travels:
        yield InnerCollective("send", sums, axis, backward=True)
    if causal:
        yield InnerCollective("all_to_all", ranks * out.num_bytes, axis, backward=True)
        back = ranks * sum(meta.num_bytes for meta in wanted)
        yield InnerCollective("all_to_all", back, axis, backward=True)


def memory(
    call: OpCall, context: LocalContext, k: TensorMeta, v: TensorMeta, fused: bool
) -> OpMemory:
    """Own shards and two numbers a row are kept; one or two blocks of keys and values pass by.

    `fused`: whether a kernel computes scores inside; where not, some rows of them are held.
    """
    q, out, ranks = context.input_meta(0), context.output_meta(), _ranks(context)
    causal, mask = bool(call.argument(5, "is_causal", False)), call.inputs[3:]
    wide, half = _wide(q), q.itemsize < 4
    rows = q.numel // max(q.shape[-1], 1)
    numbers, operands = 2 * rows * wide, q.num_bytes + k.num_bytes + v.num_bytes
    blocks, sums = k.num_bytes + v.num_bytes, wide * (k.numel + v.numel)
    scores = 0 if fused else _scores_bytes(rows, q.shape[-2], k.shape[-2], wide)
    # Where no kernel takes them, keys and values are widened, and some rows of the rest.
    widened = sums if half and not fused else 0
    tile = 0 if fused else scores // max(k.shape[-2], 1)
    result, total = out.num_bytes, wide * out.numel
    gathered, smaller = wide * (q.numel + k.numel + v.numel), min(q.num_bytes, blocks) // 2
    passing = (2 if ranks > 2 else 1) * blocks
    parts = total + numbers + (result if half and fused else scores + tile * v.shape[-1] + widened)
    values = wide * v.numel + tile * v.shape[-1] * (3 if half else 0)
    found = operands if fused else gathered + 2 * scores + values + widened
    before = gathered - operands
    if not causal:
        return OpMemory(
            (0, 1, 2, "output", *((3,) if mask else ())),
            kept=numbers,
            forward=(total - result if half else 0) + max(passing, blocks + parts),
            backward=before + max(passing + sums, blocks + found),
        )
    # Zigzag copies are kept; half-parts travel in one exchange, from one buffer to another. Other
    # blocks than the first are half as large.
    later = max(passing + sums, blocks + found - smaller - (0 if fused else scores))
    return OpMemory(
        (),
        kept=operands + result + numbers,
        forward=max(
            operands + parts - 2 * result,
            (total - result if half else 0) + max(passing, blocks + parts) - result,
            blocks + result // 2,
            result,
        ),
        backward=max(before + max(later, found + result) + result, operands),
    )


def _scores_bytes(rows: int, queries: int, keys: int, wide: int) -> int:
    """Scores of as many queries as a tile has."""
    row = rows // max(queries, 1) * keys * wide
    return row * max(1, min(queries, TILE_BYTES // max(row, 1)))


def _ranks(context: LocalContext) -> int:
    (axis,) = context.axes(RING)
    return context.mesh.size(axis)


def _wide(meta: TensorMeta) -> int:
    """Bytes of a number while it is summed."""
    return max(meta.itemsize, 4)
