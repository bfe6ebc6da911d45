"""Differences: how far two computations are apart, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed as dist
from torch import Tensor, fx

from autoplan.layouts import B, Layout, Partial
from autoplan.runtime.simulation import shard

if TYPE_CHECKING:
    from autoplan.planning import Planned
    from autoplan.replay import Emitted, Original
    from autoplan.runtime.executor import Executor


@dataclass(frozen=True)
class Difference:
    """The first node of the program whose value, or gradient, is not the original's.

    direction: "forward" for a value; "backward" for a gradient, where all values are equal.
    layout: of the value, or of the gradient.
    collective: the boxing that the value came through last, or the gradient; empty if none.
    """

    node: str
    path: str
    source: str
    layout: Layout
    error: float
    direction: Literal["forward", "backward"] = "forward"
    collective: str = ""

    def __str__(self) -> str:
        where = f" in {self.path}" if self.path else ""
        what = self.node if self.direction == "forward" else f"the gradient of {self.node}"
        after = f", after {self.collective}" if self.collective else ""
        return (
            f"{what}{where}, layout {self.layout}{after}, differs by {self.error:.3g} "
            f"({self.source})"
        )


def relative_error(value: Tensor | None, truth: Tensor | None, floor: float = 0.0) -> float:
    """Largest difference over the largest magnitude of `truth`, or over `floor` if that is larger.

    A missing tensor is zeros; a different shape, or a nan on one side alone, is infinitely wrong.
    Where both are nan, or the same infinity, they are equal.
    """
    if value is None and truth is None:
        return 0.0
    if truth is None:
        assert value is not None
        truth = value.new_zeros(value.shape)
    value = truth.new_zeros(truth.shape) if value is None else value
    if value.shape != truth.shape:
        return float("inf")
    if truth.numel() == 0:
        return 0.0
    value, truth = _wide(value), _wide(truth)
    same = (value == truth) | ((value != value) & (truth != truth))
    if bool(same.all()):
        return 0.0
    difference = float((value - truth).abs().masked_fill(same, 0.0).max())
    scale = max(magnitude(truth), floor)
    error = difference / scale if scale else difference
    return error if error == error else float("inf")


def magnitude(tensor: Tensor | None) -> float:
    """The largest finite element; 0 where there is none."""
    if tensor is None:
        return 0.0
    wide = _wide(tensor).abs()
    return float(wide.masked_fill(~wide.isfinite(), 0.0).max()) if wide.numel() else 0.0


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.is_complex() else tensor.detach().double()


def worst_of_ranks(errors: list[dict[Any, float]]) -> list[dict[Any, float]]:
    """The largest of every error over all ranks, the same on all.

    Otherwise a caller that stops where an error is large would leave other ranks waiting.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return errors
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, errors)
    merged: list[dict[Any, float]] = [{} for _ in errors]
    for rank in everyone:  # ranks of a pipeline know other tensors
        for found, own in zip(merged, rank, strict=True):
            for key, error in own.items():
                found[key] = max(found.get(key, 0.0), error)
    return merged


def first_difference(
    original: Original,
    emitted: Emitted,
    stages: Sequence[Planned],
    step: int,
    tolerance: float,
    vanishing: float,
) -> Difference | None:
    """Compare node by node with the captured graph on one device: values, then gradients.

    vanishing: part of the largest gradient below which a gradient is but rounding.
    """
    seen: dict[_Place, tuple[fx.Node, list[Any]]] = {}

    def watch(stage: int, node: fx.Node, values: list[Any]) -> None:
        if "site" not in node.meta:
            return
        for each in values:
            if isinstance(each, Tensor) and each.requires_grad:
                each.retain_grad()
        seen[stage, len(seen)] = node, values

    emitted.run(step, watch)
    truth = original.values(step)
    forward: dict[_Place, float] = {}
    backward: dict[_Place, float] = {}
    layouts: dict[_Place, Layout] = {}
    largest = 0.0
    pairs: dict[_Place, tuple[list[Any], Tensor]] = {}
    for number, (node, values) in seen.items():
        sites, choices = stages[number[0]].annotated.sites, stages[number[0]].choices
        at, output = node.meta["site"], node.meta.get("output", 0)
        true = truth.get(sites[at].name)
        true = true[output] if isinstance(true, (tuple, list)) else true
        if not isinstance(true, Tensor) or not isinstance(values[0], Tensor):
            continue
        layouts[number] = sites[at].candidates[choices[at]].outputs[output]
        pairs[number] = values, true
        if true.grad is not None and true.grad.numel():
            largest = max(largest, magnitude(true.grad))
    for number, (values, true) in pairs.items():
        # A value that is zero but for rounding is measured by what it was made from.
        sites = stages[number[0]].annotated.sites
        site = sites[seen[number][0].meta["site"]]
        read = [truth.get(sites[each.site].name) for each in site.inputs]
        made_from = [magnitude(each) for each in read if isinstance(each, Tensor)]
        floor = 1e-6 * max((each for each in made_from if each < 1e30), default=0.0)
        executor = emitted.executor_of(number[0])
        forward[number] = _error(executor, values, layouts[number], true, floor)
        gradients = [each.grad for each in values]
        # A gradient that nothing asked for is missing on every rank alike.
        if true.grad is not None and all(each is not None for each in gradients):
            layout = layouts[number].dual
            backward[number] = _error(executor, gradients, layout, true.grad, vanishing * largest)
    forward, backward = worst_of_ranks([forward, backward])
    limit = max(tolerance, 1e-12)
    for errors, direction in ((forward, "forward"), (backward, "backward")):
        order = sorted(errors, reverse=direction == "backward")
        for number in order:
            if not errors[number] <= limit:
                found = None
                if number in layouts:
                    node = seen[number][0]
                    site = stages[number[0]].annotated.sites[node.meta["site"]]
                    layout = layouts[number]
                    found = Difference(
                        node.name,
                        site.path,
                        site.source_line,
                        layout if direction == "forward" else layout.dual,
                        errors[number],
                        "forward" if direction == "forward" else "backward",
                        _collective(node, direction),
                    )
                return _known_to_any(found)
    return None


_Place = tuple[int, int]
"""A stage, and a number that grows with the nodes that run."""


def _known_to_any(found: Difference | None) -> Difference | None:
    """What the first rank knows that has run the node."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return found
    everyone: list[Difference | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return next((each for each in everyone if each is not None), None)


def _error(
    executor: Executor, values: Sequence[Tensor], layout: Layout, truth: Tensor, floor: float
) -> float:
    """The worst rank's error; addends are summed over their ranks first."""
    summed = executor.summed([each.detach() for each in values], layout)
    whole = Layout(B if isinstance(entry, Partial) else entry for entry in layout)
    scale = max(magnitude(truth), floor)
    return max(
        relative_error(value, shard(truth.detach(), whole, executor.mesh, rank), scale)
        for value, rank in zip(summed, executor.ranks, strict=True)
    )


def _collective(node: fx.Node, direction: str) -> str:
    """The nearest boxing before `node`: among what it reads, or backward, among its readers."""
    queue, done = [node], {node}
    while queue:
        each = queue.pop(0)
        if each is not node and each.op == "call_method" and each.target in _BOXINGS:
            text = each.args[2] if each.target != "all_reduce_max" else "maximum"
            note = each.meta.get("note", "")
            return f"{each.target} {text!r} on {each.kwargs.get('axis', each.args[-1])} [{note}]"
        near = each.all_input_nodes if direction == "forward" else list(each.users)
        queue += [other for other in near if other not in done]
        done.update(near)
    return ""


_BOXINGS = ("box", "box_many", "all_reduce_max")
