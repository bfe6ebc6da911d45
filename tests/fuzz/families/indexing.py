"""Reading and writing by index."""

from __future__ import annotations

from tests.fuzz.draft import Draft
from tests.fuzz.families.base import family


@family(3)
def indexed(d: Draft) -> str:
    x = d.real(1)
    shape = d.shape_of(x)
    dim = d.random.randrange(len(shape))
    count = d.choose((1, 2, 3, 5, 7))
    index = d.whole(shape[dim], *d.choose(((count,), (count,), (2, count))))
    options = [f"{x}[{':, ' * dim}{index}]"]
    if len(d.shape_of(index)) == 1:
        options.append(f"{x}.index_select({dim}, {index})")
    if len(shape) >= 2:
        first, second = d.whole(shape[0], count), d.whole(shape[1], count)
        options.append(f"{x}[{first}, {second}]")
        options.append(f"{x}[{first}, 1:]" if shape[1] > 1 else f"{x}[{first}, :]")
    if len(shape) >= 3:
        first, second = d.whole(shape[0], count, 1), d.whole(shape[2], count)
        options.append(f"{x}[{first}, :, {second}]")
    return d.choose(options)


@family(2, rowwise=True)
def gather(d: Draft) -> str:
    x = d.real(1 + int(d.rowwise), 3)
    shape = list(d.shape_of(x))
    dim = d.random.randrange(int(d.rowwise), len(shape))
    wanted = list(shape)
    wanted[dim] = d.choose((1, 2, 5))
    index = d.whole(shape[dim], *wanted)
    if d.chance(0.3):
        return f"torch.take_along_dim({x}, {index}, {dim})"
    return f"{x}.gather({dim}, {index})"


@family(2.5)
def scatter(d: Draft) -> str:
    x = d.real(1, 3)
    shape = list(d.shape_of(x))
    dim = d.random.randrange(len(shape))
    size = shape[dim]
    count = d.choose((1, 2, 4))
    rows = list(shape)
    rows[dim] = count
    source = d.new_real(*rows)
    many, few = d.whole(size, *rows), d.whole(size, count)
    once = min(count, size)
    distinct = d.buffer(f"order({d.seed()}, {size})[:{once}]")
    fewer = f"{source}.narrow({dim}, 0, {once})"
    reduce = d.choose(("sum", "mean", "amax"))
    return d.choose(
        (
            f"{x}.scatter_add({dim}, {many}, {source})",
            f"{x}.scatter({dim}, {many}, 0.5)",
            f"{x}.scatter_reduce({dim}, {many}, {source}, '{reduce}')",
            f"{x}.index_add({dim}, {few}, {source})",
            f"{x}.index_add({dim}, {few}, {source}, alpha=0.5)",
            f"{x}.index_copy({dim}, {distinct}, {fewer})",
            f"{x}.index_fill({dim}, {few}, 0.25)",
        )
    )


@family(1)
def put(d: Draft) -> str:
    x = d.real(2, 3)
    shape = d.shape_of(x)
    count = d.choose((1, 2, 4))
    rows = d.whole(shape[0], count)
    distinct = d.buffer(f"order({d.seed()}, {shape[0]})[:{min(count, shape[0])}]")
    some = (min(count, shape[0]), *shape[1:])
    return d.choose(
        (
            f"{x}.index_put(({distinct},), {d.new_real(*some)})",
            f"{x}.index_put(({rows},), {d.new_real(count, *shape[1:])}, accumulate=True)",
            f"{x}.index_put(({rows}, {d.whole(shape[1], count)}), "
            f"{d.new_real(count, *shape[2:])}, accumulate=True)",
        )
    )


@family(1)
def scattered_views(d: Draft) -> str:
    x = d.real(1, 3)
    shape = list(d.shape_of(x))
    dim = d.random.randrange(len(shape))
    if d.chance(0.5):
        rest = shape[:dim] + shape[dim + 1 :]
        at = d.random.randrange(shape[dim])
        return f"torch.select_scatter({x}, {d.new_real(*rest)}, {dim}, {at})"
    start = d.random.randrange(shape[dim])
    shape[dim] -= start
    return f"torch.slice_scatter({x}, {d.new_real(*shape)}, {dim}, {start})"
