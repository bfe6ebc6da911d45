"""Scaled dot-product attention: split over batch, heads, and queries where no causal flag is.

Queries and keys together are split along the sequence by a ring; see `strategies.ring_attention`.

Fewer key heads than query heads split in two ways: matching groups of both, or query heads alone,
where every rank holds all keys and takes the heads that its queries need (Ainslie et al. 2023,
section 2.2, say so of a single key head).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from autoplan.errors import RuleError
from autoplan.strategies import ring_attention
from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound, bind, parse
from autoplan.strategies.rule import InnerCollective, OpCall, OpMemory, Rule, TensorMeta


def _mask_given(call: OpCall) -> bool:
    return len(call.inputs) == 4


def _is_causal(call: OpCall) -> bool:
    return bool(call.argument(5, "is_causal", False))


def _is_grouped(call: OpCall) -> bool:
    """Whether several query heads share a key head."""
    return len(call.inputs[0].shape) > 2 and call.inputs[0].shape[-3] != call.inputs[1].shape[-3]


def _attention(call: OpCall) -> Bound:
    """Keys and sizes are whole. Query heads are `g` where key heads `h` are fewer.

    Groups of both, label `h`, cut where the number of groups does.
    """
    queries, keys = ring_attention.indices(call)
    shapes = list(call.input_shapes[:3])
    grouped = _is_grouped(call)
    query_heads, key_heads = ("*b g" if grouped else "*b h"), "*b h"
    if len(shapes[0]) == 2:
        query_heads = key_heads = ""
    terms = [f"{query_heads} {queries} [d]", f"{key_heads} {keys} [d]", f"{key_heads} {keys} [e]"]
    if _mask_given(call):
        mask = call.input_shapes[3]
        names = ["1" if mask[-3:-2] == (1,) else "g" if grouped else "h", "q", "k"]
        terms.append(" ".join([*(["*b"] if len(mask) > 3 else []), *names[-len(mask) :]]))
        shapes.append(mask)
    output = terms[0].replace("[d]", "[e]")
    bound = bind(parse(f"{', '.join(terms)} -> {output}"), shapes, call.output_shapes)
    bound = replace(bound, aligned=frozenset({"h"}) if grouped else frozenset())
    return ring_attention.with_ring(call, bound)


def _permits(labels: tuple[str, ...]) -> bool:
    """An axis that splits query heads alone cuts inside the groups that another axis splits; one
    axis is a ring, which alone splits the sequence."""
    inside = "g" not in labels or "h" not in labels[labels.index("g") :]
    return inside and (labels.count("ring") == 0 or ring_attention.permits(labels))


def _flops(call: OpCall) -> float:
    """Two matrix products; half of the scores where a causal flag masks the others."""
    *batch, queries, width = call.inputs[0].shape
    keys, value_width = call.inputs[2].shape[-2:]
    products = 2.0 * math.prod(batch) * queries * keys * (width + value_width)
    return products / 2 if _is_causal(call) else products


def _local_attention(
    context: LocalContext, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any
) -> Any:
    """The op itself, on the key heads of this rank's query heads."""
    names = ("attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    repeats = _repeats(context)
    if context.axes("g"):
        k, v = (_own_key_heads(context, each, repeats) for each in (k, v))
    if context.axes("ring"):
        return ring_attention.program(context, q, k, v, given)
    if given.get("dropout_p"):
        return _dropout_attention(context, q, k, v, given, repeats)
    if repeats is None:
        kwargs = {**kwargs, "enable_gqa": False}
    return context.same_op(q, k, v, *args, **kwargs)


def _repeats(context: LocalContext) -> int | None:
    """Query heads per key head on a rank; None where some have more than others.

    Key heads are then repeated, one for each query head.
    """
    call = context.call
    if not _is_grouped(call):
        return 1
    group = call.inputs[0].shape[-3] // call.inputs[1].shape[-3]
    if not context.axes("g"):
        return group
    parts = math.prod(context.mesh.size(axis) for axis in context.axes("g", "h"))
    heads, rest = divmod(call.inputs[0].shape[-3], parts)
    if rest or (heads % group and group % heads):
        return None
    return min(heads, group)


def _own_key_heads(context: LocalContext, x: Any, repeats: int | None) -> Any:
    """The heads of keys or values that this rank's query heads read."""
    call = context.call
    at = len(call.inputs[1].shape) - 3
    start, stop = context.input_ranges(0)[at]
    held, _ = context.input_ranges(1)[at]
    group = call.inputs[0].shape[at] // call.inputs[1].shape[at]
    first, last = start // group - held, -(-stop // group) - held
    x = torch.narrow(x, at, first, last - first)
    if repeats is not None:
        return x
    x = torch.ops.aten.repeat_interleave.self_int(x, group, at)
    return torch.narrow(x, at, start - (held + first) * group, stop - start)


def _own_keys(context: LocalContext) -> tuple[TensorMeta, TensorMeta]:
    """Keys and values as `_own_key_heads` leaves them."""
    k, v = context.input_meta(1), context.input_meta(2)
    if not context.axes("g"):
        return k, v
    at = len(k.shape) - 3
    start, stop = context.input_ranges(0)[at]
    group = context.call.inputs[0].shape[at] // context.call.inputs[1].shape[at]
    heads = -(-stop // group) - start // group if _repeats(context) else stop - start
    return (
        replace(k, shape=(*k.shape[:at], heads, *k.shape[at + 1 :])),
        replace(v, shape=(*v.shape[:at], heads, *v.shape[at + 1 :])),
    )


def _inner(call: OpCall, context: LocalContext) -> Iterable[InnerCollective]:
    return ring_attention.inner(call, context, *_own_keys(context)) if context.axes("ring") else ()


def _dropout_attention(
    context: LocalContext, q: Any, k: Any, v: Any, given: Mapping[str, Any], repeats: int | None
) -> Any:
    """Attention with dropout on its probabilities, whose mask must not depend on the plan."""
    (*batch, queries, width), keys = context.call.inputs[0].shape, context.call.inputs[1].shape[-2]
    if repeats is not None and repeats > 1:
        k = torch.ops.aten.repeat_interleave.self_int(k, repeats, -3)
        v = torch.ops.aten.repeat_interleave.self_int(v, repeats, -3)
    scale = given.get("scale") or 1.0 / math.sqrt(width)
    scores = torch.ops.aten.mul.Tensor(q, scale) @ torch.ops.aten.transpose.int(k, -2, -1)
    ranges = context.input_ranges(0)
    if given.get("is_causal"):
        scores = context.comm.causal_mask(scores, ranges[-2][0])
    mask = given.get("attn_mask")
    if mask is not None:
        if context.call.inputs[3].dtype == torch.bool:
            scores = torch.where(mask, scores, float("-inf"))
        else:
            scores = scores + mask
    weights = torch.ops.aten._safe_softmax.default(scores, -1)  # masked rows are zero
    starts = (*(low for low, _ in ranges[:-1]), 0)
    weights = context.comm.dropout(
        weights, given["dropout_p"], (*batch, queries, keys), starts, context.random_key
    )
    return weights @ v


def _memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """A fused kernel keeps its operands, its result and one number a row (Dao 2023, section 3.1).

    Where there is none, the probabilities are kept, and scaled copies of the operands; with
    dropout the flags too, and the probabilities that remain.
    """
    if context.axes("ring"):
        fused = _is_fused(call) and len(call.inputs) == 3
        return ring_attention.memory(call, context, *_own_keys(context), fused)
    q, k, v, out = *(context.input_meta(i) for i in range(3)), context.output_meta()
    rows, mask = q.numel // max(q.shape[-1], 1), call.inputs[3:]
    flags = context.input_meta(3).numel if mask and mask[0].dtype == torch.bool else 0
    # A mask of flags becomes one of numbers, except in our own program.
    as_numbers = flags * q.itemsize
    if _is_fused(call):
        saves = (*plain.saves, 3) if mask and not flags else plain.saves
        return OpMemory(saves, kept=rows * max(q.itemsize, 4) + as_numbers)
    scores = rows * k.shape[-2] * q.itemsize
    repeats = rows * k.shape[-2] // max(q.shape[-2] * k.numel // max(k.shape[-1], 1), 1)
    keys, values = max(repeats, 1) * k.num_bytes, max(repeats, 1) * v.num_bytes
    if call.argument(4, "dropout_p", 0.0):
        return OpMemory(
            (3,) if flags else (),
            kept=q.num_bytes + keys + values + 2 * scores + scores // q.itemsize,
            backward=max(0, scores - keys - values),
        )
    copied = repeats > 1
    # The gradient of the scores is that of a mask that is learned.
    learned = context.input_meta(3).num_bytes if mask and mask[0].requires_grad else 0
    return OpMemory(
        () if copied else (2,),
        kept=q.num_bytes + keys + scores + (values if copied else 0),
        forward=max(0, scores - out.num_bytes) + as_numbers + (keys if copied else 0),
        backward=max(0, scores - learned),
    )


def _is_fused(call: OpCall) -> bool:
    """Whether torch has one kernel for it: no dropout, heads of one width, a mask not learned."""
    widths = {shape[-1] for shape in call.input_shapes[:3]}
    learned = any(meta.requires_grad for meta in call.inputs[3:])
    batched = len(call.inputs[0].shape) == 4
    return batched and len(widths) == 1 and not learned and not call.argument(4, "dropout_p", 0.0)


def _fits(call: OpCall) -> Bound | None:
    ndims = {len(shape) for shape in call.input_shapes[:3]}
    if 2 in ndims and len(ndims) > 1:
        return None
    try:
        return _attention(call)
    except RuleError:
        return None


RULES: dict[str, Rule] = {
    "aten.scaled_dot_product_attention.default": Rule(
        _fits,
        kind="attention",
        saves=(0, 1, 2, "output"),
        memory=_memory,
        inner=_inner,
        flops=_flops,
        together={"h": ("g", "h"), "ring": ("q", "k")},
        permits=_permits,
        program=_local_attention,
    ),
}
