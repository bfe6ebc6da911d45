"""Examples of convolutions, pooling and resizing."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F

from tests.strategies.examples.base import add, constant, real, whole

aten = torch.ops.aten

# -- convolutions ---------------------------------------------------------------------------

for _n in (1, 2, 3):
    _size, _window = (4, 3, 3)[:_n], (3, 2, 2)[:_n]
    _convolve = getattr(F, f"conv{_n}d")
    _back = getattr(F, f"conv_transpose{_n}d")
    add(
        f"conv{_n}d.default",
        bias=(_convolve, real(5, 4, *_size), real(7, 4, *_window), real(7)),
        strided=(
            functools.partial(_convolve, stride=2, padding=1, dilation=1),
            real(3, 7, *_size),
            real(4, 7, *_window),
        ),
    )
    add(
        f"conv{_n}d.padding",
        same=(
            functools.partial(_convolve, padding="same"),
            real(3, 4, *_size),
            real(5, 4, *_window),
            real(5),
        ),
        depthwise=(
            functools.partial(_convolve, padding="same", groups=7),
            real(2, 7, *_size),
            real(7, 1, *_window),
        ),
    )
    add(
        f"conv_transpose{_n}d.{'default' if _n == 1 else 'input'}",
        bias=(_back, real(5, 4, *_size), real(4, 7, *_window), real(7)),
        grouped=(
            functools.partial(_back, stride=2, padding=1, output_padding=1, groups=4),
            real(2, 8, *_size),
            real(8, 3, *_window),
            real(12),
        ),
    )
add(
    "conv2d.default",
    one_image=(F.conv2d, real(4, 4, 3), real(7, 4, 2, 2), real(7)),
    constant_image=(F.conv2d, constant(real(3, 4, 4, 3)), real(7, 4, 2, 2)),
    depthwise=(
        lambda x, w, b: F.conv2d(x, w, b, groups=7),
        real(3, 7, 4, 3),
        real(7, 1, 2, 2),
        real(7),
    ),
    widened=(
        lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=4),
        real(3, 4, 4, 3),
        real(8, 1, 2, 2),
        real(8),
    ),
    grouped=(
        lambda x, w, b: F.conv2d(x, w, b, stride=2, groups=4),
        real(5, 8, 4, 3),
        real(4, 2, 2, 2),
        real(4),
    ),
    grouped_image=(lambda x, w: F.conv2d(x, w, groups=2), real(8, 4, 3), real(6, 4, 2, 2)),
    three_groups=(lambda x, w: F.conv2d(x, w, groups=3), real(3, 6, 4, 3), real(6, 2, 2, 2)),
)


def _general(x: Any, w: Any, b: Any = None, transposed: bool = False, groups: int = 1) -> Any:
    return torch.convolution(x, w, b, [2, 1], [1, 0], [1, 1], transposed, [0, 0], groups)


add(
    "convolution.default",
    bias=(_general, real(5, 4, 4, 3), real(7, 4, 2, 2), real(7)),
    grouped=(functools.partial(_general, groups=4), real(2, 8, 4, 3), real(4, 2, 2, 2), real(4)),
    transposed=(
        functools.partial(_general, transposed=True, groups=2),
        real(3, 4, 4, 3),
        real(4, 3, 2, 2),
    ),
)

# -- windows --------------------------------------------------------------------------------

for _n in (1, 2, 3):
    _image = (5, 4, 3)[:_n]
    _maximum, _adaptive = getattr(F, f"max_pool{_n}d"), getattr(F, f"adaptive_max_pool{_n}d")
    _indexed = functools.partial(_maximum, return_indices=True)
    _average = getattr(F, f"avg_pool{_n}d")
    _area = getattr(F, f"adaptive_avg_pool{_n}d")
    add(
        f"max_pool{_n}d.default", strided=(lambda x, f=_maximum: f(x, 2, 1, 1), real(5, 4, *_image))
    )
    add(
        f"max_pool{_n}d_with_indices.default",
        two=(lambda x, f=_indexed: f(x, 2), real(5, 3, *_image)),
    )
    add(f"avg_pool{_n}d.default", padded=(lambda x, f=_average: f(x, 2, 1, 1), real(5, 4, *_image)))
    add(
        f"adaptive_max_pool{_n}d.default",
        two=(lambda x, f=_adaptive: f(x, 2, return_indices=True), real(5, 4, *_image)),
    )
    add(f"adaptive_avg_pool{_n}d.default", two=(lambda x, f=_area: f(x, 2), real(5, 3, *_image)))
add("max_pool2d.default", one_image=(lambda x: F.max_pool2d(x, 2), real(7, 4, 3)))
add("avg_pool2d.default", one_image=(lambda x: F.avg_pool2d(x, 2), real(6, 4, 3)))
add("adaptive_avg_pool2d.default", one=(lambda x: F.adaptive_avg_pool2d(x, 1), real(6, 3, 4, 3)))
add(
    "max_unpool2d.default",
    two=(
        lambda x, at: aten.max_unpool2d.default(x, at, [3, 4]),
        real(5, 3, 1, 2),
        whole(0, 6, 5, 3, 1, 2) + torch.tensor([0, 6]),
    ),
)
add(
    "max_unpool3d.default",
    two=(
        lambda x, at: aten.max_unpool3d.default(x, at, [2, 2, 4], [2, 2, 2], [0, 0, 0]),
        real(5, 3, 1, 1, 2),
        whole(0, 8, 5, 3, 1, 1, 2) + torch.tensor([0, 8]),
    ),
)
add(
    "im2col.default",
    plain=(lambda x: F.unfold(x, 2), real(5, 4, 3, 4)),
    one_image=(lambda x: F.unfold(x, (2, 1), padding=1), real(4, 3, 4)),
)
add(
    "col2im.default",
    plain=(lambda x: F.fold(x, (3, 4), 2), real(5, 16, 6)),
    one_image=(lambda x: F.fold(x, (3, 4), (2, 1)), real(8, 8)),
)

# -- resizing -------------------------------------------------------------------------------

for _op, _mode, _image in (
    ("upsample_nearest1d", "nearest", (3,)),
    ("upsample_nearest2d", "nearest", (3, 2)),
    ("upsample_nearest3d", "nearest", (3, 2, 2)),
    ("_upsample_nearest_exact1d", "nearest-exact", (3,)),
    ("_upsample_nearest_exact2d", "nearest-exact", (3, 2)),
    ("_upsample_nearest_exact3d", "nearest-exact", (3, 2, 2)),
    ("upsample_linear1d", "linear", (3,)),
    ("upsample_bilinear2d", "bilinear", (3, 2)),
    ("upsample_trilinear3d", "trilinear", (3, 2, 2)),
    ("upsample_bicubic2d", "bicubic", (3, 2)),
    ("_upsample_bilinear2d_aa", "bilinear", (3, 4)),
    ("_upsample_bicubic2d_aa", "bicubic", (3, 4)),
):
    _more: dict[str, Any] = {"antialias": True} if _op.endswith("_aa") else {}
    _flags = [] if "nearest" in _op else [True]
    _size = [2 * size - 1 for size in _image]
    add(
        f"{_op}.vec",
        scaled=(
            functools.partial(F.interpolate, scale_factor=2, mode=_mode, **_more),
            real(5, 4, *_image),
        ),
        sized=(
            functools.partial(F.interpolate, size=_size, mode=_mode, **_more),
            real(2, 3, *_image),
        ),
    )
    _resize = getattr(aten, _op).default
    add(
        f"{_op}.default",
        sized=(lambda x, f=_resize, given=(_size, *_flags): f(x, *given), real(5, 4, *_image)),
    )
add(
    "pixel_shuffle.default",
    batch=(lambda x: F.pixel_shuffle(x, 2), real(5, 16, 4, 2)),
    one_image=(lambda x: F.pixel_shuffle(x, 3), real(18, 3, 2)),
    video=(lambda x: F.pixel_shuffle(x, 2), real(2, 3, 8, 2, 2)),
)
add(
    "pixel_unshuffle.default",
    batch=(lambda x: F.pixel_unshuffle(x, 2), real(5, 4, 4, 8)),
    one_image=(lambda x: F.pixel_unshuffle(x, 3), real(2, 6, 3)),
)
add(
    "channel_shuffle.default",
    batch=(lambda x: F.channel_shuffle(x, 2), real(5, 4, 3, 2)),
)
add(
    "grid_sampler.default",
    plane=(
        lambda x, at: F.grid_sample(x, at, align_corners=False),
        real(5, 4, 3, 4),
        real(5, 2, 5, 2),
    ),
    volume=(
        lambda x, at: F.grid_sample(x, at, padding_mode="border", align_corners=True),
        real(3, 2, 2, 3, 4),
        real(3, 2, 3, 5, 3),
    ),
)
add(
    "affine_grid_generator.default",
    plane=(lambda x: F.affine_grid(x, [5, 4, 2, 3], align_corners=False), real(5, 2, 3)),
    volume=(lambda x: F.affine_grid(x, [4, 4, 2, 3, 2], align_corners=True), real(4, 3, 4)),
)
