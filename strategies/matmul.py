"""Contractions: linear layers, matrix products and einsum, with or without a bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from autoplan.strategies import summa
from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import Memory
from autoplan.strategies.rule import OpCall, OpMemory, Program, Rule, any_one

_FIRST = (frozenset({0}),)


def _linear(call: OpCall) -> str:
    """`x W^T + b`; a weight of one dimension is one row."""
    rows = "o" if len(call.inputs[1].shape) == 2 else ""
    bias = f", +{rows}" if len(call.inputs) == 3 else ""
    return f"*b i, {rows} i{bias} -> *b {rows}"


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


def _with_addend(*dims: str) -> Callable[[OpCall], str]:
    """`dims`: the product's operands and its result; the addend aligns from the right."""
    *operands, result = dims

    def notation(call: OpCall) -> str:
        names = result.split()
        bias = names[len(names) - len(call.inputs[0].shape) :]
        return f"+{' '.join(bias)}, {', '.join(operands)} -> {result}"

    return notation


def _inner(call: OpCall) -> str:
    """The last dimensions contract; a scalar multiplies."""
    left, right = (len(meta.shape) for meta in call.inputs)
    if not left or not right:
        return "*a, -> *a" if left else ", *a -> *a"
    rows, columns = (
        [f"{name}{i}" for i in range(n - 1)] for name, n in (("i", left), ("j", right))
    )
    return f"{' '.join(rows)} k, {' '.join(columns)} k -> {' '.join([*rows, *columns])}"


def _tensordot(call: OpCall) -> str:
    """Pairs of dimensions contract; what is left of both operands stands side by side."""
    left, right = (
        [f"{side}{i}" for i in range(len(m.shape))]
        for side, m in zip("lr", call.inputs, strict=True)
    )
    for i, j in zip(call.args[2], call.args[3], strict=True):
        left[i] = right[j] = f"k{i % len(left)}"
    kept = [name for name in (*left, *right) if not name.startswith("k")]
    return f"{' '.join(left)}, {' '.join(right)} -> {' '.join(kept)}"


def _vecdot(call: OpCall) -> str:
    names = [f"d{i}" for i in range(len(call.outputs[0].shape) + 1)]
    dim = int(call.argument(2, "dim", -1)) % len(names)
    operands = (names[len(names) - len(meta.shape) :] for meta in call.inputs)
    kept = names[:dim] + names[dim + 1 :]
    return f"{', '.join(map(' '.join, operands))} -> {' '.join(kept)}"


def _chain(call: OpCall) -> str:
    """Neighbours contract; the first and the last factor may be vectors."""
    names = [f"k{i}" for i in range(len(call.inputs) + 1)]
    operands = [[names[i], names[i + 1]] for i in range(len(call.inputs))]
    if len(call.inputs[0].shape) == 1:
        operands[0] = names[1:2]
    if len(call.inputs[-1].shape) == 1:
        operands[-1] = names[-2:-1]
    ends = (operands[0][:-1], operands[-1][1:])
    return f"{', '.join(map(' '.join, operands))} -> {' '.join([*ends[0], *ends[1]])}"


def _chain_flops(call: OpCall) -> float:
    """From the left; the order that the op chooses costs no more."""
    first, *others = (meta.shape for meta in call.inputs)
    rows = first[0] if len(first) == 2 else 1
    return sum(2.0 * rows * math.prod(shape) for shape in others)


# -- einsum ---------------------------------------------------------------------------------


def _equation(call: OpCall) -> tuple[list[str], str]:
    """Letters of each operand and of the result, `...` written `*`.

    A result that is not given has the letters that occur once, in alphabetical order.
    """
    text = str(call.args[0]).replace(" ", "").replace("...", "*")
    left, arrow, right = text.partition("->")
    operands = left.split(",")
    if not arrow:
        letters = left.replace(",", "")
        once = sorted(c for c in set(letters) if c != "*" and letters.count(c) == 1)
        right = "*" * ("*" in left) + "".join(once)
    return operands, right


def _einsum(call: OpCall) -> str:
    """The equation itself; a letter twice in one operand takes its diagonal and is whole."""
    operands, result = _equation(call)
    twice = {c for each in operands for c in each if each.count(c) > 1}

    def name(letter: str) -> str:
        if letter == "*":
            return "*e"
        index = letter if letter.islower() else f"capital_{letter.lower()}"
        return f"[{index}]" if letter in twice else index

    terms = [" ".join(map(name, each)) for each in (*operands, result)]
    return f"{', '.join(terms[:-1])} -> {terms[-1]}"


def _einsum_flops(call: OpCall) -> float:
    """Pair by pair from the left, each index of a pair once (torch's order without a path)."""
    operands, result = _equation(call)
    sizes: dict[str, int] = {}
    for letters, meta in zip(operands, call.inputs, strict=True):
        before, _, after = letters.partition("*")
        sizes.update(zip(before, meta.shape, strict=False))
        sizes.update(zip(reversed(after), reversed(meta.shape), strict=False))
        rest = meta.shape[len(before) : len(meta.shape) - len(after)]
        sizes["*"] = max(sizes.get("*", 1), math.prod(rest))
    if len(operands) == 1:
        return float(call.inputs[0].numel)
    total, held = 0.0, set(operands[0])
    for at, letters in enumerate(operands[1:], start=1):
        met = held | set(letters)
        total += 2.0 * math.prod(sizes[c] for c in met)
        held = met & set(result).union(*operands[at + 1 :])
    return total


