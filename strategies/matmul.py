"""Contractions: linear layers and matrix products, with or without a bias."""

from __future__ import annotations

from collections.abc import Callable

from autoplan.strategies.rule import OpCall, Rule

_FIRST = (frozenset({0}),)


def _linear(call: OpCall) -> str:
    """`x W^T + b`."""
    return "*b i, o i, +o -> *b o" if len(call.inputs) == 3 else "*b i, o i -> *b o"


def _matmul(call: OpCall) -> str:
    """numpy's matmul: vectors contract, batch dimensions broadcast."""
    left, right = (len(meta.shape) for meta in call.inputs)
    if left == 1 and right == 1:
        return "k, k -> "
    if left == 1:
        return "k, *b k j -> *b j"
    if right == 1:
        return "*b i k, k -> *b i"
    return "*b i k, *b k j -> *b i j"


def _addmm(call: OpCall) -> str:
    bias = {0: "", 1: "o", 2: "n o"}[len(call.inputs[0].shape)]
    return f"+{bias}, n i, i o -> n o"


def _baddbmm(call: OpCall) -> str:
    """The addend aligns from the right, as broadcasting does."""
    bias = ["b", "i", "j"][3 - len(call.inputs[0].shape) :]
    return f"+{' '.join(bias)}, b i k, b k j -> b i j"


def _saved_factors(call: OpCall) -> tuple[int | str, ...]:
    """Each factor is kept for the gradient of the other one."""
    first = 1 if call.op.startswith(("aten.addmm", "aten.baddbmm")) else 0
    left, right = call.inputs[first], call.inputs[first + 1]
    return (
        *((first,) if right.requires_grad else ()),
        *((first + 1,) if left.requires_grad else ()),
    )


def _contraction(
    notation: str | Callable[[OpCall], str], partial: tuple[frozenset[int], ...] = _FIRST
) -> Rule:
    return Rule(notation, kind="matmul", partial=partial, sums=True, saves=_saved_factors)


RULES: dict[str, Rule] = {
    "aten.linear.default": _contraction(_linear),
    "aten.matmul.default": _contraction(_matmul),
    "aten.mm.default": _contraction("i k, k j -> i j"),
    "aten.bmm.default": _contraction("b i k, b k j -> b i j"),
    "aten.addmm.default": _contraction(_addmm, partial=(frozenset({1}),)),
    "aten.baddbmm.default": _contraction(_baddbmm, partial=(frozenset({1}),)),
}
