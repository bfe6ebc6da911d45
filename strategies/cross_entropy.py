"""Cross-entropy with rows split, classes split (vocabulary-parallel), or both.

With t the probabilities of a row's target (one-hot, smoothed, or given), w the class weights, and z
the logits less the largest of their row, the loss of the row is

    sum_c w_c t_c (log sum_k exp z_k - z_c)
        = (sum_c w_c t_c) log sum_k exp z_k - sum_c w_c t_c z_c

so that ranks which hold some classes each need three sums over all of them, and nothing else
(Shoeybi et al. 2019, section 3, for one-hot targets).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from autoplan.boxing import Step
from autoplan.layouts import B, P
from autoplan.strategies.local import LocalContext
from autoplan.strategies.loss import MEAN, NONE, SUM
from autoplan.strategies.rule import InnerCollective, OpCall, OpMemory, Rule


def _reduction(call: OpCall) -> int:
    return int(call.argument(3, "reduction", MEAN))


def _has_probabilities(call: OpCall) -> bool:
    """Whether the target is a probability of every class, not the index of one."""
    return call.inputs[1].dtype.is_floating_point


def _class_dim(call: OpCall) -> int:
    return min(1, len(call.inputs[0].shape) - 1)


def _terms(call: OpCall) -> str:
    """Logits [n, c, *d] or [c]. Class weights stay whole: they are few, and have no gradient."""
    logits, rows = ("n c *d", "n *d") if _class_dim(call) else ("c", "*n")
    target = logits if _has_probabilities(call) else rows
    weight = ", [w]" if len(call.inputs) == 3 else ""
    return f"{logits}, {target}{weight} -> {rows if _reduction(call) == NONE else ''}"


def _row_axes(context: LocalContext) -> tuple[str, ...]:
    ndim = len(context.call.inputs[0].shape)
    return context.axes("n", *(f"d{i}" for i in range(ndim - 2)))


def _local_cross_entropy(
    context: LocalContext,
    logits: Any,
    target: Any,
    weight: Any = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    """Each rank's rows are an addend of a sum or mean; split classes are reduced in here."""
    call = context.call
    if not _row_axes(context) and not context.axes("c"):
        return context.same_op(logits, target, weight, reduction, ignore_index, label_smoothing)
    if not context.axes("c"):
        local = NONE if reduction == NONE else SUM
        loss = torch.ops.aten.cross_entropy_loss.default(
            logits, target, weight, local, ignore_index, label_smoothing
        )
    else:
        logits, weight = _computed(context, logits), _computed(context, weight)
        logits, target = _with_rows(context, logits, target)
        if _has_probabilities(call):
            target = _computed(context, target)
            loss = _losses_of_probabilities(context, logits, target, weight, label_smoothing)
        else:
            loss = _losses_of_indices(
                context, logits, target, weight, ignore_index, label_smoothing
            )
        loss = _reduced(context, loss, reduction)
    if reduction == MEAN and _has_probabilities(call):
        loss = torch.div(loss, call.inputs[0].numel // call.inputs[0].shape[_class_dim(call)])
    elif reduction == MEAN:
        loss = torch.div(loss, _counted(context, target, weight, ignore_index))
    return _rounded(context, loss)


def _local_nll(
    context: LocalContext,
    x: Any,
    target: Any,
    weight: Any = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
) -> Any:
    """Each rank's rows, or classes, are an addend: the loss only picks what the targets name."""
    if not _row_axes(context) and not context.axes("c"):
        return context.same_op(x, target, weight, reduction, ignore_index)
    if not context.axes("c"):
        local = NONE if reduction == NONE else SUM
        loss = torch.ops.aten.nll_loss_nd.default(x, target, weight, local, ignore_index)
    else:
        x, target = _with_rows(context, x, target)
        loss = torch.neg(_picked(context, x, target))
        if weight is not None:
            loss = torch.mul(loss, _weights(target, weight, ignore_index))
        loss = torch.ops.aten.masked_fill.Scalar(loss, torch.eq(target, ignore_index), 0.0)
        loss = _reduced(context, loss, reduction)
    if reduction == MEAN:
        loss = torch.div(loss, _counted(context, target, weight, ignore_index))
    return _rounded(context, loss)


# -- split classes --------------------------------------------------------------------------


def _with_rows(context: LocalContext, logits: Any, target: Any) -> tuple[Any, Any]:
    """Logits [c] as one row, [1, c]."""
    if _class_dim(context.call) == 1:
        return logits, target
    if _has_probabilities(context.call):
        return torch.unsqueeze(logits, 0), torch.unsqueeze(target, 0)
    return torch.unsqueeze(logits, 0), torch.reshape(target, [1])


def _reduced(context: LocalContext, loss: Any, reduction: int) -> Any:
    if reduction != NONE:
        return torch.sum(loss)
    return loss if _class_dim(context.call) == 1 else torch.reshape(loss, context.output_shape())


def _losses_of_indices(
    context: LocalContext, logits: Any, target: Any, weight: Any, ignore: int, smoothing: float
) -> Any:
    z, total = _shifted(context, logits)
    chosen = _picked(context, z, target)
    scale: Any = None
    if weight is not None:
        scale = _weights(target, weight, ignore)
        chosen = torch.mul(chosen, scale)
    if smoothing:
        number = context.call.inputs[0].shape[_class_dim(context.call)]
        others = z if weight is None else torch.mul(z, _local_weights(context, weight))
        share = smoothing / number
        chosen = torch.add(torch.mul(chosen, 1 - smoothing), torch.sum(others, 1), alpha=share)
        if weight is not None:
            scale = torch.add(torch.mul(scale, 1 - smoothing), torch.sum(weight), alpha=share)
    total, chosen = _over_ranks(context, total, chosen)
    log_total = torch.log(total) if scale is None else torch.mul(torch.log(total), scale)
    rows = torch.sub(log_total, chosen)
    return torch.ops.aten.masked_fill.Scalar(rows, torch.eq(target, ignore), 0.0)


def _losses_of_probabilities(
    context: LocalContext, logits: Any, target: Any, weight: Any, smoothing: float
) -> Any:
    z, total = _shifted(context, logits)
    if smoothing:
        number = context.call.inputs[0].shape[_class_dim(context.call)]
        target = torch.add(torch.mul(target, 1 - smoothing), smoothing / number)
    if weight is not None:
        target = torch.mul(target, _local_weights(context, weight))
    chosen = torch.sum(torch.mul(target, z), 1)
    total, chosen, scale = _over_ranks(context, total, chosen, torch.sum(target, 1))
    return torch.sub(torch.mul(torch.log(total), scale), chosen)


def _local_classes(context: LocalContext) -> tuple[int, int]:
    return context.input_ranges(0)[_class_dim(context.call)]


def _local_rows(context: LocalContext) -> list[int]:
    """Shape of this rank's rows."""
    shape = [stop - start for start, stop in context.input_ranges(0)]
    return [shape[0], *shape[2:]] if len(shape) > 1 else [1]


def _shifted(context: LocalContext, logits: Any) -> tuple[Any, Any]:
    """Logits less the largest of their row, on any rank, and this rank's sum of exponentials.

    The shift cancels, so that its gradient is nothing.
    """
    start, stop = _local_classes(context)
    values = torch.ops.aten.detach.default(logits)
    if start == stop:
        shift = torch.ops.aten.new_full.default(values, _local_rows(context), -math.inf)
    else:
        shift = torch.amax(values, 1)
    for axis in context.axes("c"):
        shift = context.comm.all_reduce_max(shift, axis)
    z = torch.sub(logits, torch.unsqueeze(shift, 1))
    return z, torch.sum(torch.exp(z), 1)


def _picked(context: LocalContext, x: Any, target: Any) -> Any:
    """The element of each row that its target names; zero where another rank holds it."""
    start, stop = _local_classes(context)
    elsewhere = torch.logical_or(torch.lt(target, start), torch.ge(target, stop))
    local = torch.ops.aten.masked_fill.Scalar(torch.sub(target, start), elsewhere, 0)
    local = torch.unsqueeze(local, 1)
    # A sum over no classes is zero, where there is nothing to gather.
    found = torch.sum(x, 1, True) if start == stop else torch.gather(x, 1, local)
    return torch.ops.aten.masked_fill.Scalar(torch.squeeze(found, 1), elsewhere, 0.0)


def _over_ranks(context: LocalContext, *addends: Any) -> tuple[Any, ...]:
    """Sums over all classes, in one collective; what follows is the same on every rank."""
    together = torch.stack(addends)
    for axis in context.axes("c"):
        together = context.box(together, Step(axis, P, B, (0, 0)))
    sums = torch.unbind(together)
    return tuple(sums[i] for i in range(len(addends)))


def _local_weights(context: LocalContext, weight: Any) -> Any:
    """This rank's classes' weights, to multiply [n, c, *d]."""
    start, stop = _local_classes(context)
    ones = [1] * (len(_local_rows(context)) - 1)
    return torch.reshape(torch.narrow(weight, 0, start, stop - start), [stop - start, *ones])


# -- what a mean divides by -----------------------------------------------------------------


def _weights(target: Any, weight: Any, ignore: int) -> Any:
    """The class weight of each row's target."""
    safe = torch.ops.aten.masked_fill.Scalar(target, torch.eq(target, ignore), 0)
    return torch.ops.aten.index.Tensor(weight, [safe])


def _counted(context: LocalContext, target: Any, weight: Any, ignore: int) -> Any:
    """The number, or the weight, of all ranks' rows that are not ignored."""
    counted: Any = torch.ne(target, ignore)
    if weight is not None:
        counted = torch.mul(_weights(target, weight, ignore), counted)
    total = torch.sum(counted, dtype=_computation_dtype(context.call))
    for axis in _row_axes(context):
        total = context.box(total, Step(axis, P, B, (0, 0)))
    return total


# -- precision ------------------------------------------------------------------------------


def _computation_dtype(call: OpCall) -> torch.dtype:
    """Sums of 16-bit numbers are in float32, as torch's own kernels have them."""
    dtype = call.inputs[0].dtype
    return torch.float32 if dtype.itemsize < 4 else dtype


def _computed(context: LocalContext, x: Any) -> Any:
    if x is None or context.call.inputs[0].dtype.itemsize >= 4:
        return x
    return torch.ops.aten.to.dtype(x, torch.float32)


def _rounded(context: LocalContext, loss: Any) -> Any:
    dtype = context.call.outputs[0].dtype
    return torch.ops.aten.to.dtype(loss, dtype) if dtype.itemsize < 4 else loss


def _inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    """The collectives of the local programs; their backward moves nothing."""
    itemsize = _computation_dtype(call).itemsize
    rows_bytes = math.prod(_local_rows(context)) * itemsize
    if "cross_entropy" in call.op:
        sums = 3 if _has_probabilities(call) else 2
        for axis in context.axes("c"):
            yield InnerCollective("all_reduce", rows_bytes, axis)
            yield InnerCollective("all_reduce", sums * rows_bytes, axis)
    if _reduction(call) == MEAN and not _has_probabilities(call):
        for axis in _row_axes(context):
            yield InnerCollective("all_reduce", itemsize, axis)


def _memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """The logarithms of all probabilities are kept, and no logits.

    Of split classes: shifted logits, their powers, and each row's place and two flags.
    """
    logits = context.input_meta(0)
    size = logits.num_bytes
    rows = math.prod(_local_rows(context))
    if not context.axes("c"):
        smooth, soft = bool(call.argument(5, "label_smoothing", 0.0)), _has_probabilities(call)
        if soft and smooth:  # another target, that only the op has
            forward = size * (len(call.inputs) - 1)
            return OpMemory(plain.saves[1:], kept=2 * size, forward=forward, backward=size)
        weighted = len(call.inputs) == 3
        forward = size * (soft + (weighted and (soft or smooth)))
        backward = size * (2 if smooth and weighted else 1)
        return replace(plain, kept=size, forward=forward, backward=backward)
    wide = logits.numel * _computation_dtype(call).itemsize
    saves = plain.saves[1:] if not _has_probabilities(call) else plain.saves
    kept = 2 * wide + rows * (8 + 3 + 4 * _computation_dtype(call).itemsize)
    return OpMemory(saves, kept=kept, forward=wide - size, backward=2 * wide - size)


def _nll_memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """Split classes pick by place; the gradient is zeros, and a copy of them."""
    if not context.axes("c"):
        return plain
    rows = math.prod(_local_rows(context))
    return replace(plain, kept=rows * 11, backward=context.input_meta(0).num_bytes)


def _saves(first: int) -> Callable[[OpCall], tuple[int | str, ...]]:
    """Everything from an operand on."""
    return lambda call: tuple(range(first, len(call.inputs)))


RULES: dict[str, Rule] = {
    "aten.cross_entropy_loss.default": Rule(
        _terms,
        sums=True,
        completes=frozenset({"c"}),
        saves=_saves(1),
        memory=_memory,
        program=_local_cross_entropy,
        inner=_inner,
    ),
    "aten.nll_loss_nd.default": Rule(
        _terms,
        sums=True,
        partial=(frozenset({0}),),
        saves=_saves(0),
        memory=_nll_memory,
        program=_local_nll,
        inner=_inner,
    ),
}
