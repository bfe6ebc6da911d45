"""Ops on each element by itself, with broadcasting; masks; random numbers."""

from __future__ import annotations

from tests.fuzz.draft import Draft
from tests.fuzz.families.base import family

SMOOTH = """torch.tanh({}) | F.gelu({}) | F.gelu({}, approximate='tanh') | F.silu({}) | -{}
    torch.sigmoid({}) | F.softplus({}) | torch.sin({}) | {}.cos() | torch.erf({}) | {}.atan()
    torch.asinh({}) | F.mish({}) | F.elu({}) | F.logsigmoid({}) | {}.square() | {} ** 3 | {} * 0.7
    1.5 - {} | {} / 3 | {} + 0.25 | torch.log1p({}.square()) | ({}.square() + 0.5).sqrt()
    ({}.square() + 0.5).rsqrt() | (-{}.square()).exp() | {}.clone() | {}.detach()
    {0}.float().to({0}.dtype) | ({}.square() + 0.5).log() | ({}.square() + 0.3).reciprocal()
    torch.expm1({} * 0.3) | F.celu({}, 0.7) | torch.lgamma({}.square() + 1.0) | {}.sinc()
    torch.logit({}.sigmoid() * 0.9 + 0.05) | ({}.square() + 0.1).pow(1.5) | {}.contiguous()
    torch.special.entr({}.square() + 0.1) | {}.nan_to_num() | torch.rsub({}, 1.0)"""

KINKED = """F.relu({}) @ 0 | F.leaky_relu({}, 0.1) @ 0 | {}.abs() @ 0 | F.hardtanh({}) @ -1 1
    {}.clamp(-0.5, 0.8) @ -0.5 0.8 | F.relu6({}) @ 0 6 | F.hardswish({}) @ -3 3 | {}.sign() @ 0
    F.softshrink({}) @ -0.5 0.5 | F.hardshrink({}) @ -0.5 0.5 | {}.floor() @ -2 -1 0 1 2
    {}.clamp_min(0.3) @ 0.3 | F.threshold({}, 0.1, -1.0) @ 0.1 | {}.clamp(max=0.4) @ 0.4
    F.hardsigmoid({}) @ -3 3 | {}.frac() @ -2 -1 0 1 2 | ({} > 0.2) @ 0.2 | ({} <= -0.1) @ -0.1
    {}.ge(0) @ 0 | {}.signbit() @ 0"""
"""Ops with a kink or a step, and the places where they have them."""

BINARY = """{0} + {1} | {0} - {1} | {0} * {1} | {1} - {0} | {0} / ({1}.square() + 0.5)
    torch.add({0}, {1}, alpha=0.5) | {0} + {1} | {0} * {1} | torch.logaddexp({0}, {1})
    torch.hypot({0}, {1} + 3) | ({0}.square() + 0.5) ** {1}.tanh() | torch.atan2({0}, {1} ** 2 + 1)
    torch.lerp({0}, {1}, 0.3) | torch.xlogy({0}, {1}.square() + 0.5) | torch.sub({0}, {1}, alpha=2)
    torch.rsub({0}, {1}) | torch.div({0}, {1}.exp())"""


def _cases(text: str) -> list[str]:
    return [each.strip() for line in text.splitlines() for each in line.split("|")]


@family(5, rowwise=True)
def smooth(d: Draft) -> str:
    x = d.real()
    return d.choose(_cases(SMOOTH)).format(x, x)


@family(3, rowwise=True)
def kinked(d: Draft) -> str | None:
    x = d.real()
    call, points = d.choose(_cases(KINKED)).split(" @ ")
    return call.format(x) if d.far_from(x, *map(float, points.split())) else None


@family(6, rowwise=True)
def binary(d: Draft) -> str:
    x = d.real()
    return d.choose(_cases(BINARY)).format(x, d.fitting(x))


@family(1, rowwise=True)
def outer_broadcast(d: Draft) -> str:
    """Two shapes, neither of which is the result's."""
    x, y = d.real(1, 2), d.real(1, 2)
    if d.rowwise:
        return f"{x}.flatten(1).unsqueeze(1) * {y}.flatten(1).unsqueeze(-1)"
    return f"{x}.unsqueeze(-1) {d.choose('+-*')} {y}.flatten()"


@family(1.5, rowwise=True)
def extremes(d: Draft) -> str | None:
    x = d.real()
    y = d.fitting(x)
    if not d.far_from(f"{x} - {y}", 0):
        return None
    return f"torch.{d.choose(('maximum', 'minimum', 'fmax', 'fmin'))}({x}, {y})"


@family(1.5, rowwise=True)
def three(d: Draft) -> str:
    x = d.real()
    y, z = d.fitting(x), d.fitting(x)
    return d.choose(
        (
            f"torch.addcmul({x}, {y}, {z}, value=0.5)",
            f"torch.addcdiv({x}, {y}, {z}.square() + 1)",
            f"torch.lerp({x}, {y}, {z}.sigmoid())",
        )
    )


@family(2, rowwise=True)
def masks(d: Draft) -> str:
    x = d.real()
    flags, y = d.flags(*d.shape_of(x)), d.fitting(x)
    return d.choose(
        (
            f"torch.where({flags}, {x}, {y})",
            f"torch.where({flags}, {x}, 0.0)",
            f"torch.where({flags}, 0.5, {x})",
            f"{x}.masked_fill({flags}, 0.0)",
            f"{x}.masked_fill({flags}, -1.5)",
            f"{x} * {flags}",
        )
    )


@family(0.7, rowwise=True)
def logic(d: Draft) -> str:
    x = d.real()
    shape = d.shape_of(x)
    a, b = d.flags(*shape), d.flags(*shape)
    return d.choose((f"{a} & {b}", f"{a} | ~{b}", f"torch.logical_xor({a}, {b})", f"{a}.double()"))


@family(0.7, rowwise=True)
def integers(d: Draft) -> str:
    x = d.whole(7, *d.shape(2))
    return d.choose((f"{x} + 3", f"{x} * {x}", f"{x} % 3", f"{x}.double() * 0.1", f"{x} == 2"))


@family(1.5, rowwise=True)
def dropout(d: Draft) -> str:
    x = d.real(1 + int(d.rowwise))
    if len(d.shape_of(x)) >= 3 and d.chance(0.2):
        return f"F.dropout1d({x}, 0.3, self.training)" if len(d.shape_of(x)) == 3 else f"{x} * 2"
    return f"F.dropout({x}, {d.choose((0.1, 0.5))}, self.training)"


@family(0.5)
def noise(d: Draft) -> str:
    x = d.real(1)
    kind = d.choose(("rand_like", "randn_like"))
    return f"{x} + 0.1 * torch.{kind}({x})"


@family(0.7)
def constants(d: Draft) -> str:
    x = d.real(1)
    n = d.shape_of(x)[-1]
    return d.choose(
        (
            f"{x} * torch.arange({n}, dtype={x}.dtype).mul(0.1)",
            f"{x} + torch.ones({n}, dtype={x}.dtype)",
            f"{x} * torch.full_like({x}, 0.5)",
            f"{x} - {x}.new_ones({n})",
            f"torch.cat([{x}, torch.zeros_like({x})], -1)",
            f"{x} @ torch.eye({n}, dtype={x}.dtype)",
        )
    )
