"""Reading by index: the dimension that is looked up splits as a vocabulary does.

Rows that other ranks hold are read as zero, so that the results add up (Shoeybi et al. 2019, 3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import Memory
from autoplan.strategies.rule import Arg, OpCall, OpMemory, Rule

_LINEAR = (frozenset({0}),)


def index_places(call: OpCall) -> dict[int, int]:
    """Of an op with a list of indices: indexed dimension -> position of its index tensor."""
    return {dim: each.position for dim, each in enumerate(call.args[1]) if isinstance(each, Arg)}


def result_dims(call: OpCall) -> tuple[list[str], list[str]]:
    """Names of the indices' common dimensions, and of all dimensions of what is read.

    Index tensors broadcast to common dimensions, which stand where the indexed ones did if these
    are neighbours, and first otherwise (numpy's advanced indexing).
    """
    places = index_places(call)
    ndim = max(len(call.inputs[at].shape) for at in places.values())
    common = [f"j{i}" for i in range(ndim)]
    first = min(places)
    neighbours = max(places) - first + 1 == len(places)
    kept = [f"d{i}" for i in range(len(call.inputs[0].shape)) if i not in places]
    at = first if neighbours else 0
    return common, [*kept[:at], *common, *kept[at:]]


def source_dims(call: OpCall) -> str:
    """Names of the indexed tensor's dimensions: `v0` where an index looks up, `d0` elsewhere."""
    places = index_places(call)
    return " ".join(
        _looked_up_in(call, f"v{i}") if i in places else f"d{i}"
        for i in range(len(call.inputs[0].shape))
    )


def _looked_up_in(call: OpCall, name: str) -> str:
    """Flags do not add up: where they are looked up they are whole."""
    return f"[{name}]" if call.inputs[0].dtype == torch.bool else name


def is_masked(call: OpCall) -> bool:
    """Whether flags, not numbers, say which elements are meant."""
    return any(
        call.inputs[at].dtype in (torch.bool, torch.uint8) for at in index_places(call).values()
    )


def _index(call: OpCall) -> str | None:
    if is_masked(call):
        return None
    common, result = result_dims(call)
    indices = (
        " ".join(common[len(common) - len(call.inputs[at].shape) :])
        for at in index_places(call).values()
    )
    return f"{source_dims(call)}, {', '.join(indices)} -> {' '.join(result)}"


def local_numbers(
    context: LocalContext, dim: int, index: Any, start: int, stop: int
) -> tuple[Any, Any]:
    """`index` into rows `start` to `stop` of the first input, and flags of what is elsewhere.

    Elsewhere numbers are 0. Negative numbers count from the end of the whole dimension.
    """
    size = context.call.inputs[0].shape[dim]
    number = torch.where(torch.lt(index, 0), torch.add(index, size), index)
    elsewhere = torch.logical_or(torch.lt(number, start), torch.ge(number, stop))
    local = torch.ops.aten.masked_fill.Scalar(torch.sub(number, start), elsewhere, 0)
    return local, elsewhere


def _read(context: LocalContext, x: Any, read: Callable[[], Any], elsewhere: Any) -> Any:
    """`read()` with zero elsewhere.

    A rank without rows has nothing to read: its result is the sum of nothing, so that its gradient
    takes the same way as on every rank, in as many steps.
    """
    if any(start == stop for start, stop in context.input_ranges(0)):
        nothing = torch.sum(x, dtype=context.call.inputs[0].dtype)
        return torch.ops.aten.expand.default(nothing, list(context.output_shape()))
    return torch.ops.aten.masked_fill.Scalar(read(), elsewhere, 0)


def _local_index(context: LocalContext, x: Any, indices: Any) -> Any:
    """Each index tensor to its own rank's rows, where its dimension is split."""
    call = context.call
    split = [dim for dim in index_places(call) if context.axes(f"v{dim}")]
    if not split:
        return context.same_op(x, indices)
    local, flags = list(indices), []
    for dim in split:
        start, stop = context.input_ranges(0)[dim]
        local[dim], elsewhere = local_numbers(context, dim, indices[dim], start, stop)
        flags.append(elsewhere)
    common, result = result_dims(call)
    elsewhere = functools.reduce(torch.logical_or, flags)
    for _ in result[result.index(common[-1]) + 1 :] if common else result:
        elsewhere = torch.unsqueeze(elsewhere, -1)
    return _read(context, x, lambda: torch.ops.aten.index.Tensor(x, local), elsewhere)


def _index_select(call: OpCall) -> str | None:
    names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
    if not names:
        return None
    after = list(names)
    at = call.dim(1)
    names[at], after[at] = _looked_up_in(call, "v"), "j"
    return f"{' '.join(names)}, {'j' if call.inputs[1].shape else ''} -> {' '.join(after)}"


def _local_index_select(context: LocalContext, x: Any, dim: int, index: Any) -> Any:
    if not context.axes("v"):
        return context.same_op(x, dim, index)
    dim = context.call.dim(1)
    start, stop = context.input_ranges(0)[dim]
    local, elsewhere = local_numbers(context, dim, index, start, stop)
    for _ in range(len(context.call.inputs[0].shape) - dim - 1):
        elsewhere = torch.unsqueeze(elsewhere, -1)
    return _read(context, x, lambda: context.target(x, dim, local), elsewhere)


def _gather(call: OpCall) -> str | None:
    """Other dimensions go along where index and source have the same size."""
    source, index = (meta.shape for meta in call.inputs)
    if not source or not index:
        return None
    names = [f"d{i}" if size == index[i] else f"[d{i}]" for i, size in enumerate(source)]
    before = [
        name if size == index[i] else f"[s{i}]"
        for i, (name, size) in enumerate(zip(names, source, strict=True))
    ]
    at = call.dim(1)
    before[at], names[at] = _looked_up_in(call, "v"), "j"
    return f"{' '.join(before)}, {' '.join(names)} -> {' '.join(names)}"


def _local_gather(
    context: LocalContext, x: Any, dim: int, index: Any, *args: Any, **kwargs: Any
) -> Any:
    if not context.axes("v"):
        return context.same_op(x, dim, index, *args, **kwargs)
    start, stop = context.input_ranges(0)[dim]
    local, elsewhere = local_numbers(context, dim, index, start, stop)
    return _read(context, x, lambda: torch.gather(x, dim, local), elsewhere)


def _take_along_dim(call: OpCall) -> str | None:
    """As `gather`, but sizes of one broadcast; without a dimension, from the flat tensor."""
    names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
    if call.argument(2, "dim") is None:
        whole = " ".join(f"[{name}]" for name in names)
        return f"{whole}, j -> j" if len(call.inputs[1].shape) == 1 else None
    after = list(names)
    at = call.dim(2)
    names[at], after[at] = _looked_up_in(call, "v"), "j"
    return f"{' '.join(names)}, {' '.join(after)} -> {' '.join(after)}"


def _local_take_along_dim(context: LocalContext, x: Any, index: Any, dim: Any = None) -> Any:
    if not context.axes("v"):
        return context.same_op(x, index, dim)
    start, stop = context.input_ranges(0)[dim]
    local, elsewhere = local_numbers(context, dim, index, start, stop)
    return _read(context, x, lambda: torch.take_along_dim(x, local, dim), elsewhere)


def _one_hot(context: LocalContext, x: Any, num_classes: int) -> Any:
    """Numbers of other ranks' classes fall into one class more, which is cut off."""
    if not context.axes("c"):
        return context.same_op(x, num_classes)
    start, stop = context.output_ranges()[-1]
    elsewhere = torch.logical_or(torch.lt(x, start), torch.ge(x, stop))
    local = torch.ops.aten.masked_fill.Scalar(torch.sub(x, start), elsewhere, stop - start)
    hot = torch.ops.aten.one_hot.default(local, stop - start + 1)
    return torch.ops.aten.slice.Tensor(hot, -1, 0, stop - start)


def _take(call: OpCall) -> str:
    """From the flat tensor, of which a rank holds a run if the first dimension is split."""
    names = [f"[d{i}]" for i in range(len(call.inputs[0].shape))]
    if names:
        names[0] = _looked_up_in(call, "v")
    return f"{' '.join(names)}, *j -> *j"


def _local_take(context: LocalContext, x: Any, index: Any) -> Any:
    if not context.axes("v"):
        return context.same_op(x, index)
    shape = context.call.inputs[0].shape
    row = math.prod(shape[1:])
    start, stop = (each * row for each in context.input_ranges(0)[0])
    number = torch.where(torch.lt(index, 0), torch.add(index, shape[0] * row), index)
    elsewhere = torch.logical_or(torch.lt(number, start), torch.ge(number, stop))
    local = torch.ops.aten.masked_fill.Scalar(torch.sub(number, start), elsewhere, 0)
    return _read(context, x, lambda: torch.take(x, local), elsewhere)


def _masked_scatter(call: OpCall) -> str | None:
    """The source is taken in order, for which the whole mask must be counted."""
    shape = call.outputs[0].shape
    if call.inputs[0].shape != shape or not call.inputs[2].numel:
        return None
    names = [f"d{i}" for i in range(len(shape))]
    mask = " ".join(f"[m{i}]" for i in range(len(call.inputs[1].shape)))
    source = " ".join(f"[s{i}]" for i in range(len(call.inputs[2].shape)))
    return f"{' '.join(names)}, {mask}, {source} -> {' '.join(names)}"


def _local_masked_scatter(context: LocalContext, x: Any, mask: Any, source: Any) -> Any:
    """Each element by its place among all that are masked."""
    if not any(context.split.values()):
        return context.same_op(x, mask, source)
    shape = list(context.call.outputs[0].shape)
    mask = torch.ops.aten.expand.default(mask, shape)
    place = torch.sub(torch.cumsum(torch.ops.aten.reshape.default(mask, [-1]), 0), 1)
    place = torch.ops.aten.reshape.default(torch.clamp(place, min=0), shape)
    for dim, (start, stop) in enumerate(context.output_ranges()):
        if stop - start < shape[dim]:
            mask = torch.ops.aten.slice.Tensor(mask, dim, start, stop)
            place = torch.ops.aten.slice.Tensor(place, dim, start, stop)
    return torch.where(mask, torch.take(source, place), x)


def _table_bytes(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """The gradient is gathered in zeros of the table's size, and copied once."""
    return replace(plain, backward=context.input_meta(0).num_bytes)


def _along(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """Numbers of elements are broadcast first, or all flattened."""
    found = _table_bytes(call, context, plain)
    if call.argument(2, "dim") is None:
        return found
    return replace(found, saves=(0,), kept=8 * context.output_meta().numel)


def _looked_up(
    notation: Callable[[OpCall], str | None],
    program: Callable[..., Any],
    first: int = 0,
    memory: Memory | None = _table_bytes,
) -> Rule:
    """Kept are the index tensors; by most formulas also the table, if only for its shape."""
    return Rule(
        notation,
        sums=True,
        partial=_LINEAR,
        saves=lambda call: tuple(range(first, len(call.inputs))),
        memory=memory,
        program=program,
        flops=lambda call: 0.0,
    )


RULES: dict[str, Rule] = {
    "aten.index.Tensor": _looked_up(_index, _local_index, 1, None),
    "aten.index_select.default": _looked_up(_index_select, _local_index_select, 1),
    "aten.gather.default": _looked_up(_gather, _local_gather),
    "aten.take_along_dim.default": _looked_up(
        _take_along_dim, _local_take_along_dim, memory=_along
    ),
    "aten.take.default": _looked_up(_take, _local_take),
    "aten.one_hot.default": Rule("*b -> *b c", program=_one_hot),
    "aten.masked_scatter.default": Rule(
        _masked_scatter,
        partial=(frozenset({0, 2}),),
        saves=(1,),
        program=_local_masked_scatter,
    ),
}
