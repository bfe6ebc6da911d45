"""Losses of elements and of rows, their sums and means over split rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound
from autoplan.strategies.rule import OpCall, Rule

NONE, MEAN, SUM = 0, 1, 2
"""The `reduction` argument of ATen's losses."""


def loss(terms: Sequence[str], position: int, saves: tuple[int | str, ...] = (0, 1, 2)) -> Rule:
    """The rule of a loss whose inputs are `terms`, the first of a call's optional ones.

    The rows, `*n`, are what a mean averages. `position` is that of the `reduction` argument.
    """

    def notation(call: OpCall) -> str:
        rows = "*n" if call.argument(position, "reduction", MEAN) == NONE else ""
        return f"{', '.join(terms[: len(call.inputs)])} -> {rows}"

    def program(context: LocalContext, *args: Any, **kwargs: Any) -> Any:
        """A mean over split rows: the local sum over the global count, an addend of the mean."""
        call = context.call
        reduction = call.argument(position, "reduction", MEAN)
        if reduction != MEAN or not any(context.split.values()):
            return context.same_op(*args, **kwargs)
        if position < len(args):
            args = (*args[:position], SUM, *args[position + 1 :])
        else:
            kwargs = {**kwargs, "reduction": SUM}
        return torch.div(context.target(*args, **kwargs), _num_rows(rule.bound(call)))

    rule = Rule(notation, sums=True, saves=saves, program=program)
    return rule


def _num_rows(bound: Bound) -> int:
    return math.prod(size for index, size in bound.sizes.items() if index.startswith("n"))


_PAIR = loss(("*n", "*n"), 2)
_TRIPLE = ("*n", "*n", "*n")

RULES: dict[str, Rule] = {
    "aten.mse_loss.default": _PAIR,
    "aten.l1_loss.default": _PAIR,
    "aten.smooth_l1_loss.default": _PAIR,
    "aten.huber_loss.default": _PAIR,
    "aten.soft_margin_loss.default": _PAIR,
    "aten.kl_div.default": _PAIR,
    "aten.binary_cross_entropy.default": loss(_TRIPLE, 3),
    "aten.binary_cross_entropy_with_logits.default": loss((*_TRIPLE, "*n"), 4),
    "aten.poisson_nll_loss.default": loss(("*n", "*n"), 5),
    "aten.hinge_embedding_loss.default": loss(("*n", "*n"), 3),
    "aten.margin_ranking_loss.default": loss(_TRIPLE, 4, (0, 1, 2)),
    "aten.cosine_embedding_loss.default": loss(("*n [d]", "*n [d]", "*n"), 4, (0, 1, 2)),
    "aten.triplet_margin_loss.default": loss(("*n [d]",) * 3, 7, (0, 1, 2)),
    "aten.multi_margin_loss.default": loss(("*n [c]", "*n", "[c]"), 5),
    "aten.multilabel_margin_loss.default": loss(("*n [c]", "*n [c]"), 2),
}
