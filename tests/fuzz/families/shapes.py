"""Ops that move elements about."""

from __future__ import annotations

import math

from tests.fuzz.draft import Draft
from tests.fuzz.families.base import family


def _factored(d: Draft, count: int) -> list[int]:
    """Sizes, a few ones among them, whose product is `count`."""
    sizes: list[int] = []
    while count > 1 and len(sizes) < 3:
        divisors = [n for n in range(2, count + 1) if count % n == 0]
        size = count if len(sizes) == 2 else d.choose(divisors)
        sizes.append(size)
        count //= size
    if d.chance(0.2) or not sizes:
        sizes.insert(d.random.randint(0, len(sizes)), 1)
    return sizes


@family(4)
def reshape(d: Draft) -> str:
    x = d.any_tensor()
    shape = d.shape_of(x)
    if d.chance(0.4) and len(shape) >= 2:  # merge neighbours
        start = d.random.randrange(len(shape) - 1)
        end = d.random.randint(start + 1, len(shape) - 1)
        return f"{x}.flatten({start}, {end})"
    if d.chance(0.4):  # part one
        dim = d.random.randrange(len(shape)) if shape else 0
        if shape and shape[dim] > 1:
            return f"{x}.unflatten({dim}, {tuple(_factored(d, shape[dim]))})"
    sizes: list[int] = _factored(d, math.prod(shape))
    if d.chance(0.3):
        sizes[d.random.randrange(len(sizes))] = -1
    name = d.choose(("reshape", "reshape", "contiguous().view"))
    return f"{x}.{name}({', '.join(map(str, sizes))})"


@family(3, rowwise=True)
def permute(d: Draft) -> str:
    x = d.any_tensor() if not d.rowwise else d.real(2)
    ndim = len(d.shape_of(x))
    if d.rowwise:
        return f"{x}.transpose({d.dim(x)}, {d.dim(x)})"
    dims = d.random.sample(range(ndim), ndim)
    if ndim < 2:
        return f"{x}.unsqueeze(0)"
    return d.choose(
        (
            f"{x}.transpose({d.dim(x)}, {d.dim(x)})",
            f"{x}.permute({', '.join(map(str, dims))})",
            f"{x}.movedim({d.dim(x)}, {d.dim(x)})",
            f"{x}.mT",
            f"{x}.swapaxes(0, -1).contiguous()",
        )
    )


@family(2, rowwise=True)
def ones(d: Draft) -> str:
    x = d.real(1, 3)
    shape = d.shape_of(x)
    place = d.random.randint(int(d.rowwise), len(shape))
    if 1 in shape[int(d.rowwise) :] and d.chance(0.6):
        return f"{x}.squeeze({shape.index(1, int(d.rowwise))})"
    if d.chance(0.5) and not d.rowwise:
        sizes = [d.choose((2, 3)), *(-1 if d.chance(0.5) else n for n in shape)]
        return f"{x}.expand({', '.join(map(str, sizes))})"
    return f"{x}.unsqueeze({place})"


@family(3, rowwise=True)
def cat(d: Draft) -> str:
    x = d.real(1 + int(d.rowwise))
    dim = d.dim(x)
    shape = list(d.shape_of(x))
    parts = [x]
    for _ in range(d.choose((1, 1, 2))):
        same = [
            name
            for name, value in d.values.items()
            if hasattr(value, "is_floating_point")
            and value.is_floating_point()
            and value.ndim == len(shape)
            and all(
                a == b
                for i, (a, b) in enumerate(zip(value.shape, shape, strict=True))
                if i != dim % len(shape)
            )
        ]
        if same and d.chance(0.6):
            parts.append(d.choose(same))
        else:
            other = list(shape)
            other[dim] = d.choose((1, 2, 3))
            parts.append(d.new_real(*other))
    d.random.shuffle(parts)
    return f"torch.cat([{', '.join(parts)}], {dim})"


