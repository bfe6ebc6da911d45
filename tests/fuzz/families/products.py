"""Matrix products."""

from __future__ import annotations

from tests.fuzz.draft import Draft
from tests.fuzz.families.base import family

EINSUMS = {
    2: ("ij,jk->ik", "ij,kj->ki", "ij,ij->i", "ij,j->i", "ij,ik->jk", "ij,jk->kij"),
    3: ("bij,bjk->bik", "bij,jk->ibk", "bij,bik->bjk", "bij,ij->b", "bij,kj->bk", "bij,bkj->bki"),
    4: ("bhij,bhkj->bhik", "bhij,hjk->bik", "bhij,j->bih"),
}


@family(5, rowwise=True)
def linear(d: Draft) -> str:
    x = d.real(1 + int(d.rowwise))
    columns, out = d.shape_of(x)[-1], d.size()
    scale = round(columns**-0.5, 3)
    weight = d.parameter(out, columns, scale=scale)
    return f"F.linear({x}, {weight}{f', {d.parameter(out)}' if d.chance(0.6) else ''})"


@family(2, rowwise=True)
def product(d: Draft) -> str:
    x = d.real(2)
    columns = d.shape_of(x)[-1]
    return f"{x} @ {d.parameter(columns, d.size(), scale=round(columns**-0.5, 3))}"


@family(2)
def matmul(d: Draft) -> str | None:
    """Any two values of which one can be turned to fit."""
    x = d.real(2)
    shape = d.shape_of(x)
    others = [
        name
        for name, value in d.values.items()
        if hasattr(value, "is_floating_point")
        and value.is_floating_point()
        and value.ndim >= 1
        and value.shape[-1] == shape[-1]
    ]
    y = d.choose(others)
    if len(d.shape_of(y)) == 1:
        return f"torch.matmul({x}, {y})"
    return f"torch.matmul({x}, {y}.transpose(-1, -2)) / {shape[-1]}"


@family(1.5)
def batched(d: Draft) -> str:
    x = d.real(3, 3)
    b, rows, columns = d.shape_of(x)
    y = d.new_real(b, columns, d.size())
    out = d.shape_of(y)[-1]
    added = d.new_real(*d.choose(((b, rows, out), (out,), (b, 1, out))))
    return d.choose(
        (
            f"torch.bmm({x}, {y}) / {columns}",
            f"torch.baddbmm({added}, {x}, {y})",
            f"torch.matmul({x}.unsqueeze(1), {y}.unsqueeze(0)) / {columns}",
            f"torch.matmul({x}, {y}[0]) / {columns}",
        )
    )


@family(1.5)
def small_products(d: Draft) -> str:
    x = d.real(1, 2)
    shape = d.shape_of(x)
    if len(shape) == 1:
        return d.choose(
            (
                f"torch.outer({x}, {d.new_real(d.size())})",
                f"torch.dot({x}, {d.new_real(*shape)})",
                f"torch.mv({d.new_real(d.size(), *shape)}, {x})",
                f"torch.inner({x}, {d.new_real(d.size(), *shape)})",
            )
        )
    rows, columns = shape
    out = d.size()
    y = d.new_real(columns, out)
    return d.choose(
        (
            f"torch.mm({x}, {y})",
            f"torch.addmm({d.parameter(*d.choose(((out,), (rows, out), (rows, 1))))}, {x}, {y})",
            f"torch.addmm({d.parameter(out)}, {x}, {y}, beta=0.5, alpha=2)",
            f"torch.addmv({d.new_real(rows)}, {x}, {d.new_real(columns)})",
            f"torch.kron({x}, {d.new_real(2, 1)})",
        )
    )


@family(2)
def einsum(d: Draft) -> str:
    x = d.real(2, 4)
    shape = d.shape_of(x)
    text = d.choose(EINSUMS[len(shape)])
    first, second = text.split("->")[0].split(",")
    sizes = dict(zip(first, shape, strict=True))
    other = [sizes.setdefault(letter, d.size()) for letter in second]
    return f"torch.einsum('{text}', {x}, {d.new_real(*other)})"


@family(0.7)
def tensordot(d: Draft) -> str:
    x = d.real(2)
    shape = d.shape_of(x)
    return f"torch.tensordot({x}, {d.new_real(shape[-2], shape[-1], d.size())}, 2)"


@family(0.5, rowwise=True)
def bilinear(d: Draft) -> str:
    x = d.real(2, 3)
    y = d.fitting(x) if d.rowwise else x
    n, out = d.shape_of(x)[-1], d.size()
    y = x if d.shape_of(y) != d.shape_of(x) else y
    return f"F.bilinear({x}, {y}, {d.parameter(out, n, n, scale=0.3)}, {d.parameter(out)})"


@family(0.5)
def distances(d: Draft) -> str:
    x = d.real(2, 3)
    n = d.shape_of(x)[-1]
    return f"torch.cdist({x}, {d.parameter(d.size(), n)} + 5)"
