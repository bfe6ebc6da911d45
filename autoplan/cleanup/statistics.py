"""Running statistics that an op writes without saying so become writes that the graph shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def write_instance_statistics(graph: fx.Graph) -> None:
    """Train-mode instance norm moves its running statistics by explicit ops, before functionalise.

    They follow the images' mean and unbiased variance, averaged over the batch.
    """
    for node in list(graph.find_nodes(op="call_function", target=aten.instance_norm.default)):
        mean, use_input = node.args[3], node.args[5]
        if isinstance(mean, fx.Node) and use_input:
            _write_statistics(graph, node)


def _write_statistics(graph: fx.Graph, node: fx.Node) -> None:
    given: tuple[Any, ...] = node.args
    x, weight, bias, running_mean, running_var, _, momentum, *rest = given
    last = node

    def emit(target: Any, args: tuple[Any, ...], like: torch.Tensor, *shape: int) -> fx.Node:
        nonlocal last
        with graph.inserting_after(last):
            last = graph.call_function(target, args)
        last.meta.update(node.meta)
        last.meta["val"] = torch.empty(shape, dtype=like.dtype, device="meta")
        return last

    def move(running: fx.Node, value: fx.Node) -> None:
        """running = (1 - momentum) * running + momentum * value"""
        kept = emit(aten.mul.Tensor, (running, 1.0 - momentum), held, channels)
        added = emit(aten.mul.Tensor, (value, momentum), held, channels)
        moved = emit(aten.add.Tensor, (kept, added), held, channels)
        emit(aten.copy_.default, (running, moved), held).meta["val"] = running.meta["val"]

    image, held = x.meta["val"], running_mean.meta["val"]
    batch, channels, *_ = image.shape
    pixels = list(range(2, image.ndim))
    rows = emit(aten.detach.default, (x,), image, *image.shape)
    if image.dtype != held.dtype:
        rows = emit(aten.to.dtype, (rows, held.dtype), held, *image.shape)
    move(running_mean, emit(aten.mean.dim, (rows, [0, *pixels]), held, channels))
    variances = emit(aten.var.dim, (rows, pixels), held, batch, channels)
    move(running_var, emit(aten.mean.dim, (variances, [0]), held, channels))
    node.args = (x, weight, bias, None, None, True, momentum, *rest)
