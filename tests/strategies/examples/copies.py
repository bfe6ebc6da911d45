"""Examples of copies."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.strategies.examples.base import (
    add,
    flags,
    real,
    whole,
)

add(
    "cat.default",
    rows=(lambda x, y: torch.cat([x, y]), real(3, 4), real(4, 4)),
    columns=(lambda x, y, z: torch.cat([x, y, z], -1), real(5, 4), real(5, 1), real(5, 2)),
    itself=(lambda x: torch.cat([x, x], dim=1), real(5, 4)),
    nothing=(lambda x, y: torch.cat([x, y], dim=1), real(0), real(5, 4)),
)
add(
    "stack.default",
    first=(lambda x, y: torch.stack([x, y]), real(5, 4), real(5, 4)),
    last=(lambda x, y: torch.stack([x, y], -1), real(5, 4), real(5, 4)),
)
add(
    "pad.default",
    zeros=(lambda x: F.pad(x, (1, 2)), real(5, 4)),
    ones=(lambda x: F.pad(x, (1, 2), value=1.0), real(7, 4)),
    two=(lambda x: F.pad(x, (1, 0, 0, 2)), real(4, 5, 3)),
    reflect=(lambda x: F.pad(x, (1, 2), mode="reflect"), real(4, 5, 4)),
    replicate=(lambda x: F.pad(x, (1, 2), mode="replicate"), real(4, 5, 4)),
    circular=(lambda x: F.pad(x, (1, 2), mode="circular"), real(4, 5, 4)),
    reflect_image=(lambda x: F.pad(x, (1, 0, 2, 1), mode="reflect"), real(2, 5, 3, 4)),
    replicate_one_image=(lambda x: F.pad(x, (1, 0, 2, 1), mode="replicate"), real(5, 3, 4)),
    circular_image=(lambda x: F.pad(x, (1, 0, 2, 1), mode="circular"), real(2, 5, 3, 4)),
)
add(
    "constant_pad_nd.default",
    zeros=(lambda x: torch.constant_pad_nd(x, (1, 2)), real(5, 4)),
    ones=(lambda x: torch.constant_pad_nd(x, (1, -2), 1.0), real(7, 4)),
)
add("concat.default", columns=(lambda x, y: torch.concat([x, y], -1), real(5, 4), real(5, 1)))
add("concatenate.default", rows=(lambda x, y: torch.concatenate([x, y]), real(3, 4), real(4, 4)))
add("hstack.default", matrices=(lambda x, y: torch.hstack([x, y]), real(5, 4), real(5, 2)))
add(
    "vstack.default",
    matrices=(lambda x, y: torch.vstack([x, y]), real(3, 5), real(4, 5)),
    vectors=(lambda x, y: torch.vstack([x, y]), real(5), real(2, 5)),
)
add(
    "dstack.default",
    cubes=(lambda x, y: torch.dstack([x, y]), real(5, 4, 2), real(5, 4, 3)),
    matrices=(lambda x, y: torch.dstack([x, y]), real(5, 4), real(5, 4, 2)),
    vectors=(lambda x, y: torch.dstack([x, y]), real(5), real(1, 5, 2)),
)
add(
    "column_stack.default",
    vectors=(lambda x, y: torch.column_stack([x, y]), real(5), real(5, 2)),
    cubes=(lambda x, y: torch.column_stack([x, y]), real(5, 4, 3), real(5, 2, 3)),
)
add(
    "slice_scatter.default",
    columns=(lambda x, y: torch.slice_scatter(x, y, 1, 1, 4, 2), real(5, 7), real(5, 2)),
    rows=(lambda x, y: torch.slice_scatter(x, y, start=-2), real(4, 5), real(2, 5)),
)
add(
    "select_scatter.default",
    column=(lambda x, y: torch.select_scatter(x, y, -1, 2), real(5, 4), real(5)),
    row=(lambda x, y: torch.select_scatter(x, y, 0, 2), real(4, 5), real(5)),
)
add(
    "diagonal_scatter.default",
    last=(lambda x, y: torch.diagonal_scatter(x, y, 1, -2, -1), real(5, 3, 4), real(5, 3)),
)
add(
    "repeat.default",
    classes=(lambda x: x.repeat(5, 1, 1), real(1, 1, 4)),
    left=(lambda x: x.repeat(4, 3, 1), real(7, 5)),
    all=(lambda x: x.repeat(8, 2), real(3, 4)),
    vector=(lambda x: x.repeat(4), real(5)),
    flags=(lambda x: x.repeat(4, 1), flags(3, 5)),
)
add(
    "tile.default",
    short=(lambda x: torch.tile(x, (4,)), real(5, 3)),
    long=(lambda x: torch.tile(x, (5, 1, 4)), real(4, 1)),
)
add(
    "repeat_interleave.self_int",
    heads=(lambda x: x.repeat_interleave(3, dim=1), real(5, 4, 2)),
    one_head=(lambda x: x.repeat_interleave(5, 1), real(4, 1, 2)),
    flat=(lambda x: x.repeat_interleave(3), real(4, 3)),
    sized=(lambda x: x.repeat_interleave(2, -1, output_size=8), real(5, 4)),
)
add(
    "repeat_interleave.self_Tensor",
    rows=(
        lambda x, times: x.repeat_interleave(times, 0, output_size=7),
        real(3, 5),
        torch.tensor([2, 1, 4]),
    ),
)
add(
    "roll.default",
    columns=(lambda x: x.roll(2, 1), real(5, 4)),
    two=(lambda x: x.roll((1, -1), (0, 2)), real(3, 5, 4)),
    flat=(lambda x: x.roll(3), real(5, 4)),
)
add("flip.default", columns=(lambda x: x.flip(-1), real(5, 4)))
add("fliplr.default", matrix=(torch.fliplr, real(5, 4)))
add("flipud.default", matrix=(torch.flipud, real(4, 5)))
add(
    "rot90.default",
    last=(lambda x: torch.rot90(x, 1, (1, 2)), real(5, 4, 3)),
    twice=(lambda x: torch.rot90(x, 2, (0, -1)), real(3, 5, 4)),
)
for _op in (torch.tril, torch.triu):
    add(
        f"{_op.__name__}.default",
        square=(_op, real(5, 5)),
        above=(lambda x, op=_op: op(x, 1), real(3, 4, 7)),
        below=(lambda x, op=_op: op(x, diagonal=-2), real(7, 4)),
        flags=(_op, flags(5, 4)),
    )
add(
    "trace.default",
    uneven=(torch.trace, real(5, 7)),
    whole=(torch.trace, whole(0, 9, 4, 4)),
)
add(
    "diag_embed.default",
    last=(torch.diag_embed, real(5, 4)),
    first=(lambda x: torch.diag_embed(x, 1, 0, 2), real(5, 4, 3)),
)
