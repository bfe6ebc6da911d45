"""Writing by index: each rank writes what falls into its own rows.

What falls into rows of other ranks goes to one row more, which is cut off. Where writing adds, the
indices can be split as well: every rank then adds its own, and the results are addends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from autoplan.strategies.indexing import (
    index_places,
    is_masked,
    local_numbers,
    result_dims,
    source_dims,
)
from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, Rule


def _adds(call: OpCall) -> bool:
    """Whether every write is a sum with what was there."""
    name = call.op.split(".")[1]
    if name in ("scatter_add", "index_add"):
        return True
    if name == "index_put":
        return bool(call.argument(3, "accumulate", False))
    if name == "scatter_reduce":
        reduction = call.argument(4, "reduce")
        return reduction == "sum" and bool(call.kwargs.get("include_self", True))
    return call.kwargs.get("reduce") == "add" and len(call.inputs) == 3


def _overwrites(call: OpCall) -> bool:
    """Whether writes replace what was there, with tensors or with zero."""
    name = call.op.split(".")[1]
    if name in ("scatter_reduce", "index_reduce") or "reduce" in call.kwargs:
        return False
    position = {"aten.scatter.value": 3, "aten.index_fill.int_Scalar": 3}.get(call.op)
    return position is None or not call.argument(position, "value")


def _linear(call: OpCall) -> tuple[frozenset[int], ...]:
    """All but the indices together."""
    if not _adds(call) and not _overwrites(call):
        return ()
    return (frozenset({0, len(call.inputs) - 1} - _index_positions(call)),)


def _index_positions(call: OpCall) -> set[int]:
    return set(index_places(call).values()) if "index_put" in call.op else {1}


def _beyond(context: LocalContext, x: Any, dim: int, index: Any) -> tuple[Any, Any, int]:
    """`x` with one row more along `dim`, `index` into it, and the number of rows to keep."""
    start, stop = context.input_ranges(0)[dim]
    local, elsewhere = local_numbers(context, dim, index, start, stop)
    behind = 2 * (len(context.call.inputs[0].shape) - 1 - dim)
    longer = torch.ops.aten.constant_pad_nd.default(x, [0] * behind + [0, 1])
    return longer, torch.ops.aten.masked_fill.Scalar(local, elsewhere, stop - start), stop - start


def _local_write(
    context: LocalContext, x: Any, dim: int, index: Any, *args: Any, **kwargs: Any
) -> Any:
    if not context.axes("v"):
        return context.same_op(x, dim, index, *args, **kwargs)
    dim = context.call.dim(1)
    longer, local, rows = _beyond(context, x, dim, index)
    written = context.target(longer, dim, local, *args, **kwargs)
    return torch.ops.aten.slice.Tensor(written, dim, 0, rows)


# -- scatter --------------------------------------------------------------------------------


def _scatter(call: OpCall) -> str | None:
    """Other dimensions go along where all tensors have the same size."""
    shapes = call.input_shapes
    ndim = len(shapes[0])
    if not ndim or any(len(shape) != ndim for shape in shapes):
        return None
    at = call.dim(1)
    terms = [[f"d{i}" for i in range(ndim)] for _ in shapes]
    for i in range(ndim):
        if i != at and len({shape[i] for shape in shapes}) > 1:
            for number, term in enumerate(terms):
                term[i] = f"[d{i}_{number}]"
    for number, term in enumerate(terms):
        term[at] = "j" if number else "v"
    if not _adds(call) or len({shape[at] for shape in shapes[1:]}) > 1:
        for number, term in enumerate(terms[1:]):
            term[at] = f"[j{number}]"
    first, *others = map(" ".join, terms)
    return f"+{first}, {', '.join(others)} -> {first}"


def _index_write(call: OpCall) -> str | None:
    """Rows named by a vector; `index_add` adds rows of the source."""
    names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
    if not names:
        return None
    source = list(names)
    at = call.dim(1)
    vector = "j" if _adds(call) else "[j]"
    names[at], source[at] = "v", vector
    terms = [f"+{' '.join(names)}", vector if call.inputs[1].shape else ""]
    if "index_fill" not in call.op:
        terms.append(" ".join(source))
    elif len(call.inputs) == 3:
        terms.append("")
    return f"{', '.join(terms)} -> {' '.join(names)}"


# -- index_put ------------------------------------------------------------------------------


def _index_put(call: OpCall) -> str | None:
    if is_masked(call):
        return _masked_put(call)
    places = index_places(call)
    common, result = result_dims(call)
    if not _adds(call):
        result = [f"[{name}]" if name in common else name for name in result]
        common = [f"[{name}]" for name in common]
    indices = (
        " ".join(common[len(common) - len(call.inputs[at].shape) :]) for at in places.values()
    )
    values = " ".join(result[len(result) - len(call.inputs[-1].shape) :])
    target = source_dims(call)
    return f"+{target}, {', '.join(indices)}, {values} -> {target}"


def _masked_put(call: OpCall) -> str | None:
    """Flags go along with the dimensions that they cover; each covered element has one value."""
    places = index_places(call)
    if len(places) > 1:
        return None
    ((first, at),) = places.items()
    covered = range(first, first + len(call.inputs[at].shape))
    names = [f"d{i}" for i in range(len(call.inputs[0].shape))]
    kept = [name for i, name in enumerate(names) if i not in covered]
    result = [*kept[:first], "1", *kept[first:]]
    values = result[len(result) - len(call.inputs[-1].shape) :]
    count = call.inputs[-1].shape[values.index("1")] if "1" in values else 1
    if count != 1 or call.inputs[at].dtype != torch.bool:
        return None
    mask = " ".join(names[i] for i in covered)
    return f"{' '.join(names)}, {mask}, {' '.join(values)} -> {' '.join(names)}"


def _local_index_put(context: LocalContext, x: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    call = context.call
    split = [dim for dim in index_places(call) if context.axes(f"v{dim}")]
    if not split:
        return context.same_op(x, indices, *args, **kwargs)
    local, kept = list(indices), {}
    for dim in split:
        x, local[dim], kept[dim] = _beyond(context, x, dim, indices[dim])
    written = torch.ops.aten.index_put.default(x, local, *args, **kwargs)
    for dim, rows in kept.items():
        written = torch.ops.aten.slice.Tensor(written, dim, 0, rows)
    return written


def _write(
    notation: Callable[[OpCall], str | None],
    program: Callable[..., Any] = _local_write,
) -> Rule:
    """Only the indices are kept for backward."""
    return Rule(
        notation,
        sums=True,
        partial=_linear,
        saves=lambda call: tuple(sorted(_index_positions(call))),
        program=program,
    )


_SCATTER = _write(_scatter)
_SCATTER_REDUCE = Rule(
    _scatter, sums=True, partial=_linear, saves=(0, 1, 2, "output"), program=_local_write
)
_INDEX_WRITE = _write(_index_write)
_INDEX_COPY = replace(_INDEX_WRITE, saves=(1, 2))

RULES: dict[str, Rule] = {
    "aten.scatter.src": _SCATTER,
    "aten.scatter.value": _SCATTER,
    "aten.scatter.reduce": _SCATTER,
    "aten.scatter.value_reduce": _SCATTER,
    "aten.scatter_add.default": _SCATTER,
    "aten.scatter_reduce.two": _SCATTER_REDUCE,
    "aten.index_add.default": _INDEX_COPY,
    "aten.index_copy.default": _INDEX_COPY,
    "aten.index_fill.int_Scalar": _INDEX_WRITE,
    "aten.index_fill.int_Tensor": _INDEX_WRITE,
    "aten.index_reduce.default": Rule(
        _index_write, saves=(0, 1, 2, "output"), program=_local_write
    ),
    "aten.index_put.default": _write(_index_put, _local_index_put),
}
