"""Copies: tensors joined, padded, repeated, turned, or made anew in a given shape."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import passing
from autoplan.strategies.notation import Bound, numbered
from autoplan.strategies.rule import OpCall, OpMemory, Rule, all_together

_LINEAR = (frozenset({0}),)


# -- joining --------------------------------------------------------------------------------


def _cat(call: OpCall) -> Bound:
    """Pieces joined along one dimension, which stays whole; an empty vector joins anything."""
    at = int(call.argument(1, "dim", 0)) % len(call.outputs[0].shape)
    return _joined(call, at, {})


def _stacks(call: OpCall) -> Bound:
    """`hstack` and its kin join along a fixed dimension; tensors of few dimensions get more."""
    name, ndim = call.op.split(".")[1], len(call.outputs[0].shape)
    if name == "hstack":
        return _joined(call, min(1, ndim - 1), {})
    if name == "vstack":
        return _joined(call, 0, {1: (1,)})
    if name == "dstack":
        return _joined(call, 2, {1: (1,), 2: (0, 1)})
    return _joined(call, 1, {1: (0,)})


def _joined(call: OpCall, at: int, places: dict[int, tuple[int, ...]]) -> Bound:
    """`places`: which dimensions of the result a tensor of so many dimensions has."""
    shape = call.outputs[0].shape
    dims = tuple(f"d{i}" if i != at and size > 1 else None for i, size in enumerate(shape))
    sizes = {f"d{i}": size for i, size in enumerate(shape) if i != at and size > 1}
    inputs = tuple(
        (None,) * len(each)
        if each in ((0,), ())
        else tuple(dims[i] for i in places.get(len(each), range(len(each))))
        for each in call.input_shapes
    )
    return Bound(inputs, (dims,), sizes)


def _stack(call: OpCall) -> str:
    names = numbered(len(call.inputs[0].shape))
    at = int(call.argument(1, "dim", 0)) % (len(names) + 1)
    joined = [*names[:at], "[new]", *names[at:]]
    return ", ".join([" ".join(names)] * len(call.inputs)) + " -> " + " ".join(joined)


def _slice_scatter(call: OpCall) -> str:
    """A slice of a whole dimension is replaced."""
    names, source = numbered(len(call.inputs[0].shape)), numbered(len(call.inputs[0].shape))
    at = call.dim(2, "dim", 0)
    names[at], source[at] = "[all]", "[some]"
    return f"{' '.join(names)}, {' '.join(source)} -> {' '.join(names)}"


def _select_scatter(call: OpCall) -> str:
    names = numbered(len(call.inputs[0].shape))
    at = call.dim(2, "dim", 0)
    source = names[:at] + names[at + 1 :]
    names[at] = f"[{names[at]}]"
    return f"{' '.join(names)}, {' '.join(source)} -> {' '.join(names)}"


def _diagonal_scatter(call: OpCall) -> str:
    names = numbered(len(call.inputs[0].shape))
    pair = {call.dim(3, "dim1", 0), call.dim(4, "dim2", 1)}
    source = [name for i, name in enumerate(names) if i not in pair]
    names = [f"[{name}]" if i in pair else name for i, name in enumerate(names)]
    return f"{' '.join(names)}, {' '.join(source)} [k] -> {' '.join(names)}"


# -- padding --------------------------------------------------------------------------------


def _pad(call: OpCall) -> str:
    """Padded dimensions are whole; `pad` counts pairs from the last dimension."""
    pairs = len(call.argument(1, "pad")) // 2
    names = numbered(len(call.inputs[0].shape))
    before, after = list(names), list(names)
    for at in range(len(names) - pairs, len(names)):
        before[at], after[at] = f"[{names[at]}]", f"[p{at}]"
    return f"{' '.join(before)} -> {' '.join(after)}"


def _pad_mode(call: OpCall) -> str:
    if "constant_pad" in call.op:
        return "constant"
    return str(call.argument(2, "mode", "constant"))


def _pad_is_linear(call: OpCall) -> tuple[frozenset[int], ...]:
    """Padding with another number than zero would add it once a rank."""
    position = 2 if "constant_pad" in call.op else 3
    number = _pad_mode(call) == "constant" and call.argument(position, "value", 0.0)
    return () if number else _LINEAR


def _pad_saves(call: OpCall) -> tuple[int | str, ...]:
    """Copied edges need the tensor's shape, which the kernels read off the tensor."""
    return (0,) if _pad_mode(call) in ("reflect", "replicate") else ()


