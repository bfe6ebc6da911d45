"""Views that move dimensions about; all linear, so P passes through all of them."""

from __future__ import annotations

from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import passing
from autoplan.strategies.notation import Bound, bind_reshape, numbered
from autoplan.strategies.rule import OpCall, Rule, all_together

_LINEAR = (frozenset({0}),)


def _op_name(call: OpCall) -> str:
    """`transpose` of `aten.transpose.int`."""
    return call.op.split(".")[1]


# -- regrouping -----------------------------------------------------------------------------


def _reshape(call: OpCall) -> Bound:
    return bind_reshape(call.inputs[0].shape, call.outputs[0].shape)


def _reshape_as(call: OpCall) -> Bound:
    """The second tensor has the shape of the result, and is read for nothing else."""
    bound = _reshape(call)
    return Bound((*bound.inputs, *bound.outputs), bound.outputs, bound.sizes, bound.aligned)


def _as_reshape(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Every row-major view is one reshape to the local shape; a squeeze must see no shard sizes."""
    return torch.ops.aten.reshape.default(x, list(context.output_shape()))


def _reinterpret(call: OpCall) -> str:
    """The bits as another type: of another size, they regroup along the last dimension."""
    same = call.inputs[0].itemsize == call.outputs[0].itemsize
    return "*b -> *b" if same else "*b [in] -> *b [out]"


# -- reordering -----------------------------------------------------------------------------


def _transpose(call: OpCall) -> str:
    names = numbered(len(call.inputs[0].shape))
    moved = list(names)
    if names:
        kind = "axis" if _op_name(call) == "swapaxes" else "dim"
        first, second = call.dim(1, f"{kind}0"), call.dim(2, f"{kind}1")
        moved[first], moved[second] = moved[second], moved[first]
    return f"{' '.join(names)} -> {' '.join(moved)}"


def _matrix_transpose(call: OpCall) -> str:
    """The last two dimensions; a vector is its own transpose."""
    names = numbered(len(call.inputs[0].shape))
    moved = [*names[:-2], *reversed(names[-2:])]
    return f"{' '.join(names)} -> {' '.join(moved)}"


def _reverse(call: OpCall) -> str:
    names = numbered(len(call.inputs[0].shape))
    return f"{' '.join(names)} -> {' '.join(reversed(names))}"


def _permute(call: OpCall) -> str:
    names = numbered(len(call.inputs[0].shape))
    order = call.argument(1, "dims")
    return f"{' '.join(names)} -> {' '.join(names[i] for i in order)}"


def _move(call: OpCall) -> str:
    """The named dimensions to their destinations; the others keep their order."""
    names = numbered(len(call.inputs[0].shape))
    given = call.argument(1, "source"), call.argument(2, "destination")
    sources, targets = (
        [dim % len(names) for dim in ([each] if isinstance(each, int) else each)] for each in given
    )
    place = dict(zip(targets, sources, strict=True))
    others = (name for i, name in enumerate(names) if i not in sources)
    moved = [names[place[i]] if i in place else next(others) for i in range(len(names))]
    return f"{' '.join(names)} -> {' '.join(moved)}"


# -- repeating ------------------------------------------------------------------------------


def _expand(call: OpCall) -> str:
    """Dimensions of size one, and new ones on the left, are repeated."""
    return f"{', '.join(['*b'] * len(call.inputs))} -> *b"


def _expand_to_result(context: LocalContext, x: Any, *args: Any, **kwargs: Any) -> Any:
    return torch.ops.aten.expand.default(x, list(context.output_shape()))


def _broadcast(call: OpCall) -> str:
    stars = ", ".join(["*b"] * len(call.inputs))
    return f"{stars} -> {stars}"


def _as_expand(context: LocalContext, tensors: Any) -> Any:
    """Each tensor to the local shape of the result: a shard cannot tell what the others expand."""
    expand = torch.ops.aten.expand.default
    return [expand(each, list(context.output_shape(i))) for i, each in enumerate(tensors)]


def _meshgrid(call: OpCall) -> str:
    """Each vector along a dimension of its own; "xy" swaps the first two."""
    names = [f"i{n}" if meta.shape else "" for n, meta in enumerate(call.inputs)]
    dims = [name or "1" for name in names]
    if call.kwargs.get("indexing", "ij") == "xy":
        dims[:2] = reversed(dims[:2])
    return f"{', '.join(names)} -> {', '.join([' '.join(dims)] * len(call.outputs))}"


# -- cutting --------------------------------------------------------------------------------


def _slice(call: OpCall) -> str:
    """The dimension that is cut is whole on every rank."""
    before = numbered(len(call.inputs[0].shape))
    after = list(before)
    at = call.dim(1, "dim", 0)
    before[at], after[at] = "[in]", "[out]"
    return f"{' '.join(before)} -> {' '.join(after)}"


def _select(call: OpCall) -> str:
    """One row, or all rows apart, of a dimension that is whole on every rank."""
    names = numbered(len(call.inputs[0].shape))
    at = call.dim(1, "dim", 0)
    kept = " ".join(names[:at] + names[at + 1 :])
    names[at] = f"[{names[at]}]"
    return f"{' '.join(names)} -> {', '.join([kept] * len(call.outputs))}"


def _pieces(call: OpCall) -> Bound:
    """Pieces along one dimension, which stays whole."""
    shape = call.inputs[0].shape
    at = {"hsplit": min(1, len(shape) - 1), "vsplit": 0, "dsplit": 2}.get(_op_name(call))
    if at is None:
        at = call.dim(2, "dim", 0)
    dims = tuple(f"d{i}" if i != at and size > 1 else None for i, size in enumerate(shape))
    sizes = {f"d{i}": size for i, size in enumerate(shape) if i != at and size > 1}
    return Bound((dims,), (dims,) * len(call.outputs), sizes)


def _diagonal(call: OpCall) -> str:
    """Two whole dimensions become one, the last."""
    names = numbered(len(call.inputs[0].shape))
    defaults = (-2, -1) if _op_name(call) == "linalg_diagonal" else (0, 1)
    pair = {call.dim(i + 2, f"dim{i + 1}", default) for i, default in enumerate(defaults)}
    kept = [name for i, name in enumerate(names) if i not in pair]
    names = [f"[{name}]" if i in pair else name for i, name in enumerate(names)]
    return f"{' '.join(names)} -> {' '.join([*kept, '[k]'])}"


def _unfold(call: OpCall) -> str:
    """Windows of a whole dimension, their contents last."""
    before = numbered(len(call.inputs[0].shape))
    if not before:
        return " -> [size]"
    after = list(before)
    at = call.dim(1, "dimension")
    before[at], after[at] = "[in]", "[windows]"
    return f"{' '.join(before)} -> {' '.join(after)} [size]"


_RESHAPE = Rule(_reshape, kind="free", partial=_LINEAR, program=_as_reshape, memory=passing)
_RESHAPE_AS = Rule(_reshape_as, kind="free", partial=_LINEAR, program=_as_reshape, memory=passing)
_TRANSPOSE = Rule(_transpose, kind="free", partial=_LINEAR, memory=passing)
_MATRIX_TRANSPOSE = Rule(_matrix_transpose, kind="free", partial=_LINEAR, memory=passing)
_MOVE = Rule(_move, kind="free", partial=_LINEAR, memory=passing)
_EXPAND = Rule(_expand, kind="free", partial=_LINEAR, sizes=1)
_MESHGRID = Rule(_meshgrid, kind="free", partial=all_together)
_SLICE = Rule(_slice, kind="free", partial=_LINEAR)
_SELECT = Rule(_select, kind="free", partial=_LINEAR)
_PIECES = Rule(_pieces, kind="free", partial=_LINEAR)
_DIAGONAL = Rule(_diagonal, kind="free", partial=_LINEAR)
_SAME_SHAPE = Rule("*b -> *b", kind="free", partial=_LINEAR, memory=passing)

_RESHAPES = (
    "view.default reshape.default _unsafe_view.default flatten.using_ints ravel.default "
    "unflatten.int unsqueeze.default squeeze.dim squeeze.dims squeeze.default atleast_1d.default "
    "atleast_2d.default atleast_3d.default"
)
_SPLITS = (
    "split.Tensor split_with_sizes.default chunk.default tensor_split.sections "
    "tensor_split.indices hsplit.int hsplit.array vsplit.int vsplit.array dsplit.int dsplit.array"
)

RULES: dict[str, Rule] = {
    **{f"aten.{name}": _RESHAPE for name in _RESHAPES.split()},
    "aten.view_as.default": _RESHAPE_AS,
    "aten.reshape_as.default": _RESHAPE_AS,
    "aten.view.dtype": Rule(_reinterpret, kind="free"),
    "aten.transpose.int": _TRANSPOSE,
    "aten.swapaxes.default": _TRANSPOSE,
    "aten.swapdims.default": _TRANSPOSE,
    "aten.t.default": _MATRIX_TRANSPOSE,
    "aten.numpy_T.default": Rule(_reverse, kind="free", partial=_LINEAR, memory=passing),
    "aten.mT.default": _MATRIX_TRANSPOSE,
    "aten.mH.default": _MATRIX_TRANSPOSE,
    "aten.matrix_H.default": _MATRIX_TRANSPOSE,
    "aten.adjoint.default": _MATRIX_TRANSPOSE,
    "aten.permute.default": Rule(_permute, kind="free", partial=_LINEAR, memory=passing),
    "aten.movedim.int": _MOVE,
    "aten.movedim.intlist": _MOVE,
    "aten.moveaxis.int": _MOVE,
    "aten.moveaxis.intlist": _MOVE,
    "aten.expand.default": _EXPAND,
    "aten.broadcast_to.default": _EXPAND,
    "aten.expand_as.default": Rule(
        _expand, kind="free", partial=_LINEAR, program=_expand_to_result
    ),
    "aten.broadcast_tensors.default": Rule(
        _broadcast, kind="free", partial=all_together, program=_as_expand
    ),
    "aten.meshgrid.default": _MESHGRID,
    "aten.meshgrid.indexing": _MESHGRID,
    "aten.slice.Tensor": _SLICE,
    "aten.narrow.default": _SLICE,
    "aten.select.int": _SELECT,
    "aten.unbind.int": _SELECT,
    **{f"aten.{name}": _PIECES for name in _SPLITS.split()},
    "aten.diagonal.default": _DIAGONAL,
    "aten.linalg_diagonal.default": _DIAGONAL,
    "aten.unfold.default": Rule(_unfold, kind="free", partial=_LINEAR),
    "aten.view_as_real.default": Rule("*b -> *b [c]", kind="free", partial=_LINEAR),
    "aten.view_as_complex.default": Rule("*b [c] -> *b", kind="free", partial=_LINEAR),
    "aten.real.default": _SAME_SHAPE,
    "aten.imag.default": _SAME_SHAPE,
    "aten.resolve_conj.default": _SAME_SHAPE,
    "aten.resolve_neg.default": _SAME_SHAPE,
}
