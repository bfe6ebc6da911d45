"""Losses, with and without reduction."""

from __future__ import annotations

from tests.fuzz.draft import Draft
from tests.fuzz.families.base import family

REDUCTIONS = ("mean", "mean", "sum", "none")


@family(2)
def cross_entropy(d: Draft) -> str:
    x = d.real(2, 3)
    shape = d.shape_of(x)
    classes = shape[1]
    options = [f"reduction='{d.choose(REDUCTIONS)}'"]
    if d.chance(0.15):
        return f"F.cross_entropy({x}, {d.new_real(*shape)}.softmax(1), {options[0]})"
    target = d.whole(classes, shape[0], *shape[2:])
    if d.chance(0.4) and d.value(f"({target} != 1)").any():
        options.append("ignore_index=1")
    if d.chance(0.3):
        options.append("label_smoothing=0.2")
    if d.chance(0.3):
        weights = d.buffer(f"real({d.seed()}, {classes}).square() + 0.3")
        options.append(f"weight={weights}")
    if d.chance(0.2) and "label_smoothing=0.2" not in options:
        return f"F.nll_loss(F.log_softmax({x}, 1), {target}, {', '.join(options)})"
    return f"F.cross_entropy({x}, {target}, {', '.join(options)})"


@family(2)
def losses(d: Draft) -> str | None:
    x = d.real(1)
    shape = d.shape_of(x)
    y = d.new_real(*shape)
    reduction = f"reduction='{d.choose(REDUCTIONS)}'"
    options = [
        f"F.mse_loss({x}, {y}, {reduction})",
        f"F.binary_cross_entropy({x}.sigmoid(), {y}.sigmoid().detach(), {reduction})",
        f"F.binary_cross_entropy_with_logits({x}, {y}.sigmoid().detach(), {reduction})",
        f"F.kl_div({x}.log_softmax(-1), {y}.softmax(-1), {reduction})",
        f"F.smooth_l1_loss({x}, {y}, {reduction}, beta=0.5)",
        f"F.huber_loss({x}, {y}, {reduction}, delta=0.7)",
        f"F.poisson_nll_loss({x}, {y}.square().detach(), {reduction})",
        f"F.soft_margin_loss({x}, {y}.sign().detach(), {reduction})",
    ]
    if d.far_from(f"{x} - {y}", 0.0):
        options.append(f"F.l1_loss({x}, {y}, {reduction})")
    return d.choose(options)