def _local_pad(context: LocalContext, x: Any, pad: Any, *args: Any, **kwargs: Any) -> Any:
    """The kernels that copy edges take an empty batch, but no other empty dimension."""
    if _pad_mode(context.call) == "constant":
        return context.same_op(x, pad, *args, **kwargs)
    shape = [stop - start for start, stop in context.input_ranges(0)]
    cut = len(shape) - len(pad) // 2
    images = torch.ops.aten.reshape.default(x, [math.prod(shape[:cut]), 1, *shape[cut:]])
    padded = context.target(images, pad, *args, **kwargs)
    return torch.ops.aten.reshape.default(padded, list(context.output_shape()))


# -- repeating ------------------------------------------------------------------------------


def _repeats(call: OpCall) -> list[int]:
    """How often each dimension of the result repeats its source."""
    given = list(call.argument(1, "dims" if "tile" in call.op else "repeats"))
    return [1] * (len(call.outputs[0].shape) - len(given)) + given


def _sources(call: OpCall) -> list[int]:
    """Size of the source of each dimension of the result; new ones on the left repeat one row."""
    shape = call.inputs[0].shape
    return [1] * (len(call.outputs[0].shape) - len(shape)) + list(shape)


def _repeat(call: OpCall) -> str:
    """A repeated dimension splits by its repetitions."""
    before, after = [], []
    for i, (size, count) in enumerate(zip(_sources(call), _repeats(call), strict=True)):
        if count == 1:
            before.append(f"d{i}")
            after.append(f"d{i}")
        elif size == 1:
            before.append("1")
            after.append(f"r{i}")
        else:
            before.append(f"[d{i}]")
            after.append(f"(r{i} d{i})")
    before = before[len(before) - len(call.inputs[0].shape) :]
    return f"{' '.join(before)} -> {' '.join(after)}"


