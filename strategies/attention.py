"""Scaled dot-product attention: split over batch, heads, and queries where no causal flag is.

Fewer key heads than query heads split in two ways: matching groups of both, or query heads alone,
where every rank holds all keys and takes the heads that its queries need (Ainslie et al. 2023,
section 2.2, say so of a single key head).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from autoplan.errors import RuleError
from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound, bind, parse
from autoplan.strategies.rule import OpCall, Rule


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
    queries = "[q]" if _is_causal(call) else "q"
    shapes = list(call.input_shapes[:3])
    grouped = _is_grouped(call)
    query_heads, key_heads = ("*b g" if grouped else "*b h"), "*b h"
    if len(shapes[0]) == 2:
        query_heads = key_heads = ""
    terms = [f"{query_heads} {queries} [d]", f"{key_heads} [k] [d]", f"{key_heads} [k] [e]"]
    if _mask_given(call):
        mask = call.input_shapes[3]
        names = ["1" if mask[-3:-2] == (1,) else "g" if grouped else "h", "q", "k"]
        terms.append(" ".join([*(["*b"] if len(mask) > 3 else []), *names[-len(mask) :]]))
        shapes.append(mask)
    output = terms[0].replace("[d]", "[e]")
    bound = bind(parse(f"{', '.join(terms)} -> {output}"), shapes, call.output_shapes)
    return replace(bound, aligned=frozenset({"h"}) if grouped else frozenset())


def _groups_outermost(labels: tuple[str, ...]) -> bool:
    """An axis that splits query heads alone cuts inside the groups that another axis splits."""
    return "g" not in labels or "h" not in labels[labels.index("g") :]


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
        flops=_flops,
        together={"h": ("g", "h")},
        permits=_groups_outermost,
        program=_local_attention,
    ),
}
