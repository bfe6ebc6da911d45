"""New tensors: in a given shape, filled, or composed of others."""

from __future__ import annotations

from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, Rule

_LINEAR = (frozenset({0}),)


def _new(call: OpCall) -> str:
    """Of the input only the type is read; dimensions of the same size may be split as its own."""
    source, target = call.inputs[0].shape, call.outputs[0].shape
    before = [
        f"d{i}" if len(source) == len(target) and size == target[i] else f"[s{i}]"
        for i, size in enumerate(source)
    ]
    return f"{' '.join(before)} -> {' '.join(f'd{i}' for i in range(len(target)))}"


def _full_is_linear(call: OpCall) -> tuple[frozenset[int], ...]:
    return () if call.argument(2, "fill_value") else _LINEAR


def _copy(context: LocalContext, x: Any, source: Any, *args: Any) -> Any:
    """`copy` has no derivative of its own."""
    rows = torch.ops.aten.expand.default(source, list(context.output_shape()))
    return torch.ops.aten.to.dtype(rows, context.call.outputs[0].dtype)


def _zeros(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """What an empty tensor holds is for no one to read; zeros are the same on every rank."""
    shape, dtype = list(context.output_shape()), context.call.outputs[0].dtype
    return torch.ops.aten.new_zeros.default(x, shape, dtype=dtype)


RULES: dict[str, Rule] = {
    "aten.complex.default": Rule("*b, *b -> *b", partial=(frozenset({0, 1}),)),
    "aten.polar.default": Rule("*b, *b -> *b", saves=("output",)),
    "aten.new_zeros.default": Rule(_new, partial=_LINEAR, sizes=1),
    "aten.new_ones.default": Rule(_new, sizes=1),
    "aten.new_full.default": Rule(_new, partial=_full_is_linear, sizes=1),
    "aten.new_empty.default": Rule(_new, partial=_LINEAR, program=_zeros),
    "aten.fill.Tensor": Rule("*b, -> *b", partial=(frozenset({1}),)),
    "aten.copy.default": Rule("*b, *b -> *b", partial=(frozenset({1}),), program=_copy),
}
