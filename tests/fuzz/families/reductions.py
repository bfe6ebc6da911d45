"""Reductions, searches along a dimension, running sums."""

from __future__ import annotations

from tests.fuzz.draft import Draft
from tests.fuzz.families.base import family


def _dims(d: Draft, x: str) -> str:
    """One dimension, or several."""
    ndim = len(d.shape_of(x))
    first = int(d.rowwise)
    if ndim - first >= 2 and d.chance(0.35):
        dims = d.random.sample(range(first, ndim), d.random.randint(2, ndim - first))
        return str(tuple(dims))
    return str(d.dim(x))


def _real_to_reduce(d: Draft) -> str:
    return d.real(1 + int(d.rowwise))


@family(4, rowwise=True)
def sums(d: Draft) -> str:
    x = _real_to_reduce(d)
    if d.chance(0.1) and not d.rowwise:
        return f"{x}.{d.choose(('sum', 'mean'))}()"
    keep = ", keepdim=True" if d.chance(0.4) else ""
    return f"{x}.{d.choose(('sum', 'mean'))}({_dims(d, x)}{keep})"


@family(2, rowwise=True)
def largest(d: Draft) -> str:
    x = _real_to_reduce(d)
    keep = ", keepdim=True" if d.chance(0.4) else ""
    kind = d.choose(("amax", "amin", "logsumexp"))
    return f"{x}.{kind}({_dims(d, x)}{keep})"


@family(2, rowwise=True)
def spread(d: Draft) -> str | tuple[str, int]:
    x = _real_to_reduce(d)
    dims = _dims(d, x)
    keep = ", keepdim=True" if d.chance(0.4) else ""
    correction = d.choose((0, 1))
    if not (d.value(f"{x}.var({dims}, correction=0)") > 1e-3).all():
        return f"{x}.square().mean({dims}{keep})"
    kind = d.choose(("var", "std", "var_mean", "std_mean"))
    expression = f"torch.{kind}({x}, {dims}, correction={correction}{keep})"
    return (expression, 2) if kind.endswith("mean") else expression


@family(1)
def lengths(d: Draft) -> str:
    x = d.real(1)
    keep = ", keepdim=True" if d.chance(0.4) else ""
    return d.choose(
        (
            f"torch.linalg.vector_norm({x} + 1.5, 2, {_dims(d, x)}{keep})",
            f"({x} + 3).norm(dim={_dims(d, x)}{keep})",
            f"({x} + 1.5).norm()",
            f"torch.linalg.vector_norm({x} + 2, 3, {_dims(d, x)}{keep})",
            f"({x} * 0.3 + 1).prod({d.dim(x)}{keep})",
            f"torch.nansum({x}, {d.dim(x)}{keep})",
        )
    )


def apart(d: Draft, x: str, dim: int) -> str:
    """`x` with a slope along `dim`, so that no two elements there are equal."""
    shape = d.shape_of(x)
    n, after = shape[dim], len(shape) - 1 - dim % len(shape)
    tail = f".view({n}{', 1' * after})" if after else ""
    return f"({x} + torch.arange({n}, dtype={x}.dtype).mul(0.0731){tail})"


@family(1.5, rowwise=True)
def searches(d: Draft) -> str | tuple[str, int]:
    x = d.real(1 + int(d.rowwise))
    dim = d.dim(x)
    y, n = apart(d, x, dim), d.shape_of(x)[dim]
    keep = ", keepdim=True" if d.chance(0.4) else ""
    kind = d.choose(
        ("max", "min", "median", "argmax", "argmin", "topk", "sort", "kthvalue", "argsort")
    )
    if kind in ("argmax", "argmin"):
        return f"{y}.{kind}({dim}{keep})"
    if kind in ("topk", "kthvalue"):
        count = d.random.randint(1, n)
        return f"{y}.{kind}({count}, {dim})", 2
    if kind == "sort":
        return f"{y}.sort({dim}, descending={d.chance(0.5)})", 2
    if kind == "argsort":
        return f"{y}.argsort({dim})"
    return f"{y}.{kind}({dim}{keep})", 2


@family(0.7, rowwise=True)
def counts(d: Draft) -> str:
    x = _real_to_reduce(d)
    flags = d.flags(*d.shape_of(x))
    return f"{flags}.{d.choose(('any', 'all', 'sum'))}({d.dim(x)})"


@family(2, rowwise=True)
def running(d: Draft) -> str | tuple[str, int]:
    x = d.real(1 + int(d.rowwise))
    dim = d.dim(x)
    kind = d.choose(("cumsum", "cumsum", "logcumsumexp", "cumprod", "cummax"))
    if kind == "cumprod":
        return f"({x} * 0.3 + 1).cumprod({dim})"
    if kind == "cummax":
        return f"{apart(d, x, dim)}.cummax({dim})", 2
    return f"{x}.{kind}({dim})"
