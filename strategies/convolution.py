"""Convolutions, pooling and resizing: split over batch and channels, whole in space.

A dimension of space would need its neighbours' edge rows (a halo exchange), so it stays whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound, bind, parse
from autoplan.strategies.rule import OpCall, OpMemory, Rule

_FIRST = (frozenset({0}),)
_CHANNELS = frozenset({"c", "o", "g"})
"""Kernels take an empty batch, but not zero channels."""


def _space(name: str, count: int) -> str:
    """`[s0] [s1]`: dimensions that are whole on every rank."""
    return " ".join(f"[{name}{i}]" for i in range(count))


# -- convolutions ---------------------------------------------------------------------------


def _num_spatial(call: OpCall) -> int:
    return len(call.inputs[1].shape) - 2


def _is_transposed(call: OpCall) -> bool:
    named = call.op.startswith("aten.convolution.")
    return bool(call.argument(6, "transposed")) if named else "transpose" in call.op


def _groups(call: OpCall) -> int:
    return int(call.argument(_groups_position(call), "groups", 1))


def _groups_position(call: OpCall) -> int:
    return 8 if call.op.startswith("aten.convolution.") else 6


def _convolution(call: OpCall) -> Bound:
    """Input channels are contracted over.

    With groups, ranks take groups of input and output channels together: groups of one channel may
    be cut anywhere, larger ones where the ranks divide their number.
    """
    count, groups = _num_spatial(call), _groups(call)
    batch = "n" if len(call.inputs[0].shape) == count + 2 else ""
    source, target, bias = "c", "o", ", +o"
    sizes = {}
    weight = "c o" if _is_transposed(call) else "o c"
    if groups > 1:
        source = "g" if call.inputs[0].shape[-count - 1] == groups else "(g i)"
        target = "g" if call.outputs[0].shape[-count - 1] == groups else "(g j)"
        bias, sizes = f", +{target}", {"g": groups}
        weight = f"{source} [j]" if _is_transposed(call) else f"{target} [i]"
    text = (
        f"{batch} {source} {_space('s', count)}, {weight} {_space('k', count)}"
        f"{bias if len(call.inputs) == 3 else ''} -> {batch} {target} {_space('t', count)}"
    )
    return bind(parse(text), call.input_shapes, call.output_shapes, sizes)


def _local_convolution(
    context: LocalContext, x: Any, weight: Any, *args: Any, **kwargs: Any
) -> Any:
    """Split groups: each rank convolves its own number of them."""
    if not context.axes("g"):
        return context.same_op(x, weight, *args, **kwargs)
    call, count = context.call, _num_spatial(context.call)
    start, stop = context.input_ranges(0)[-count - 1]
    groups = (stop - start) * _groups(call) // call.inputs[0].shape[-count - 1]
    return context.target(
        x, weight, *_replaced(args, kwargs, _groups_position(call) - 2, groups), **kwargs
    )


def _replaced(
    args: Sequence[Any], kwargs: dict[str, Any], position: int, groups: int
) -> tuple[Any, ...]:
    """Arguments with another number of groups, by position or by name."""
    if "groups" in kwargs:
        kwargs["groups"] = groups
        return tuple(args)
    return (*args[:position], groups, *args[position + 1 :])


def _convolution_flops(call: OpCall) -> float:
    """Every output of a convolution, or input of a transposed one, meets a window of channels."""
    channels_and_window = math.prod(call.inputs[1].shape[1:])
    meta = call.inputs[0] if _is_transposed(call) else call.outputs[0]
    return 2.0 * meta.numel * channels_and_window


def _saved_factors(call: OpCall) -> tuple[int | str, ...]:
    """One formula for all gradients: it keeps both factors."""
    return (0, 1)


def _padded(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """ "same" with a window of even size pads one side more: then a padded copy is kept."""
    window = call.inputs[1].shape[2:]
    dilation = call.argument(5, "dilation", 1)
    steps = dilation if isinstance(dilation, (list, tuple)) else [dilation] * len(window)
    steps = list(steps) * (len(window) // len(steps))
    added = [step * (size - 1) for step, size in zip(steps, window, strict=True)]
    if call.argument(4, "padding", "valid") != "same" or all(n % 2 == 0 for n in added):
        return plain
    x = context.input_meta(0)
    space = (n + more % 2 for n, more in zip(x.shape[-len(window) :], added, strict=True))
    copy = math.prod((*x.shape[: -len(window)], *space)) * x.itemsize
    return replace(plain, saves=(1,), kept=copy, backward=copy - x.num_bytes)


def _places(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """Where each largest element was, of eight bytes; an output of its own in some ops."""
    return replace(plain, kept=0 if len(call.outputs) > 1 else 8 * context.output_meta().numel)


def _pooled(call: OpCall) -> tuple[int | str, ...]:
    """Into one element it is a plain mean."""
    sizes = call.argument(1, "output_size")
    one = call.op == "aten.adaptive_avg_pool2d.default" and set(sizes) == {1}
    return () if one else (0,)


def _extremes(call: OpCall) -> tuple[int | str, ...]:
    return (0, "output") if len(call.outputs) > 1 else (0,)


_CONVOLUTION = Rule(
    _convolution,
    kind="matmul",
    partial=_FIRST,
    sums=True,
    saves=_saved_factors,
    needs_rows=_CHANNELS,
    program=_local_convolution,
    flops=_convolution_flops,
)

# -- windows and resizing -------------------------------------------------------------------


def _each_channel(call: OpCall) -> str:
    """Every image of every channel by itself: `n c [s0] [s1] -> n c [t0] [t1]`."""
    found = re.search(r"([123])d", call.op)
    count = int(found[1]) if found else 2
    names = "n c" if len(call.inputs[0].shape) == count + 2 else "c"
    source, target = f"{names} {_space('s', count)}", f"{names} {_space('t', count)}"
    inputs, outputs = [source] * len(call.inputs), [target] * len(call.outputs)
    return f"{', '.join(inputs)} -> {', '.join(outputs)}"


def _windows(call: OpCall) -> str:
    """Windows as columns: each channel becomes a run of rows, one a place in the window."""
    batch = "n" if max(len(call.inputs[0].shape), len(call.outputs[0].shape)) == 4 else ""
    image, columns = f"{batch} c [h] [w]", f"{batch} (c k) [l]"
    return f"{columns} -> {image}" if "col2im" in call.op else f"{image} -> {columns}"


def _pixels(call: OpCall) -> Bound:
    """Channels to space or back: each becomes, or is made of, `r` x `r` places of a pixel."""
    factor = int(call.argument(1, "factor"))
    deep, wide = "*b (c q) h w", "*b c (h r) (w r)"
    text = f"{wide} -> {deep}" if "unshuffle" in call.op else f"{deep} -> {wide}"
    sizes = {"q": factor * factor, "r": factor}
    return bind(parse(text), call.input_shapes, call.output_shapes, sizes)


def _pixel_shuffle(context: LocalContext, x: Any, factor: int) -> Any:
    """Two reshapes and a permutation: the op's own backward fails on an empty batch."""
    *batch, channels, height, width = context.output_shape()
    places = torch.ops.aten.reshape.default(
        x, [*batch, channels, factor, factor, height // factor, width // factor]
    )
    b = len(batch)
    order = [*range(b + 1), b + 3, b + 1, b + 4, b + 2]
    moved = torch.ops.aten.permute.default(places, order)
    return torch.ops.aten.reshape.default(moved, [*batch, channels, height, width])


def _pixel_unshuffle(context: LocalContext, x: Any, factor: int) -> Any:
    """See `_pixel_shuffle`."""
    *batch, channels, height, width = context.output_shape()
    places = torch.ops.aten.reshape.default(
        x, [*batch, channels // factor**2, height, factor, width, factor]
    )
    b = len(batch)
    order = [*range(b + 1), b + 2, b + 4, b + 1, b + 3]
    moved = torch.ops.aten.permute.default(places, order)
    return torch.ops.aten.reshape.default(moved, [*batch, channels, height, width])


def _grid_sampler(call: OpCall) -> str:
    """The image is whole in space; each place of the grid looks up by itself."""
    count = len(call.inputs[0].shape) - 2
    places = " ".join(f"g{i}" for i in range(count))
    return f"n c {_space('s', count)}, n {places} [d] -> n c {places}"


def _affine_grid(call: OpCall) -> str:
    return f"n [i] [j] -> n {_space('g', len(call.outputs[0].shape) - 1)}"


def _local_affine_grid(context: LocalContext, theta: Any, size: Any, *args: Any) -> Any:
    """The size of the images begins with their number."""
    start, stop = context.input_ranges(0)[0]
    return context.target(theta, [stop - start, *size[1:]], *args)


_EXTREME = Rule(_each_channel, saves=_extremes, memory=_places, needs_rows=_CHANNELS)
_AVERAGE = Rule(_each_channel, partial=_FIRST, saves=(0,), needs_rows=_CHANNELS)
_RESIZE = Rule(_each_channel, partial=_FIRST, needs_rows=_CHANNELS)
_COLUMNS = Rule(_windows, partial=_FIRST)

_RESIZES = (
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)

RULES: dict[str, Rule] = {
    **{f"aten.conv{n}d.default": _CONVOLUTION for n in (1, 2, 3)},
    **{f"aten.conv{n}d.padding": replace(_CONVOLUTION, memory=_padded) for n in (1, 2, 3)},
    "aten.conv_transpose1d.default": _CONVOLUTION,
    "aten.conv_transpose2d.input": _CONVOLUTION,
    "aten.conv_transpose3d.input": _CONVOLUTION,
    "aten.convolution.default": _CONVOLUTION,
    **{f"aten.max_pool{n}d.default": _EXTREME for n in (1, 2, 3)},
    **{f"aten.max_pool{n}d_with_indices.default": _EXTREME for n in (1, 2, 3)},
    **{f"aten.adaptive_max_pool{n}d.default": _EXTREME for n in (1, 2, 3)},
    **{f"aten.avg_pool{n}d.default": _AVERAGE for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d.default": replace(_AVERAGE, saves=_pooled) for n in (1, 2, 3)},
    **{
        f"aten.max_unpool{n}d.default": Rule(
            _each_channel, partial=_FIRST, saves=(1,), needs_rows=_CHANNELS
        )
        for n in (2, 3)
    },
    **{f"aten.{name}.{kind}": _RESIZE for name in _RESIZES.split() for kind in ("default", "vec")},
    "aten.im2col.default": _COLUMNS,
    "aten.col2im.default": _COLUMNS,
    "aten.pixel_shuffle.default": Rule(_pixels, partial=_FIRST, program=_pixel_shuffle),
    "aten.pixel_unshuffle.default": Rule(_pixels, partial=_FIRST, program=_pixel_unshuffle),
    "aten.channel_shuffle.default": Rule("n [c] *s -> n [c] *s", partial=_FIRST),
    "aten.grid_sampler.default": Rule(_grid_sampler, partial=_FIRST, saves=(0, 1)),
    "aten.affine_grid_generator.default": Rule(
        _affine_grid, partial=_FIRST, needs_rows=True, program=_local_affine_grid
    ),
}
