"""Connectionist temporal classification (Graves et al. 2006), split over sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoplan.strategies.local import LocalContext
from autoplan.strategies.loss import MEAN, NONE
from autoplan.strategies.rule import OpCall, Rule


def _shapes(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[Tensor, Tensor]:
    """The results of `aten::_ctc_loss.Tensor`, losses [n] and alphas, in shape.

    The alphas are as many as the longest target wants, which the shape of the targets bounds.
    """
    steps, sequences = (log_probs.shape[0], log_probs.shape[1:-1])
    alphas = (*sequences, steps, 2 * targets.shape[-1] + 1)
    return log_probs.new_empty(sequences), log_probs.new_empty(alphas)


# torch 2.11 to 2.13 trace no model with this loss: its kernels read the lengths.
torch.library.register_fake("aten::_ctc_loss.Tensor", _shapes, allow_override=True)


def _sequences(call: OpCall) -> str | None:
    """Log-probabilities [t, n, c] and padded targets; those in one row lie as their lengths say."""
    if [len(shape) for shape in call.input_shapes] != [3, 2, 1, 1]:
        return None
    losses = "n" if call.argument(5, "reduction", MEAN) == NONE else ""
    return f"[t] n [c], n [s], n, n -> {losses}"


def _local_ctc(
    context: LocalContext,
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int = MEAN,
    zero_infinity: bool = False,
) -> Any:
    """A mean is of losses over the lengths of their targets; each rank adds its own."""
    given = (log_probs, targets, input_lengths, target_lengths, blank)
    if reduction != MEAN or not context.axes("n"):
        return context.same_op(*given, reduction, zero_infinity)
    losses = context.target(*given, NONE, zero_infinity)
    lengths = torch.clamp(target_lengths, min=1)
    return torch.div(torch.sum(torch.div(losses, lengths)), context.call.inputs[0].shape[1])


RULES: dict[str, Rule] = {
    "aten.ctc_loss.Tensor": Rule(
        _sequences, sums=True, saves=(0, 1), needs_rows=True, program=_local_ctc
    ),
}
