"""Rewrites that open better layouts: causal masks as flags, fused projections in pieces."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def state_epsilon(graph: fx.Graph) -> None:
    """A norm that is given no epsilon gets that of the model's type, whatever it is proven in."""
    for node in graph.find_nodes(op="call_function", target=aten.rms_norm.default):
        names = ("input", "normalized_shape", "weight", "eps")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if given.get("eps") is None:
            dtype = given["input"].meta["val"].dtype
            # Half precision is computed in float32.
            epsilon = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
            node.args = (node.args[0], given["normalized_shape"], given.get("weight"), epsilon)
            node.kwargs = {}


def use_causal_flag(graph: fx.Graph, constants: Mapping[str, torch.Tensor]) -> None:
    """A constant lower-triangular attention mask becomes `is_causal=True`: fewer bytes."""
    causal: dict[str, bool] = {}  # Layers share a mask of length^2 bytes: it is read once.
    for node in graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    ):
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        mask: Any = given.get("attn_mask")
        base = mask
        if mask is None or given.get("is_causal"):
            continue
        while base.op == "call_function" and base.target in (
            aten.expand.default,
            aten.alias.default,
        ):
            base = base.args[0]
        value = constants.get(base.name)
        query, key = given["query"].meta["val"], given["key"].meta["val"]
        if value is None or value.dtype != torch.bool or query.shape[-2] != key.shape[-2]:
            continue
        rows = query.shape[-2]
        if value.numel() != rows * rows or value.shape[-2:] != (rows, rows):
            continue
        if base.name not in causal:
            triangle = torch.ones(rows, rows, dtype=torch.bool).tril()
            causal[base.name] = torch.equal(value.reshape(rows, rows), triangle)
        if not causal[base.name]:
            continue
        kwargs = {k: v for k, v in node.kwargs.items() if k not in names}
        node.args = (
            given["query"],
            given["key"],
            given["value"],
            None,
            given.get("dropout_p", 0.0),
            True,
        )
        node.kwargs = kwargs


def use_grouped_heads(graph: fx.Graph) -> None:
    """Key and value heads repeated for their groups of query heads become `enable_gqa=True`.

    Ranks that split the query heads then share what they read of fewer key heads.
    """
    for node in graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    ):
        if len(node.args) < 3 or node.kwargs.get("enable_gqa"):
            continue
        query, *repeated = node.args[:3]
        bases = [_before_repetition(each) for each in repeated]
        if query.meta["val"].ndim == 4 and all(bases):
            node.args = (query, *bases, *node.args[3:])
            node.kwargs = {**node.kwargs, "enable_gqa": True}


def _before_repetition(node: Any) -> fx.Node | None:
    """The [b, h, s, d] that `node` repeats: [b, h, 1, s, d] expanded to [b, h, g, s, d], joined."""
    if node.op != "call_function" or node.target not in (aten.reshape.default, aten.view.default):
        return None
    expand = node.args[0]
    if expand.op != "call_function" or expand.target != aten.expand.default:
        return None
    unsqueeze = expand.args[0]
    if unsqueeze.op != "call_function" or unsqueeze.target != aten.unsqueeze.default:
        return None
    base = unsqueeze.args[0]
    if not isinstance(base, fx.Node) or base.meta["val"].ndim != 4:
        return None
    batch, heads, length, width = base.meta["val"].shape
    groups = expand.meta["val"].shape[2]
    wanted = (batch, heads, 1, length, width), (batch, heads, groups, length, width)
    found = tuple(unsqueeze.meta["val"].shape), tuple(expand.meta["val"].shape)
    joined = (batch, heads * groups, length, width)
    return base if found == wanted and tuple(node.meta["val"].shape) == joined else None


def split_fused_projections(graph: fx.Graph) -> None:
    """`split(addmm(b, x, W))` becomes one addmm a piece, with W and b split instead of the result.

    A fused query-key-value projection has no column split that keeps heads together; its pieces
    have. The pieces of W are cut once a step, from whatever layout W is stored in.
    """
    for split in list(graph.find_nodes(op="call_function", target=aten.split.Tensor)):
        reshape, product = None, split.args[0]
        if product.op == "call_function" and product.target in (
            aten.view.default,
            aten.reshape.default,
        ):
            reshape, product = product, product.args[0]
        dim = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
        value = split.args[0].meta["val"]
        chain = [each for each in (reshape, product) if each is not None]
        if (
            product.op != "call_function"
            or product.target not in (aten.addmm.default, aten.linear.default)
            or any(len(each.users) != 1 for each in chain)
            or dim % value.ndim != value.ndim - 1
            or value.shape[-1] != product.meta["val"].shape[-1]
            or value.shape[-1] % split.args[1]
            or product.kwargs
            or not _bias_is_a_row(product, value.shape[-1])
        ):
            continue
        _split_projection(graph, split, reshape, product)


def _bias_is_a_row(product: fx.Node, width: int) -> bool:
    """Whether the projection has no bias, or one number a column."""
    if product.target == aten.addmm.default:
        bias: Any = product.args[0]
    else:
        bias = product.args[2] if len(product.args) > 2 else None
    return bias is None or tuple(bias.meta["val"].shape) == (width,)


def _split_projection(
    graph: fx.Graph, split: fx.Node, reshape: fx.Node | None, product: fx.Node
) -> None:
    width: Any = split.args[1]
    fused_addmm = product.target == aten.addmm.default
    operands: Any = product.args
    if fused_addmm:
        bias, x, weight = operands[:3]
        weight_dim = 1
    else:
        x, weight, *rest = operands
        bias, weight_dim = (rest[0] if rest else None), 0
    pieces: Any = split.meta["val"]

    def emit(
        target: Any, args: tuple[Any, ...], value: torch.Tensor | list[torch.Tensor]
    ) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta.update(product.meta)
        node.meta["val"] = value
        return node

    def cut(source: fx.Node, dim: int) -> list[fx.Node]:
        values = list(torch.split(source.meta["val"], width, dim))
        whole = emit(aten.split.Tensor, (source, width, dim), values)
        return [emit(operator.getitem, (whole, i), value) for i, value in enumerate(values)]

    with graph.inserting_before(product):
        weights = cut(weight, weight_dim)
        biases = cut(bias, 0) if bias is not None else [None] * len(weights)
        outputs = []
        for part, addend, piece in zip(weights, biases, pieces, strict=True):
            shape = (*product.meta["val"].shape[:-1], width)
            value = torch.empty(shape, dtype=piece.dtype, device="meta")
            if fused_addmm:
                out = emit(aten.addmm.default, (addend, x, part), value)
            else:
                out = emit(aten.linear.default, (x, part, *([addend] if addend else [])), value)
            if reshape is not None:
                out = emit(aten.reshape.default, (out, list(piece.shape)), piece)
            outputs.append(out)
    for user in list(split.users):
        number: Any = user.args[1]
        user.replace_all_uses_with(outputs[number])
        graph.erase_node(user)
    for node in (split, reshape, product):
        if node is not None:
            graph.erase_node(node)
