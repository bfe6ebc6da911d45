"""Losses: means over split rows, and cross-entropy with the classes split (vocabulary-parallel)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from autoplan.boxing import Step
from autoplan.layouts import B, P
from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import InnerCollective, OpCall, Rule

_NONE, _MEAN, _SUM = 0, 1, 2


def _reduction(call: OpCall) -> int:
    return int(call.argument(3 if "cross_entropy" in call.op else 2, "reduction", _MEAN))


def _cross_entropy(call: OpCall) -> str | None:
    """Class indices only; class weights and label smoothing need the classes whole."""
    if len(call.inputs[0].shape) < 2 or call.inputs[1].dtype.is_floating_point:
        return None
    classes = "[c]" if _needs_whole_classes(call) else "c"
    weight = ", [c]" if len(call.inputs) == 3 else ""
    rows = "n *d" if _reduction(call) == _NONE else ""
    return f"n {classes} *d, n *d{weight} -> {rows}"


def _needs_whole_classes(call: OpCall) -> bool:
    return len(call.inputs) == 3 or bool(call.argument(5, "label_smoothing", 0.0))


def _row_indices(call: OpCall) -> tuple[str, ...]:
    return ("n", *(f"d{i}" for i in range(len(call.inputs[0].shape) - 2)))


def _local_cross_entropy(
    context: LocalContext, logits: Any, target: Any, *args: Any, **kwargs: Any
) -> Any:
    """Rows, classes, or both split.

    A mean divides by the number of rows that count on all ranks together, so each rank's part is an
    addend. Split classes are reduced here: the result lies whole along their axes.
    """
    call = context.call
    row_axes, class_axes = context.axes(*_row_indices(call)), context.axes("c")
    if not row_axes and not class_axes:
        return context.same_op(logits, target, *args, **kwargs)
    reduction = _reduction(call)
    ignore = int(call.argument(4, "ignore_index", -100))
    smoothing = float(call.argument(5, "label_smoothing", 0.0))
    weight = args[0] if args else kwargs.get("weight")
    if class_axes:
        rows = _split_class_losses(context, logits, target, class_axes, ignore)
        loss = rows if reduction == _NONE else torch.sum(rows)
    else:
        local = _NONE if reduction == _NONE else _SUM
        loss = torch.ops.aten.cross_entropy_loss.default(
            logits, target, weight, local, ignore, smoothing
        )
    if reduction != _MEAN:
        return loss
    counted = torch.ne(target, ignore)
    if weight is None:
        total = torch.ops.aten.to.dtype(torch.sum(counted), call.inputs[0].dtype)
    else:
        safe = torch.ops.aten.masked_fill.Scalar(target, torch.logical_not(counted), 0)
        total = torch.sum(torch.mul(torch.ops.aten.index.Tensor(weight, [safe]), counted))
    for axis in row_axes:
        total = context.box(total, Step(axis, P, B, (0, 0)))
    return torch.div(loss, total)


def _split_class_losses(
    context: LocalContext, logits: Any, target: Any, axes: tuple[str, ...], ignore: int
) -> Any:
    """Loss of each row from a slice of its classes: log-sum-exp and target logit, both reduced."""
    comm = context.comm
    shift = torch.amax(torch.ops.aten.detach.default(logits), 1)
    for axis in axes:
        shift = comm.all_reduce_max(shift, axis)
    total = torch.sum(torch.exp(torch.sub(logits, torch.unsqueeze(shift, 1))), 1)
    start, stop = context.input_ranges(0)[1]
    elsewhere = torch.logical_or(torch.lt(target, start), torch.ge(target, stop))
    local = torch.ops.aten.masked_fill.Scalar(torch.sub(target, start), elsewhere, 0)
    picked = torch.squeeze(torch.gather(logits, 1, torch.unsqueeze(local, 1)), 1)
    picked = torch.ops.aten.masked_fill.Scalar(picked, elsewhere, 0.0)
    for axis in axes:
        total = context.box(total, Step(axis, P, B, (0, 0)))
        picked = context.box(picked, Step(axis, P, B, (0, 0)))
    rows = torch.sub(torch.add(torch.log(total), shift), picked)
    return torch.ops.aten.masked_fill.Scalar(rows, torch.eq(target, ignore), 0.0)


def _inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    """The collectives of `_local_cross_entropy`; their backward moves nothing."""
    if class_axes := context.axes("c"):
        start, stop = context.input_ranges(0)[1]
        row_bytes = context.input_bytes(0) // (stop - start)
        for axis in class_axes:
            for _ in ("maximum", "sum", "target"):
                yield InnerCollective("all_reduce", row_bytes, axis)
    if _reduction(call) == _MEAN:
        for axis in context.axes(*_row_indices(call)):
            yield InnerCollective("all_reduce", call.inputs[0].itemsize, axis)


def _elementwise_loss(call: OpCall) -> str:
    return "*b, *b -> *b" if _reduction(call) == _NONE else "*b, *b -> "


def _local_loss(context: LocalContext, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
    """A mean over split elements: the local sum over the global count."""
    if _reduction(context.call) != _MEAN or not any(context.split.values()):
        return context.same_op(x, y, *args, **kwargs)
    total = context.target(x, y, _SUM, *args[1:], **kwargs)
    return torch.div(total, math.prod(context.call.inputs[0].shape))


_ELEMENTWISE = Rule(_elementwise_loss, sums=True, saves=(0, 1), program=_local_loss)

RULES: dict[str, Rule] = {
    "aten.cross_entropy_loss.default": Rule(
        _cross_entropy,
        sums=True,
        completes=frozenset({"c"}),
        saves=(0, 1),
        program=_local_cross_entropy,
        inner=_inner,
    ),
    "aten.mse_loss.default": _ELEMENTWISE,
    "aten.l1_loss.default": _ELEMENTWISE,
    "aten.smooth_l1_loss.default": _ELEMENTWISE,
}
