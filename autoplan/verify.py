"""Verify: the emitted program against the original model.

Outputs, every gradient, buffers, and weights after optimizer steps, on every rank; where they
differ, the first node that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.differences import (
    Difference,
    first_difference,
    magnitude,
    relative_error,
    worst_of_ranks,
)
from autoplan.errors import InputError
from autoplan.replay import Emitted, Original
from autoplan.runtime.batches import Example, batch_size

if TYPE_CHECKING:
    from autoplan.piped import PipedModule
    from autoplan.planned import Entry

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Check:
    """What `verify` found. Errors are relative: largest difference over largest true magnitude.

    output_errors: by flat position; the error of the worst rank, as of all other errors.
    gradient_errors, weight_errors: by parameter path; weights after `steps` optimizer steps.
    argument_errors: by flat position, of the gradients of arguments that want one.
    buffer_errors: by path, of the buffers that a call changes, after the last step.
    first_difference: where the computation first goes wrong; None where all is equal.
    not_finite: a sentence where outputs or gradients of the original are nan or infinite.
    """

    ok: bool
    tolerance: float
    loss_error: float
    output_errors: dict[int, float]
    gradient_errors: dict[str, float]
    argument_errors: dict[int, float] = field(default_factory=dict)
    buffer_errors: dict[str, float] = field(default_factory=dict)
    weight_errors: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    precision: str = "float64"
    first_difference: Difference | None = None
    not_finite: str = ""

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        verdict = "equal" if self.ok else "DIFFERENT"
        lines = [
            f"{verdict} within {self.tolerance:g} ({self.precision}): outputs differ by "
            f"{max(self.output_errors.values(), default=0.0):.3g}"
        ]
        for name, errors in (
            ("gradient", self.gradient_errors),
            ("gradient of an argument", self.argument_errors),
            ("buffer", self.buffer_errors),
            (f"weight after {self.steps} steps", self.weight_errors),
        ):
            if errors:
                worst, error = max(errors.items(), key=lambda each: each[1])
                lines.append(f"worst {name}: {worst} by {error:.3g}")
        if self.first_difference is not None:
            lines.append(f"first difference: {self.first_difference}")
        if self.not_finite:
            lines.append(self.not_finite)
        return "; ".join(lines)


def _optimizer_for(original: Original) -> MakeOptimizer:
    """AdamW whose epsilon is small beside the model's gradients, not beside their rounding.

    AdamW divides a gradient by its own size, so that one which is zero but for rounding (a key's
    bias) would become a full step, on one device as on many.
    """
    gradients = [magnitude(each.grad) for each in original.parameters()]
    epsilon = max(1e-4 * max(gradients, default=0.0), 1e-8)
    return partial(torch.optim.AdamW, lr=1e-3, eps=epsilon)


def verify(
    module: PipedModule,
    entry: Entry,
    example: Example,
    tolerance: float,
    double: bool,
    rounding: float,
    steps: int,
    optimizer: MakeOptimizer | None,
) -> Check:
    """Run both on `example` and compare; the module's own state is left as it is.

    rounding: the unit of the coarsest type in which anything is computed.
    """
    state = _state_of(module)
    whole = _whole_example(module, example)
    original = Original(module, entry, state, whole, double)
    emitted = Emitted(module, entry, state, example, double)
    first = module._steps

    try:
        truth = original.run(first)
    except (RuntimeError, TypeError) as error:
        if not double:
            raise
        raise InputError(
            f"{module._model_name} itself does not run in float64: {str(error).splitlines()[0]}. "
            "Use verify(..., precision='model')."
        ) from error
    found = emitted.run(first)
    output_errors = {
        number: max(relative_error(value, true) for value in values)
        for number, (values, true) in enumerate(zip(found, truth, strict=True))
        if isinstance(true, Tensor)
    }
    training = module._request.setting.training
    # Below it a gradient is rounding alone, of which 16 units are within the tolerance.
    vanishing = max(1e-4, min(16 * rounding / tolerance, 1.0)) if tolerance else 1e-4
    gradient_errors = _gradient_errors(original, emitted, vanishing) if training else {}
    not_finite = _not_finite(original, truth)
    shared = training and not module._request.local_inputs
    argument_errors = _argument_errors(original, emitted) if shared else {}
    if steps and original.parameters():
        optimizer = optimizer or _optimizer_for(original)
        optimizers = optimizer(original.parameters()), optimizer(emitted.parameters())
        for step in range(first, first + steps):
            if step > first:
                original.run(step)
                emitted.run(step)
            for each in optimizers:
                each.step()
                each.zero_grad()
    buffer_errors = _buffer_errors(original, emitted)
    weight_errors = _weight_errors(original, emitted) if steps else {}
    kinds = worst_of_ranks(
        [output_errors, gradient_errors, argument_errors, buffer_errors, weight_errors]
    )
    output_errors, gradient_errors, argument_errors, buffer_errors, weight_errors = kinds
    ok = all(error <= tolerance for errors in kinds for error in errors.values())
    largest = max(output_errors.values(), default=0.0)
    difference = None
    if not ok:
        # Anew: steps may have changed the weights.
        replays = (
            Original(module, entry, state, whole, double),
            Emitted(module, entry, state, example, double),
        )
        difference = first_difference(*replays, entry.planned.stages, first, tolerance, vanishing)
    return Check(
        ok=ok,
        tolerance=tolerance,
        loss_error=largest if entry.loss is None else output_errors[entry.loss],
        output_errors=output_errors,
        gradient_errors=gradient_errors,
        argument_errors=argument_errors,
        buffer_errors=buffer_errors,
        weight_errors=weight_errors,
        steps=steps,
        precision="float64" if double else "the model's own precision",
        first_difference=difference,
        not_finite=not_finite,
    )


def _state_of(module: PipedModule) -> dict[str, Tensor]:
    """Every parameter and buffer, whole, on the CPU of every rank; collective.

    Also those that no state dict has, and that no stage of this rank reads.
    """
    held = module._tensors()
    outside = {
        path: module._gathered(form.leader, held.get(form.leader)).cpu()
        for path, form in module._forms.items()
        if not form.persistent
    }
    return {**outside, **module.full_state_dict()}


def _gradient_errors(original: Original, emitted: Emitted, vanishing: float) -> dict[str, float]:
    """By path; a gradient that is zero but for rounding (a key's bias) is measured by others."""
    truth = {path: each.grad for path, each in original.model.named_parameters()}
    sizes = {path: magnitude(each) for path, each in truth.items()}
    largest = max(sizes.values(), default=0.0)
    # Where all of them vanish (a softmax after all weights), what they are gradients of measures.
    floor = vanishing * (original.magnitude if largest < 1e-12 * original.magnitude else largest)
    return {
        path: max(relative_error(*pair, floor=max(sizes.get(path, 0.0), floor)) for pair in pairs)
        for path, pairs in emitted.shards(truth.get, lambda each: each.grad).items()
    }


def _argument_errors(original: Original, emitted: Emitted) -> dict[int, float]:
    """Errors of the gradients of arguments that want one, by flat position."""
    pairs = enumerate(zip(pytree.tree_leaves(original.example), emitted.leaves, strict=True))
    return {
        position: relative_error(found.grad, true.grad)
        for position, (true, found) in pairs
        if isinstance(true, Tensor) and true.requires_grad
    }


def _buffer_errors(original: Original, emitted: Emitted) -> dict[str, float]:
    """By path, of those that either changes; a mean that is but rounding is measured by others."""
    truth, found = original.buffers, dict(emitted.updated)
    known = {id(truth[path]) for path in found}
    for path, value in truth.items():
        before = original.state[path].to(value)
        if id(value) not in known and not torch.equal(value, before):
            found[path] = [before]
    floating = [truth[path] for path in found if truth[path].is_floating_point()]
    floor = 1e-6 * max(map(magnitude, floating), default=0.0)
    return {
        path: max(relative_error(value, truth[path], floor) for value in values)
        for path, values in found.items()
    }


def _weight_errors(original: Original, emitted: Emitted) -> dict[str, float]:
    """By path; one that only rounding moved is measured by the steps that others took."""
    truth = dict(original.model.named_parameters())
    before = {path: original.state[path].to(each) for path, each in truth.items()}
    largest = max((magnitude(each - before[path]) for path, each in truth.items()), default=0.0)
    return {
        path: max(
            relative_error(*pair, floor=max(magnitude(truth[path]), largest)) for pair in pairs
        )
        for path, pairs in emitted.shards(truth.get, lambda each: each).items()
    }


def _not_finite(original: Original, outputs: list[Any]) -> str:
    """What is nan or infinite in the original itself, in words; empty where nothing is."""
    named = [(f"output {number}", each) for number, each in enumerate(outputs)]
    trained = original.model.named_parameters()
    named += [(f"the gradient of {path}", each.grad) for path, each in trained]
    found = [name for name, each in named if isinstance(each, Tensor) and not _is_finite(each)]
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"the original itself is not finite in {found[0]}{more}, where equal means nan, or the "
        "same infinity, at the same places"
    )


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.detach().isfinite().all())


def _whole_example(module: PipedModule, example: Example) -> Example:
    """The whole batch, where every rank was given its own part."""
    if not module._request.local_inputs:
        return example
    batch = batch_size(example)

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] != batch:
            return leaf
        device = module._live_executor.device
        parts = [
            torch.empty_like(leaf, device=device) for _ in range(torch.distributed.get_world_size())
        ]
        torch.distributed.all_gather(parts, leaf.detach().to(device).contiguous())
        return torch.cat(parts)

    whole: Example = pytree.tree_map(gather, example)
    return whole
