"""Mixtures of experts: products of rows that are grouped by expert.

Row t is multiplied by the matrix of its expert; `offs[e]` is where the rows of expert e end. With
experts split (expert parallelism, Lepikhin et al. 2020), rows travel to the rank that holds their
expert and back. Rows are sorted by expert, so that whom a rank sends how many follows from `offs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from autoplan.errors import RuleError
from autoplan.layouts import local_ranges
from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound, bind, parse
from autoplan.strategies.rule import InnerCollective, OpCall, Rule

_ANY_WIDTH = parse("t i, e i o, [f] -> t o")
_WHOLE_VECTORS = parse("t (i v), e (i v) (o v), [f] -> t (o v)")
_VECTOR_BYTES = 16


def _grouped(call: OpCall) -> Bound | None:
    """Rows [t, i] by matrices [e, i, o]; `te` splits rows and experts at once.

    Its work is counted as that of its experts, as if all had equally many rows.
    """
    if [len(shape) for shape in call.input_shapes] != [2, 3, 1]:
        return None
    return _with_both(bind(_ANY_WIDTH, call.input_shapes, call.output_shapes))


def _grouped_in_vectors(call: OpCall) -> Bound | None:
    """torch's own kernel wants rows and columns of matrices to start at multiples of 16 bytes."""
    if [len(shape) for shape in call.input_shapes] != [2, 3, 1]:
        return None
    vector = {"v": _VECTOR_BYTES // call.inputs[0].itemsize}
    try:
        bound = bind(_WHOLE_VECTORS, call.input_shapes, call.output_shapes, vector)
    except RuleError:
        return None
    return _with_both(bound)


def _with_both(bound: Bound) -> Bound:
    return replace(bound, sizes={**bound.sizes, "te": bound.sizes["e"]})


def _permits(labels: tuple[str, ...]) -> bool:
    """Rows travel over one axis, which alone splits the experts."""
    return "te" not in labels or (labels.count("te") == 1 and "e" not in labels)


def _grouped_matmul(
    context: LocalContext, x: Any, weight: Any, offs: Any, *args: Any, **kwargs: Any
) -> Any:
    """The op itself, on offsets into the rows that this rank multiplies."""
    if context.axes("te"):
        return _routed_matmul(context, x, weight, offs, *args, **kwargs)
    start, stop = context.input_ranges(0)[0]
    if context.axes("t"):
        offs = torch.clamp(torch.sub(offs, start), 0, stop - start)
    if not context.axes("e"):
        return context.target(x, weight, offs, *args, **kwargs)
    # The rows of this rank's experts; the others are zero, an addend.
    first, last = context.input_ranges(1)[0]
    bounds = torch.constant_pad_nd(offs, [1, 0])
    low: Any = bounds[first].item()
    high: Any = bounds[last].item()
    own = torch.sub(torch.narrow(offs, 0, first, last - first), low)
    rows = context.target(torch.narrow(x, 0, low, high - low), weight, own, *args, **kwargs)
    return torch.constant_pad_nd(rows, [0, 0, low, (stop - start) - high])


def _routed_matmul(
    context: LocalContext, x: Any, weight: Any, offs: Any, *args: Any, **kwargs: Any
) -> Any:
    """Rows go to the ranks of their experts, and the products come back."""
    (axis,) = context.axes("te")
    rows, experts = _shares(context, 0, axis), _shares(context, 1, axis)
    index = context.coordinates[context.mesh.index(axis)]
    whole = sum(stop - start for start, stop in rows)
    # Where each expert's rows begin and end, within each rank's rows: [rank, expert + 1].
    bounds = torch.clamp(
        torch.constant_pad_nd(offs, [1, 0]),
        offs.new_tensor([[start] for start, _ in rows]),
        offs.new_tensor([[stop] for _, stop in rows]),
    )
    counts = torch.diff(bounds[:, [0, *(last for _, last in experts)]], dim=1)
    first, last = experts[index]
    own = torch.sub(bounds[:, first + 1 : last + 1], bounds[:, first : first + 1])
    own = torch.sum(own, 0, dtype=context.call.inputs[2].dtype)
    start, stop = rows[index]
    x = context.comm.exchange_rows(x, counts, axis=axis, rows=whole)
    x = context.target(x, weight, own, *args, **kwargs)
    return context.comm.exchange_rows(
        x, torch.t(counts), axis=axis, rows=whole, length=stop - start
    )


def _shares(context: LocalContext, position: int, axis: str) -> list[tuple[int, int]]:
    """Start and stop of what each rank of `axis` holds of an input's first dimension."""
    at = context.mesh.index(axis)
    shape, layout = context.call.inputs[position].shape, context.input_layouts[position]
    found = []
    for index in range(context.mesh.sizes[at]):
        coordinates = (*context.coordinates[:at], index, *context.coordinates[at + 1 :])
        found.append(local_ranges(shape, layout, context.mesh, coordinates)[0])
    return found


def _inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    """Two exchanges forward, and the way back of each. Data decides how many rows really travel."""
    for axis in context.axes("te"):
        whole = sum(stop - start for start, stop in _shares(context, 0, axis))
        operands = (
            (call.inputs[0], context.input_ranges(0)),
            (call.outputs[0], context.output_ranges()),
        )
        for meta, (_, (start, stop)) in operands:
            size = whole * (stop - start) * meta.itemsize
            yield InnerCollective("all_to_all", size, axis)
            if meta.requires_grad:
                yield InnerCollective("all_to_all", size, axis, backward=True)


def _flops(call: OpCall) -> float:
    """Every row meets one expert."""
    return 2.0 * call.inputs[0].numel * call.outputs[0].shape[-1]


_RULE = Rule(
    _grouped,
    kind="matmul",
    sums=True,
    partial=(frozenset({0}), frozenset({1})),
    together={"te": ("t", "e")},
    permits=_permits,
    saves=(0, 1),
    program=_grouped_matmul,
    inner=_inner,
    flops=_flops,
)

RULES: dict[str, Rule] = {
    # A launch over no experts has no blocks, which CUDA refuses.
    "aten._grouped_mm.default": replace(
        _RULE,
        notation=_grouped_in_vectors,
        saves=(0, 1, 2),
        needs_rows=frozenset({"e", "te"}),
    ),
    "transformers.grouped_mm_fallback.default": _RULE,
}