def _local_repeat(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Each rank makes its own number of repetitions."""
    counts = [
        1 if count == 1 else rows // size
        for count, rows, size in zip(
            _repeats(context.call), context.output_shape(), _sources(context.call), strict=True
        )
    ]
    return torch.ops.aten.repeat.default(x, counts)


def _repeat_interleave(call: OpCall) -> str | None:
    """Each row is followed by its copies, so that the rows can be split, evenly."""
    shape = call.inputs[0].shape
    names = numbered(len(shape))
    if call.argument(2, "dim") is None:
        if not names:
            return None
        before = [names[0], *(f"[{name}]" for name in names[1:])]
        return f"{' '.join(before)} -> ({' '.join(names)} r)"
    at = call.dim(2)
    after = list(names)
    after[at] = f"({names[at]} r)"
    if shape[at] == 1:
        names[at], after[at] = "1", "r"
    return f"{' '.join(names)} -> {' '.join(after)}"


def _local_repeat_interleave(
    context: LocalContext, x: Any, repeats: int, *args: Any, **kwargs: Any
) -> Any:
    dim = context.call.argument(2, "dim")
    if dim is not None and context.call.inputs[0].shape[dim] == 1:
        repeats = context.output_shape()[dim]
    return torch.ops.aten.repeat_interleave.self_int(x, repeats, dim)


def _repeat_each(call: OpCall) -> str | None:
    """Every row its own number of times, along a dimension that is whole on every rank."""
    if call.argument(2, "dim") is None:
        return None
    before = numbered(len(call.inputs[0].shape))
    after = list(before)
    at = call.dim(2)
    before[at], after[at] = "[in]", "[out]"
    return f"{' '.join(before)}, {'[r]' if call.inputs[1].shape else ''} -> {' '.join(after)}"


# -- turning --------------------------------------------------------------------------------


def _turned_dims(call: OpCall) -> list[int]:
    name, ndim = call.op.split(".")[1], len(call.inputs[0].shape)
    if name in ("fliplr", "flipud"):
        return [int(name == "fliplr")]
    given = call.argument(1 if name == "flip" else 2, "dims", (0, 1) if name == "rot90" else ())
    return [dim % ndim for dim in ([given] if isinstance(given, int) else given)]


def _turn(call: OpCall) -> str | None:
    """The dimensions along which rows change places are whole; without any, all are."""
    dims = _turned_dims(call)
    if not dims and "roll" in call.op:
        return None
    names = numbered(len(call.inputs[0].shape))
    before = [f"[{name}]" if i in dims else name for i, name in enumerate(names)]
    after = [f"[t{i}]" if i in dims else name for i, name in enumerate(names)]
    return f"{' '.join(before)} -> {' '.join(after)}"


# -- triangles and diagonals ----------------------------------------------------------------


def _triangle(context: LocalContext, x: Any, diagonal: int = 0) -> Any:
    """The diagonal of the whole matrix runs elsewhere through a block of it."""
    (top, _), (left, _) = context.input_ranges(0)[-2:]
    return context.target(x, diagonal + top - left)


def _trace(context: LocalContext, x: Any) -> Any:
    (top, _), (left, _) = context.input_ranges(0)
    diagonal = torch.ops.aten.diagonal.default(x, top - left)
    return torch.sum(diagonal, dtype=context.call.outputs[0].dtype)


def _diag_embed(call: OpCall) -> str:
    """The last dimension becomes the diagonal of two whole ones."""
    names = numbered(len(call.inputs[0].shape) - 1)
    ndim = len(names) + 2
    dims = {int(call.argument(i + 2, f"dim{i + 1}", i - 2)) % ndim for i in range(2)}
    others = iter(names)
    after = [f"[k{i}]" if i in dims else next(others) for i in range(ndim)]
    return f"{' '.join(names)} [k] -> {' '.join(after)}"


def _rows_repeated(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """The number of the row that each row of the result repeats, and the gradient's sum of them."""
    dim = call.argument(2, "dim")
    out = context.output_meta()
    rows = out.numel if dim is None else out.shape[int(dim) % max(len(out.shape), 1)]
    return replace(plain, kept=8 * rows, backward=context.input_meta(0).num_bytes)


_CAT = Rule(_cat, partial=all_together, memory=passing)
_STACKS = Rule(_stacks, partial=all_together, memory=passing)
_PAD = Rule(_pad, partial=_pad_is_linear, saves=_pad_saves, program=_local_pad)
_REPEAT = Rule(_repeat, partial=_LINEAR, program=_local_repeat)
_TURN = Rule(_turn, partial=_LINEAR)
_TRIANGLE = Rule("*b i j -> *b i j", partial=_LINEAR, program=_triangle)

RULES: dict[str, Rule] = {
    "aten.cat.default": _CAT,
    "aten.concat.default": _CAT,
    "aten.concatenate.default": _CAT,
    "aten.hstack.default": _STACKS,
    "aten.vstack.default": _STACKS,
    "aten.dstack.default": _STACKS,
    "aten.column_stack.default": _STACKS,
    "aten.stack.default": Rule(_stack, partial=all_together, memory=passing),
    "aten.slice_scatter.default": Rule(_slice_scatter, partial=all_together),
    "aten.select_scatter.default": Rule(_select_scatter, partial=all_together),
    "aten.diagonal_scatter.default": Rule(_diagonal_scatter, partial=all_together),
    "aten.pad.default": _PAD,
    "aten.constant_pad_nd.default": _PAD,
    "aten.repeat.default": _REPEAT,
    "aten.tile.default": _REPEAT,
    "aten.repeat_interleave.self_int": Rule(
        _repeat_interleave, partial=_LINEAR, program=_local_repeat_interleave
    ),
    "aten.repeat_interleave.self_Tensor": Rule(
        _repeat_each, partial=_LINEAR, memory=_rows_repeated
    ),
    "aten.roll.default": _TURN,
    "aten.flip.default": _TURN,
    "aten.fliplr.default": _TURN,
    "aten.flipud.default": _TURN,
    "aten.rot90.default": _TURN,
    "aten.tril.default": _TRIANGLE,
    "aten.triu.default": _TRIANGLE,
    "aten.trace.default": Rule("i j -> ", sums=True, partial=_LINEAR, program=_trace),
    "aten.diag_embed.default": Rule(_diag_embed, partial=_LINEAR),
}
