"""Views and copies that move dimensions about; all linear, so P passes through all of them."""

from __future__ import annotations

from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound, bind_reshape
from autoplan.strategies.rule import OpCall, Rule

_LINEAR = (frozenset({0}),)


def _reshape(call: OpCall) -> Bound:
    return bind_reshape(call.inputs[0].shape, call.outputs[0].shape)


def _names(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


def _transpose(call: OpCall) -> str:
    names = _names(len(call.inputs[0].shape))
    moved = list(names)
    first, second = call.dim(1, "dim0"), call.dim(2, "dim1")
    moved[first], moved[second] = moved[second], moved[first]
    return f"{' '.join(names)} -> {' '.join(moved)}"


def _matrix_transpose(call: OpCall) -> str:
    names = _names(len(call.inputs[0].shape))
    return f"{' '.join(names)} -> {' '.join(reversed(names))}"


def _permute(call: OpCall) -> str:
    names = _names(len(call.inputs[0].shape))
    order = call.argument(1, "dims")
    return f"{' '.join(names)} -> {' '.join(names[i] for i in order)}"


def _expand(call: OpCall) -> str:
    """Dimensions of size one, and new ones on the left, are repeated."""
    return "*b -> *b"


def _slice(call: OpCall) -> str:
    """The dimension that is cut is whole on every rank."""
    before = _names(len(call.inputs[0].shape))
    after = list(before)
    at = call.dim(1, "dim", 0)
    before[at], after[at] = "[in]", "[out]"
    return f"{' '.join(before)} -> {' '.join(after)}"


def _select(call: OpCall) -> str:
    names = _names(len(call.inputs[0].shape))
    at = call.dim(1, "dim", 0)
    kept = names[:at] + names[at + 1 :]
    names[at] = f"[{names[at]}]"
    return f"{' '.join(names)} -> {' '.join(kept)}"


def _uneven_split(call: OpCall) -> Bound:
    """Pieces of different sizes along one dimension, which stays whole."""
    at = call.dim(2, "dim", 0)
    shape = call.inputs[0].shape
    dims = tuple(f"d{i}" if i != at and size > 1 else None for i, size in enumerate(shape))
    sizes = {f"d{i}": size for i, size in enumerate(shape) if i != at and size > 1}
    return Bound((dims,), (dims,) * len(call.outputs), sizes)


def _cat(call: OpCall) -> Bound:
    """Pieces joined along one dimension, which stays whole; an empty vector joins anything."""
    shape = call.outputs[0].shape
    at = int(call.argument(1, "dim", 0)) % len(shape)
    dims = tuple(f"d{i}" if i != at and size > 1 else None for i, size in enumerate(shape))
    sizes = {f"d{i}": size for i, size in enumerate(shape) if i != at and size > 1}
    inputs = tuple((None,) if each == (0,) else dims for each in call.input_shapes)
    return Bound(inputs, (dims,), sizes)


def _stack(call: OpCall) -> str:
    names = _names(len(call.inputs[0].shape))
    at = int(call.argument(1, "dim", 0)) % (len(names) + 1)
    joined = [*names[:at], "[new]", *names[at:]]
    return ", ".join([" ".join(names)] * len(call.inputs)) + " -> " + " ".join(joined)


def _pad(call: OpCall) -> str:
    """Padded dimensions are whole; `pad` counts pairs from the last dimension."""
    pairs = len(call.argument(1, "pad")) // 2
    names = _names(len(call.inputs[0].shape))
    before, after = list(names), list(names)
    for at in range(len(names) - pairs, len(names)):
        before[at], after[at] = f"[{names[at]}]", f"[p{at}]"
    return f"{' '.join(before)} -> {' '.join(after)}"


def _pad_is_linear(call: OpCall) -> tuple[frozenset[int], ...]:
    """Padding with anything but zero would add it once a rank."""
    zero = call.argument(2, "mode", "constant") == "constant" and not call.argument(3, "value", 0.0)
    return _LINEAR if zero else ()


def _broadcast(call: OpCall) -> str:
    stars = ", ".join(["*b"] * len(call.inputs))
    return f"{stars} -> {stars}"


def _as_expand(context: LocalContext, tensors: Any) -> Any:
    """Each tensor to the local shape of the result: a shard cannot tell what the others expand."""
    expand = torch.ops.aten.expand.default
    return [expand(each, list(context.output_shape(i))) for i, each in enumerate(tensors)]


def _additive(call: OpCall) -> tuple[frozenset[int], ...]:
    return (frozenset(range(len(call.inputs))),)


def _as_reshape(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Every row-major view is one reshape to the local shape; a squeeze must see no shard sizes."""
    return torch.ops.aten.reshape.default(x, list(context.output_shape()))


_RESHAPE = Rule(_reshape, kind="free", partial=_LINEAR, program=_as_reshape)

RULES: dict[str, Rule] = {
    "aten.view.default": _RESHAPE,
    "aten.reshape.default": _RESHAPE,
    "aten._unsafe_view.default": _RESHAPE,
    "aten.flatten.using_ints": _RESHAPE,
    "aten.unflatten.int": _RESHAPE,
    "aten.unsqueeze.default": _RESHAPE,
    "aten.squeeze.dim": _RESHAPE,
    "aten.squeeze.dims": _RESHAPE,
    "aten.squeeze.default": _RESHAPE,
    "aten.transpose.int": Rule(_transpose, kind="free", partial=_LINEAR),
    "aten.t.default": Rule(_matrix_transpose, kind="free", partial=_LINEAR),
    "aten.numpy_T.default": Rule(_matrix_transpose, kind="free", partial=_LINEAR),
    "aten.permute.default": Rule(_permute, kind="free", partial=_LINEAR),
    "aten.expand.default": Rule(_expand, kind="free", partial=_LINEAR, sizes=1),
    "aten.broadcast_tensors.default": Rule(
        _broadcast, kind="free", partial=_additive, program=_as_expand
    ),
    "aten.slice.Tensor": Rule(_slice, kind="free", partial=_LINEAR),
    "aten.split.Tensor": Rule(_uneven_split, kind="free", partial=_LINEAR),
    "aten.split_with_sizes.default": Rule(_uneven_split, kind="free", partial=_LINEAR),
    "aten.chunk.default": Rule(_uneven_split, kind="free", partial=_LINEAR),
    "aten.select.int": Rule(_select, kind="free", partial=_LINEAR),
    "aten.cat.default": Rule(_cat, partial=_additive),
    "aten.stack.default": Rule(_stack, partial=_additive),
    "aten.pad.default": Rule(_pad, partial=_pad_is_linear),
}
