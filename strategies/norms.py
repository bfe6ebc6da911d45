"""Norms over batch, channels or groups; batch norm synchronises its statistics over the ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from autoplan.boxing import Step
from autoplan.layouts import BP, P
from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound, bind, parse
from autoplan.strategies.rule import InnerCollective, OpCall, OpMemory, Rule

aten = torch.ops.aten

_FUNCTIONAL = "aten._native_batch_norm_legit_functional.default"


def _per_channel(call: OpCall, channels: str, image: str) -> str:
    """Weight, bias and running statistics lie along the channels, and so do all statistics."""
    inputs = [image] + [channels] * (len(call.inputs) - 1)
    outputs = [image] + [channels] * (len(call.outputs) - 1)
    return f"{', '.join(inputs)} -> {', '.join(outputs)}"


# -- batch norm -----------------------------------------------------------------------------


def _uses_batch(call: OpCall) -> bool:
    """Whether the statistics are those of the batch, rather than running ones."""
    return bool(call.argument(5, "training"))


def _batch_norm(call: OpCall) -> str | None:
    """Channels are independent. Running statistics that the op changes in place have no layout."""
    changes_state = call.op == "aten.batch_norm.default" and _uses_batch(call)
    if changes_state and call.argument(3, "running_mean") is not None:
        return None
    return _per_channel(call, "c", "n c *s")


def _pooled_indices(call: OpCall) -> tuple[str, ...]:
    """Indices that the statistics are taken over."""
    return ("n", *(f"s{i}" for i in range(len(call.inputs[0].shape) - 2)))


def _statistics_type(call: OpCall) -> torch.dtype:
    """Half precision is normalised in float32, as torch does."""
    dtype = call.inputs[0].dtype
    return dtype if dtype.itemsize >= 4 else torch.float32


def _synchronous_batch_norm(
    context: LocalContext,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    *args: Any,
) -> Any:
    """Batch norm of rows on several ranks, with the mean and variance of all of them.

    The variance is that of deviations from the global mean: a difference of squares would cancel.
    Running statistics take the unbiased variance (Ioffe and Szegedy 2015, algorithm 2).
    """
    call = context.call
    axes = context.axes(*_pooled_indices(call))
    if not training or not axes:
        state = (running_mean, running_var, training, momentum, eps)
        return context.same_op(x, weight, bias, *state, *args)
    dtype = _statistics_type(call)
    pooled = [dim for dim in range(len(call.inputs[0].shape)) if dim != 1]
    count = math.prod(call.inputs[0].shape[dim] for dim in pooled)
    start, stop = context.input_ranges(0)[1]
    along_channels = [stop - start] + [1] * (len(pooled) - 1)

    def over_all(rows: Any) -> Any:
        """Mean over the rows of all ranks; each rank normalises its own rows with it."""
        total = aten.sum.dim_IntList(rows, pooled)
        for axis in axes:
            total = context.box(total, Step(axis, P, BP, (0, 0)))
        return torch.div(total, count)

    x = _cast(x, call.inputs[0].dtype, dtype)
    mean = over_all(x)
    deviation = torch.sub(x, torch.reshape(mean, along_channels))
    variance = over_all(torch.square(deviation))
    inverse = torch.rsqrt(torch.add(variance, eps))
    scale = inverse if weight is None else torch.mul(inverse, weight)
    y = torch.mul(deviation, torch.reshape(scale, along_channels))
    if bias is not None:
        y = torch.add(y, torch.reshape(bias, along_channels))
    y = _cast(y, dtype, call.outputs[0].dtype)
    if call.op != _FUNCTIONAL:
        return y
    mean, variance, inverse = (aten.detach.default(each) for each in (mean, variance, inverse))
    unbiased = torch.mul(variance, count / (count - 1))
    return (
        y,
        _cast(mean, dtype, call.outputs[1].dtype),
        _cast(inverse, dtype, call.outputs[2].dtype),
        _moved(running_mean, mean, momentum, call.outputs[3].dtype),
        _moved(running_var, unbiased, momentum, call.outputs[4].dtype),
    )


def _moved(running: Any, value: Any, momentum: float, dtype: torch.dtype) -> Any:
    """The running statistic, moved towards that of this batch."""
    kept = torch.mul(running, 1.0 - momentum)
    return aten.to.dtype(torch.add(kept, torch.mul(value, momentum)), dtype)


def _cast(x: Any, source: torch.dtype, target: torch.dtype) -> Any:
    return x if source == target else aten.to.dtype(x, target)


def _inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    """Mean and variance are reduced; where a gradient flows, theirs are too."""
    if not _uses_batch(call):
        return
    start, stop = context.input_ranges(0)[1]
    size = (stop - start) * _statistics_type(call).itemsize
    for axis in context.axes(*_pooled_indices(call)):
        for _ in ("mean", "variance"):
            yield InnerCollective("all_reduce", size, axis)
            if call.inputs[0].requires_grad:
                yield InnerCollective("all_reduce", size, axis, backward=True)


def _batch_norm_saves(call: OpCall) -> tuple[int | str, ...]:
    """The input, the scale, and running statistics where they are used, or given back."""
    position, saved = 1, [0]
    for at, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        if call.argument(at, name) is None:
            continue
        state = name.startswith("running") and (not _uses_batch(call) or call.op == _FUNCTIONAL)
        if name == "weight" or state:
            saved.append(position)
        position += 1
    return tuple(saved)


def _batch_norm_memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """Two statistics a channel; over several ranks the deviations are kept, and no input."""
    channels = context.output_meta().shape[1] * _statistics_type(call).itemsize
    size = context.output_meta().num_bytes
    if _uses_batch(call) and context.axes(*_pooled_indices(call)):
        return OpMemory((), kept=size + 4 * channels, forward=size, backward=3 * size)
    # Of the functional op the statistics are further results, of which a plan keeps all or none.
    return replace(plain, kept=2 * channels if _uses_batch(call) else 0)


def _group_norm_memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """Two statistics a group of each image."""
    x = context.input_meta(0)
    groups = int(call.argument(1, "num_groups")) * x.shape[1] // call.inputs[0].shape[1]
    return replace(plain, kept=2 * x.shape[0] * groups * max(x.itemsize, 4))


_BATCH_NORM = Rule(
    _batch_norm,
    completes=frozenset({"n", *(f"s{i}" for i in range(3))}),
    saves=_batch_norm_saves,
    memory=_batch_norm_memory,
    needs_rows=frozenset({"c"}),
    program=_synchronous_batch_norm,
    inner=_inner,
)

# -- instance and group norm ----------------------------------------------------------------


def _instance_norm(call: OpCall) -> str | None:
    """Each image of each channel by itself; with running statistics, each element."""
    if call.argument(3, "running_mean") is None:
        space = " ".join(f"[s{i}]" for i in range(len(call.inputs[0].shape) - 2))
        return _per_channel(call, "c", f"n c {space}")
    return None if call.argument(5, "use_input_stats") else _per_channel(call, "c", "n c *s")


def _local_instance_norm(
    context: LocalContext,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Any:
    """A group norm with one channel a group, or a batch norm: the op fails on an empty batch."""
    if not any(context.split.values()):
        state = (running_mean, running_var, use_input_stats, momentum, eps, cudnn)
        return context.same_op(x, weight, bias, *state)
    if running_mean is not None:
        state = (running_mean, running_var, False, momentum, eps, cudnn)
        return aten.batch_norm.default(x, weight, bias, *state)
    start, stop = context.input_ranges(0)[1]
    return aten.group_norm.default(x, stop - start, weight, bias, eps, cudnn)


def _group_norm(call: OpCall) -> Bound:
    """Groups split where the ranks divide their number; groups of one channel anywhere."""
    groups = int(call.argument(1, "num_groups"))
    channels = "g" if call.inputs[0].shape[1] == groups else "(g k)"
    space = " ".join(f"[s{i}]" for i in range(len(call.inputs[0].shape) - 2))
    text = _per_channel(call, channels, f"n {channels} {space}")
    return bind(parse(text), call.input_shapes, call.output_shapes, {"g": groups})


def _local_group_norm(context: LocalContext, x: Any, groups: int, *args: Any, **kwargs: Any) -> Any:
    """Each rank norms its own number of groups."""
    start, stop = context.input_ranges(0)[1]
    groups = groups * (stop - start) // context.call.inputs[0].shape[1]
    return context.target(x, groups, *args, **kwargs)


RULES: dict[str, Rule] = {
    "aten.batch_norm.default": _BATCH_NORM,
    _FUNCTIONAL: _BATCH_NORM,
    "aten.instance_norm.default": Rule(
        _instance_norm,
        saves=(0,),
        needs_rows=frozenset({"c"}),
        program=_local_instance_norm,
    ),
    "aten.group_norm.default": Rule(
        _group_norm,
        saves=lambda call: (0, 1) if call.argument(2, "weight") is not None else (0,),
        memory=_group_norm_memory,
        needs_rows=frozenset({"g"}),
        program=_local_group_norm,
    ),
}