def _linear_memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """The gradient of the weight is a transposed view, which a parameter takes a copy of."""
    size = context.input_meta(1).num_bytes if call.inputs[1].requires_grad else 0
    return replace(plain, backward=size)


def _matmul_memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """An operand of fewer matrices than the result is copied for each of them, and that is kept.

    So is one that a vector stands before: it is turned first.
    """
    result = context.output_meta()
    vector = len(call.inputs[0].shape) == 1
    saves, kept, summed = list(plain.saves), 0, 0
    for i in (0, 1):
        shape = context.input_meta(i).shape
        if i not in saves or len(shape) < 3 or len(call.inputs[1 - i].shape) == 2:
            continue
        size = context.input_meta(i).num_bytes
        batch = math.prod(shape[:-2])
        whole = batch if vector else math.prod(result.shape[:-2])
        if vector or whole > batch:
            saves.remove(i)
            kept += size * whole // max(batch, 1)
            summed += size * whole // max(batch, 1) - size
    return replace(plain, saves=tuple(saves), kept=kept, backward=summed)


# -- rules ----------------------------------------------------------------------------------


_ADDING = ("aten.addmm", "aten.addbmm", "aten.baddbmm", "aten.addmv", "aten.addr")


def _saved_factors(call: OpCall) -> tuple[int | str, ...]:
    """Each factor is kept for the gradient of the others."""
    first = 1 if call.op.startswith(_ADDING) else 0
    count = len(call.inputs)
    if call.op.startswith((*_ADDING, "aten.linear")):
        count = first + 2
    elif call.op.startswith("aten.bilinear"):
        count = 3
    factors = range(first, count)
    return tuple(i for i in factors if any(call.inputs[j].requires_grad for j in factors if j != i))


def _contraction(
    notation: str | Callable[[OpCall], str],
    partial: tuple[frozenset[int], ...] | Callable[[OpCall], Any] = _FIRST,
    **more: Any,
) -> Rule:
    return Rule(notation, kind="matmul", partial=partial, sums=True, saves=_saved_factors, **more)


def _addition(*dims: str, **more: Any) -> Rule:
    return _contraction(_with_addend(*dims), partial=(frozenset({1}),), **more)


def _streamed(plain: Memory | None, program: Program, x: int = 0) -> dict[str, Any]:
    """What a product of x with a matrix, the input after it, needs to be streamed."""
    return {
        "memory": summa.memory_beside(plain),
        "streams": (x, x + 1),
        "stream_program": program,
        "inner": summa.inner,
    }


_MATMUL = _contraction(_matmul, **_streamed(_matmul_memory, summa.product_program))
_VECTORS = _contraction("k, k -> ")
_OUTER = _contraction("i, j -> i j", partial=any_one)
_CHAIN = _contraction(_chain, partial=any_one, flops=_chain_flops)

RULES: dict[str, Rule] = {
    "aten.linear.default": _contraction(_linear, **_streamed(_linear_memory, summa.linear_program)),
    "aten.matmul.default": _MATMUL,
    "aten.linalg_matmul.default": _MATMUL,
    "aten.mm.default": _contraction("i k, k j -> i j", **_streamed(None, summa.product_program)),
    "aten.bmm.default": _contraction("b i k, b k j -> b i j"),
    "aten.mv.default": _contraction("i k, k -> i"),
    "aten.dot.default": _VECTORS,
    "aten.vdot.default": _VECTORS,
    "aten.inner.default": _contraction(_inner),
    "aten.linalg_vecdot.default": _contraction(_vecdot),
    "aten.outer.default": _OUTER,
    "aten.ger.default": _OUTER,
    "aten.tensordot.default": _contraction(_tensordot),
    "aten.einsum.default": _contraction(_einsum, partial=any_one, flops=_einsum_flops),
    "aten.chain_matmul.default": _CHAIN,
    "aten.linalg_multi_dot.default": _CHAIN,
    "aten.addmm.default": _addition(
        "n i", "i o", "n o", **_streamed(None, summa.addition_program, x=1)
    ),
    "aten.baddbmm.default": _addition("b i k", "b k j", "b i j"),
    "aten.addbmm.default": _addition("b i k", "b k j", "i j"),
    "aten.addmv.default": _addition("i k", "k", "i", needs_rows=frozenset({"i"})),
    "aten.addr.default": _addition("i", "j", "i j"),
    "aten.bilinear.default": _contraction(
        lambda call: "*b i, *b j, o i j" + ", +o" * (len(call.inputs) == 4) + " -> *b o",
        partial=(frozenset({0}), frozenset({1})),
        needs_rows=frozenset({"i", "j"}),
    ),
}