@family(1.5)
def stack(d: Draft) -> str:
    x = d.real(0, 3)
    shape = d.shape_of(x)
    same = [
        n
        for n, v in d.values.items()
        if getattr(v, "shape", None) == shape and v.dtype == d.value(x).dtype
    ]
    y = d.choose(same) if same else x
    return f"torch.stack([{x}, {y}], {d.random.randint(0, len(shape))})"


@family(2.5, rowwise=True)
def pieces(d: Draft) -> tuple[str, int] | None:
    x = d.real(1 + int(d.rowwise))
    dim = d.dim(x)
    size = d.shape_of(x)[dim]
    if size < 2:
        return None
    first = d.random.randint(1, size - 1)
    options = [
        (f"{x}.split([{first}, {size - first}], {dim})", 2),
        (f"{x}.tensor_split(2, {dim})", 2),
    ]
    if -(-size // 2) < size:
        options.append((f"{x}.chunk(2, {dim})", 2))
    if size <= 4:
        options.append((f"{x}.unbind({dim})", size))
    if size % 3 == 0:
        options.append((f"{x}.split({size // 3}, {dim})", 3))
    return d.choose(options)


@family(4, rowwise=True)
def slices(d: Draft) -> str:
    x = d.any_tensor() if not d.rowwise else d.real(2)
    shape = d.shape_of(x)
    if not shape:
        return f"{x} + 0"
    places = []
    for at, size in enumerate(shape):
        kind = d.random.random()
        if kind < 0.5 or (at == 0 and d.rowwise):
            places.append(":")
        elif kind < 0.65:
            places.append(str(d.random.randrange(-size, size)))
        elif kind < 0.75:
            places.append("::2")
        elif kind < 0.8:
            places.append("None, :")
        else:
            start = d.random.randrange(size)
            end = d.random.randint(start + 1, size)
            places.append(d.choose((f"{start}:{end}", f"{start}:", f":{end}", f"-{size - start}:")))
    if d.chance(0.15):
        start = d.random.randrange(shape[0])
        if not d.rowwise:
            return f"{x}.narrow(0, {start}, {d.random.randint(1, shape[0] - start)})"
    return f"{x}[{', '.join(places)}]"


@family(1.5, rowwise=True)
def pad(d: Draft) -> str:
    x = d.real(2)
    shape = d.shape_of(x)
    left, right = d.random.randint(0, 2), d.random.randint(0, 2)
    mode = d.choose(("constant", "constant", "replicate", "circular", "reflect"))
    if mode == "constant" or len(shape) not in (2, 3):
        above = f", {d.random.randint(-1, 1)}, 1" if shape[-2] > 1 and not d.rowwise else ""
        return f"F.pad({x}, ({left}, {right}{above}), value={d.choose((0.0, 0.5))})"
    return f"F.pad({x}, ({min(left, shape[-1] - 1)}, {min(right, shape[-1] - 1)}), '{mode}')"


@family(2.5)
def moves(d: Draft) -> str:
    x = d.real(1, 3)
    shape = d.shape_of(x)
    dim = d.dim(x)
    options = [
        f"{x}.flip({dim})",
        f"{x}.roll({d.choose((1, -1, 2))}, {dim})",
        f"{x}.roll(1)",
        f"{x}.repeat({', '.join(str(d.choose((1, 2))) for _ in shape)})",
        f"{x}.tile(2)",
        f"{x}.repeat_interleave(2, {dim})",
        f"{x}.unfold({dim}, {min(2, shape[dim])}, 1)",
        f"torch.diag_embed({x})",
    ]
    if len(shape) >= 2:
        options += [
            f"{x}.tril({d.choose((-1, 0, 1))})",
            f"{x}.triu({d.choose((-1, 0, 1))})",
            f"{x}.rot90(1, (0, 1))",
            f"{x}.diagonal(0, 0, 1)",
            f"{x}.flip(0, 1)",
            f"{x}.roll((1, 2), (0, 1))",
        ]
    return d.choose(options)
