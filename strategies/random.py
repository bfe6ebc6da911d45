"""Random ops: every element's number comes from its logical position, so plans do not change it."""

from __future__ import annotations

from typing import Any

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, Rule


def _dropout(context: LocalContext, x: Any, p: float, train: bool) -> Any:
    """Dropout with a mask keyed by (seed, op, step, logical position)."""
    shape = context.call.inputs[0].shape
    starts = tuple(start for start, _ in context.input_ranges(0))
    return context.comm.dropout(x, p, shape, starts, context.random_key)


RANDOM_OPS: frozenset[str] = frozenset(
    {"aten.dropout.default", "aten.scaled_dot_product_attention.default"}
)
"""Ops that draw random numbers, in the order of the captured graph; these are keyed."""

RULES: dict[str, Rule] = {
    "aten.dropout.default": Rule(
        "*b -> *b", partial=(frozenset({0}),), saves=("output",), program=_dropout
    ),
}


def is_random(call: OpCall) -> bool:
    """Whether this call draws numbers: dropout that is on, or attention with dropout."""
    if call.op == "aten.dropout.default":
        return bool(call.argument(1, "p")) and bool(call.argument(2, "train"))
    if call.op == "aten.scaled_dot_product_attention.default":
        return bool(call.argument(4, "dropout_p", 0.0))
    return False
