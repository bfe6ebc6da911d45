"""Scaled dot-product attention: split over batch, heads, and queries where no causal flag is."""

from __future__ import annotations

import math
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


def _attention(call: OpCall) -> Bound:
    """Keys and sizes are whole; fewer key heads than query heads split together with them."""
    queries = "[q]" if _is_causal(call) else "q"
    shapes = list(call.input_shapes[:3])
    query_heads, key_heads = shapes[0][-3], shapes[1][-3]
    # Fewer key heads: ranks take matching groups of heads; name both by the number of groups.
    heads = "h" if query_heads == key_heads else "(h g)"
    terms = [f"*b {heads} {queries} [d]", "*b h [k] [d]", "*b h [k] [e]"]
    if _mask_given(call):
        mask = call.input_shapes[3]
        names = [heads if mask[-3:-2] == (query_heads,) else "h", "q", "k"]
        terms.append(" ".join([*(["*b"] if len(mask) > 3 else []), *names[-len(mask) :]]))
        shapes.append(mask)
    output = terms[0].replace("[d]", "[e]")
    return bind(parse(f"{', '.join(terms)} -> {output}"), shapes, call.output_shapes)


def _flops(call: OpCall) -> float:
    """Two matrix products; half of the scores where a causal flag masks the others."""
    *batch, queries, width = call.inputs[0].shape
    keys, value_width = call.inputs[2].shape[-2:]
    products = 2.0 * math.prod(batch) * queries * keys * (width + value_width)
    return products / 2 if _is_causal(call) else products


def _dropout_attention(
    context: LocalContext, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any
) -> Any:
    """Attention with dropout on its probabilities, whose mask must not depend on the plan."""
    names = ("attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if not given.get("dropout_p"):
        return context.same_op(q, k, v, *args, **kwargs)
    (*batch, queries, width), keys = context.call.inputs[0].shape, context.call.inputs[1].shape[-2]
    if given.get("enable_gqa"):
        groups = context.call.inputs[0].shape[-3] // context.call.inputs[1].shape[-3]
        k = torch.ops.aten.repeat_interleave.self_int(k, groups, -3)
        v = torch.ops.aten.repeat_interleave.self_int(v, groups, -3)
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
    weights = torch.ops.aten.softmax.int(scores, -1)
    starts = (*(low for low, _ in ranges[:-1]), 0)
    weights = context.comm.dropout(
        weights, given["dropout_p"], (*batch, queries, keys), starts, context.random_key
    )
    return weights @ v


def _fits(call: OpCall) -> Bound | None:
    if any(len(shape) < 3 for shape in call.input_shapes[:3]):
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
        program=_dropout_attention,
    ),
}
