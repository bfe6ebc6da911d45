"""Examples of reductions."""

from __future__ import annotations

import torch

from tests.strategies.examples.base import (
    add,
    eighths,
    flags,
    real,
    whole,
)

add("sum.default", all=(torch.sum, real(5, 4)), integers=(torch.sum, whole(0, 9, 4, 5)))
add("sum.default", scalar=(torch.sum, real()), flags=(torch.sum, flags(4, 5)))
add("mean.default", all=(torch.mean, real(5, 4)), scalar=(torch.mean, real()))
for _op, _fn in {"sum.dim_IntList": torch.sum, "mean.dim": torch.mean}.items():
    add(
        _op,
        rows=(lambda x, fn=_fn: fn(x, 0), real(5, 4)),
        keep=(lambda x, fn=_fn: fn(x, -1, keepdim=True), real(4, 7)),
        two=(lambda x, fn=_fn: fn(x, dim=(0, 2)), real(5, 4, 3)),
        two_kept=(lambda x, fn=_fn: fn(x, (1, 2), True), real(5, 4, 3)),
        scalar=(lambda x, fn=_fn: fn(x, -1), real()),
        cast=(lambda x, fn=_fn: fn(x, 0, dtype=torch.float64), eighths),
    )

# Flags and counts.

for _op, _fn in {"any": torch.any, "all": torch.all}.items():
    _flags = flags(5, 4) if _op == "any" else ~flags(5, 4)
    _flags[:, 1], _flags[:, 2] = True, False
    add(
        f"{_op}.dim",
        rows=(lambda x, fn=_fn: fn(x, 0), _flags),
        keep=(lambda x, fn=_fn: fn(x, -1, keepdim=True), _flags.t()),
        integers=(lambda x, fn=_fn: fn(x, 0), _flags.long()),
        bytes=(lambda x, fn=_fn: fn(x, 0), _flags.byte() * 7),
    )
    add(f"{_op}.dims", two=(lambda x, fn=_fn: fn(x, (0, 2)), _flags[:, :, None].expand(5, 4, 2)))
    add(f"{_op}.default", none=(_fn, _flags[:, 2]), every=(_fn, _flags[:, 1]), some=(_fn, _flags))
add("count_nonzero.default", row=(lambda x: torch.count_nonzero(x, -1), flags(7, 4).double()))
add("count_nonzero.default", all=(lambda x: torch.count_nonzero(x), whole(0, 3, 5, 4)))
add(
    "count_nonzero.dim_IntList",
    two=(lambda x: torch.count_nonzero(x, (0, 2)), whole(0, 3, 5, 4, 3)),
)

# Extremes: with ties, of which every element gets its part of the gradient.

_ties = whole(0, 3, 7, 4).double()
_inf = float("inf")
_with_infinite = real(5, 4)
_with_infinite[:, 1], _with_infinite[3, 0], _with_infinite[0, 2] = -_inf, _inf, -_inf
_with_infinite[:4, 3], _with_infinite[1, 0] = _inf, _inf
for _op, _fn in {"amax": torch.amax, "amin": torch.amin}.items():
    add(
        f"{_op}.default",
        rows=(lambda x, fn=_fn: fn(x, 0), _ties),
        keep=(lambda x, fn=_fn: fn(x, (-1,), keepdim=True), _ties),
        two=(lambda x, fn=_fn: fn(x, (0, 2)), whole(0, 3, 5, 4, 3).double()),
        all=(lambda x, fn=_fn: fn(x), real(5, 4)),
        infinite=(lambda x, fn=_fn: fn(x, 0), _with_infinite),
        equal=(lambda x, fn=_fn: fn(x, 0), torch.full((7, 3), 0.1).double()),
        integers=(lambda x, fn=_fn: fn(x, 0), whole(0, 9, 5, 4)),
    )
for _op, _fn in {"max.default": torch.max, "min.default": torch.min}.items():
    add(_op, ties=(_fn, _ties), infinite=(_fn, _with_infinite), vector=(_fn, real(5)))
for _op, _fn in {
    "max.dim": torch.max,
    "min.dim": torch.min,
    "median.dim": torch.median,
    "nanmedian.dim": torch.nanmedian,
    "mode.default": torch.mode,
    "kthvalue.default": lambda x, dim, keep: torch.kthvalue(x, 2, dim, keep),
    "argmax.default": torch.argmax,
    "argmin.default": torch.argmin,
}.items():
    add(_op, rows=(lambda x, fn=_fn: fn(x, 0, False), real(5, 4)))
    add(_op, keep=(lambda x, fn=_fn: fn(x, -1, True), real(7, 4)))
add("argmax.default", all=(torch.argmax, real(5, 4)))
add(
    "aminmax.default",
    rows=(lambda x: torch.aminmax(x, dim=0), _ties),
    keep=(lambda x: torch.aminmax(x, dim=-1, keepdim=True), _ties),
)

# Sums of functions.

add(
    "logsumexp.default",
    rows=(lambda x: torch.logsumexp(x, 0), real(5, 4)),
    keep=(lambda x: torch.logsumexp(x, -1, keepdim=True), real(7, 4) * 1000),
    two=(lambda x: torch.logsumexp(x, (0, 2)), real(5, 4, 3)),
    infinite=(lambda x: torch.logsumexp(x, 0), _with_infinite),
)
_some_missing = real(7, 4).masked_fill(flags(7, 4), float("nan"))
_some_missing[:, 0] = float("nan")
_some_missing[:2] = 1.0
for _op, _fn in {"nansum.default": torch.nansum, "nanmean.default": torch.nanmean}.items():
    add(
        _op,
        rows=(lambda x, fn=_fn: fn(x, 0), _some_missing),
        keep=(lambda x, fn=_fn: fn(x, -1, True), _some_missing),
        all=(lambda x, fn=_fn: fn(x), _some_missing[:5]),
    )
add(
    "prod.dim_int",
    rows=(lambda x: torch.prod(x, 0), real(5, 4)),
    keep=(lambda x: torch.prod(x, -1, keepdim=True), real(7, 4)),
)

# Along one dimension.

for _op, _fn in {
    "cumsum.default": torch.cumsum,
    "cumprod.default": torch.cumprod,
    "logcumsumexp.default": torch.logcumsumexp,
    "cummax.default": torch.cummax,
    "cummin.default": torch.cummin,
}.items():
    add(
        _op,
        last=(lambda x, fn=_fn: fn(x, -1), real(5, 4, 3)),
        middle=(lambda x, fn=_fn: fn(x, 1), real(7, 3, 2)),
    )
add("cumsum.default", scalar=(lambda x: torch.cumsum(x, 0), real()))
