"""Products and distances of vectors and blocks, which are no contractions."""

from __future__ import annotations

from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, Rule

_BILINEAR = (frozenset({0}), frozenset({1}))


def _kronecker(call: OpCall) -> str:
    """Every number of the first tensor becomes a block as large as the second."""
    shapes = [meta.shape for meta in call.inputs]
    count = max(map(len, shapes))
    outer, inner = (
        [f"{name}{i}" for i in range(count - len(shape), count)]
        for name, shape in zip("ij", shapes, strict=True)
    )
    merged = [
        f"({' '.join(name for name in (f'i{i}', f'j{i}') if name in outer or name in inner)})"
        for i in range(count)
    ]
    blocks = " ".join(name if f"i{name[1:]}" not in outer else f"[{name}]" for name in inner)
    return f"{' '.join(outer)}, {blocks} -> {' '.join(merged)}"


def _cross_dim(call: OpCall) -> int:
    """Dimension of three; `cross` without one takes the first of that size."""
    shape = call.outputs[0].shape
    dim = call.argument(2, "dim", -1 if "linalg" in call.op else None)
    return shape.index(3) if dim is None else int(dim) % len(shape)


def _cross(call: OpCall) -> str:
    names = [f"d{i}" for i in range(len(call.outputs[0].shape))]
    names[_cross_dim(call)] = "[k]"
    operands = [" ".join(names[len(names) - len(meta.shape) :]) for meta in call.inputs]
    return f"{', '.join(operands)} -> {' '.join(names)}"


def _local_cross(context: LocalContext, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
    """A shard may have other dimensions of three."""
    return torch.ops.aten.linalg_cross.default(x, y, dim=_cross_dim(context.call))


def _distance(call: OpCall) -> str:
    keep = " 1" if call.argument(4, "keepdim", False) else ""
    return f"*b [k], *b [k] -> *b{keep}"


def _factors(call: OpCall) -> tuple[int | str, ...]:
    """A factor is kept for the gradient of the other one."""
    first, second = call.inputs
    return (*((0,) if second.requires_grad else ()), *((1,) if first.requires_grad else ()))


_CROSS = Rule(_cross, partial=_BILINEAR, saves=_factors, program=_local_cross)

RULES: dict[str, Rule] = {
    "aten.kron.default": Rule(_kronecker, partial=_BILINEAR, saves=_factors),
    "aten.cross.default": _CROSS,
    "aten.linalg_cross.default": _CROSS,
    "aten.cdist.default": Rule("*b p [k], *b r [k] -> *b p r", saves=(0, 1, "output")),
    "aten.pairwise_distance.default": Rule(_distance, saves=(0, 1)),
}
