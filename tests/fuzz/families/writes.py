"""Writes in place: to values, to views of them, and to buffers."""

from __future__ import annotations

from tests.fuzz.draft import Draft
from tests.fuzz.families.base import family


def _own(d: Draft, low: int = 1) -> str | None:
    """A value that the program made, no argument, parameter or buffer, nor a view of one."""
    held = [*d.module.parameters(), *d.module.buffers()]
    held += [value for name, value in d.values.items() if name.startswith("x")]
    taken = {each.untyped_storage().data_ptr() for each in held}
    found = [
        name
        for name, value in d.values.items()
        if name.startswith("v")
        and value.is_floating_point()
        and value.ndim >= low
        and value.untyped_storage().data_ptr() not in taken
        and not any(value.stride(at) == 0 and n > 1 for at, n in enumerate(value.shape))
    ]
    return d.choose(found[-4:]) if found else None


def _view(d: Draft, x: str) -> str:
    """A view of `x`."""
    shape = d.shape_of(x)
    options = [f"{x}[{d.random.randrange(shape[0])}]", f"{x}[{d.random.randrange(shape[0])}:]"]
    options += [f"{x}[..., {d.random.randrange(shape[-1])}]", f"{x}[..., ::2]", f"{x}[...]"]
    if len(shape) >= 2:
        options += [f"{x}.transpose(0, 1)[0]", f"{x}.mT", f"{x}[:, {shape[1] // 2}:]"]
        options += [f"{x}[0][{d.random.randrange(shape[1])}:]"]
    if shape[0] >= 2:
        options += [f"{x}.chunk(2)[1]", f"{x}.split([1, {shape[0] - 1}])[0]", f"{x}.unbind()[1]"]
    return d.choose(options)


@family(2, writes=True)
def in_place(d: Draft) -> str | None:
    x = _own(d)
    if x is None:
        return None
    if d.chance(0.3) and d.far_from(x, 0):
        return f"{x}.{d.choose(('relu_()', 'abs_()', 'sigmoid_()', 'tanh_()'))}"
    y = d.fitting(x)
    return d.choose(
        (
            f"{x}.add_({y})",
            f"{x}.mul_(0.5)",
            f"{x} += {y}",
            f"{x} *= {y}",
            f"{x}.masked_fill_({d.flags(*d.shape_of(x))}, 0.5)",
            f"{x}.sub_({y}, alpha=0.5)",
            f"{x}.copy_({y})",
            f"{x}.add_(1)",
            f"{x}.tanh_()",
            f"{x}.clamp_(-3, 3)",
            f"{x}.fill_(0.5)" if d.chance(0.2) else f"{x}.neg_()",
        )
    )


@family(3, writes=True)
def write_views(d: Draft) -> str | None:
    x = _own(d)
    if x is None:
        return None
    view = _view(d, x)
    if view.endswith(("]", "]")) and "chunk" not in view and "split" not in view and d.chance(0.5):
        value = d.choose(("0.0", "0.5", f"({d.fitting(view)}).clone()"))
        if "unbind" not in view:
            return f"{view} {d.choose(('=', '=', '+=', '*='))} {value}"
    # Cloned: what torch writes where the operand lies in the same memory is not defined.
    return f"{view}.{d.choose(('add_', 'mul_', 'copy_', 'sub_'))}(({d.fitting(view)}).clone())"


@family(1, writes=True)
def write_by_index(d: Draft) -> str | None:
    x = _own(d)
    if x is None:
        return None
    shape = d.shape_of(x)
    index = d.whole(shape[0], d.choose((1, 2, 3)))
    count = d.shape_of(index)[0]
    distinct = d.buffer(f"order({d.seed()}, {shape[0]})[:1]")
    return d.choose(
        (
            f"{x}[{distinct}] = {d.new_real(1, *shape[1:])}",
            f"{x}[{index}] = 0.5",
            f"{x}.index_add_(0, {index}, {d.new_real(count, *shape[1:])})",
            f"{x}[{d.flags(*shape)}] = 0.25",
            f"{x}.scatter_(0, {d.whole(shape[0], 1, *shape[1:])}, 0.75)",
        )
    )


@family(2, writes=True)
def write_buffers(d: Draft) -> str:
    x = d.real(1)
    shape = d.shape_of(x)
    if d.chance(0.2):
        count = d.buffer("torch.zeros((), dtype=torch.int64)")
        return f"{count} += 1"
    kind = d.random.random()
    average = d.buffer(f"real({', '.join(map(str, (d.seed(), *shape[1:])))})")
    if kind < 0.35:
        return f"{average}.mul_(0.9).add_({x}.detach().mean(0), alpha=0.1)"
    if kind < 0.6:
        return f"with torch.no_grad(): {average}.lerp_({x}.mean(0), 0.25)"
    if kind < 0.8 and len(shape) > 1:
        return f"{average}[{d.random.randrange(shape[1])}] = {x}[0, 0].detach()"
    return f"{average}.copy_({x}[0].detach())"


@family(2)
def read_buffers(d: Draft) -> str | None:
    """A buffer that may have been written to before."""
    found = [n for n, b in d.module.named_buffers() if b.is_floating_point() and "." not in n]
    if not found:
        return None
    name = d.choose(found)
    return f"self.{name} * {d.fitting(f'self.{name}')}"


@family(1)
def without_gradient(d: Draft) -> str:
    """A value made where no gradient is recorded."""
    x = d.real(1)
    return (
        f"with torch.no_grad(): {d.names(1)} = {x}.{d.choose(('softmax(-1)', 'sum(0)', 'cos()'))}"
    )
