"""Ops that sort, search, or count: the dimension that they order is whole on every rank."""

from __future__ import annotations

from collections.abc import Callable

from autoplan.strategies.rule import OpCall, Rule


def _ordered(position: int) -> Callable[[OpCall], str]:
    """One dimension, given at `position`, is ordered; results may keep only some of it."""

    def notation(call: OpCall) -> str:
        before = [f"d{i}" for i in range(len(call.inputs[0].shape))]
        after = list(before)
        if before:
            at = call.dim(position)
            before[at], after[at] = "[all]", "[some]"
        return f"{' '.join(before)} -> {', '.join([' '.join(after)] * len(call.outputs))}"

    return notation


def _search(call: OpCall) -> str:
    """Each value in its own row of sorted numbers, or all in a single row."""
    if len(call.inputs[0].shape) == 1:
        return f"[k], *b{', [k]' * (len(call.inputs) - 2)} -> *b"
    return f"*b [k], *b j{', *b [k]' * (len(call.inputs) - 2)} -> *b j"


def _histogram(call: OpCall) -> str | None:
    """Counts add up where the bins do not depend on the data (equal limits mean its range)."""
    if call.argument(2, "min", 0) == call.argument(3, "max", 0):
        return None
    names = " ".join(f"d{i}" for i in range(len(call.inputs[0].shape)))
    return f"{names} -> [bins]"


_SAVES = ("output",)

RULES: dict[str, Rule] = {
    "aten.topk.default": Rule(_ordered(2), saves=_SAVES),
    "aten.sort.default": Rule(_ordered(1), saves=_SAVES),
    "aten.sort.stable": Rule(_ordered(2), saves=_SAVES),
    "aten.argsort.default": Rule(_ordered(1)),
    "aten.argsort.stable": Rule(_ordered(2)),
    "aten.msort.default": Rule("[k] *b -> [k] *b"),
    "aten.searchsorted.Tensor": Rule(_search),
    "aten.bucketize.Tensor": Rule("*b, [k] -> *b"),
    "aten.histc.default": Rule(_histogram, sums=True),
}
