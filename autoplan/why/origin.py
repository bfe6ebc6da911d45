"""Origin: what a plan was made from, so that it can be solved again under other conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.annotate import annotate
from autoplan.batch import arguments_without_batch
from autoplan.capture import Captured
from autoplan.errors import ConfigError
from autoplan.layouts import Layout
from autoplan.parallel import MeshChoice
from autoplan.plan import Plan
from autoplan.planfiles.fitting import annotate_as
from autoplan.policies import is_lean
from autoplan.registry import rules_in_force
from autoplan.request import Request
from autoplan.runtime.batches import Example, batch_size
from autoplan.search import hints_on
from autoplan.why.question import Answer, Question, pose


@dataclass(frozen=True)
class Recapture:
    """The model and its arguments without data, to capture them with another number of rows."""

    example: Example
    without: frozenset[int]
    """Flat positions of arguments that have no batch although they are as large."""
    capture: Callable[[Example], Captured]

    @property
    def rows(self) -> int | None:
        """The batch: rows of the first tensor argument."""
        return batch_size(self.example)

    def with_rows(self, rows: int) -> Captured:
        """The model captured on a batch of `rows`; CaptureError where it cannot have that many."""
        leaves, spec = pytree.tree_flatten(self.example)
        resized = [
            leaf.new_empty((rows, *leaf.shape[1:]))
            if isinstance(leaf, torch.Tensor)
            and leaf.ndim
            and leaf.shape[0] == self.rows
            and position not in self.without
            else leaf
            for position, leaf in enumerate(leaves)
        ]
        return self.capture(pytree.tree_unflatten(resized, spec))


def recapture(
    captured: Captured, example: Example, capture: Callable[[Example], Captured]
) -> Recapture:
    """Keeps the shapes of `example`, not its values; `capture` is called with others like it."""

    def without_data(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return torch.empty(
            leaf.shape, dtype=leaf.dtype, device="meta", requires_grad=leaf.requires_grad
        )

    kept: Example = pytree.tree_map(without_data, example)
    return Recapture(kept, arguments_without_batch(captured, rules_in_force()), capture)


@dataclass(frozen=True)
class Origin:
    """The captured model and the request that a plan is for.

    `recapture`: where the example arguments are at hand, so that the batch can be varied.
    """

    captured: Captured
    request: Request
    model: str
    recapture: Recapture | None = None
    _questions: dict[Any, Question] = field(default_factory=dict, repr=False, compare=False)

    def question(self, plan: Plan, lean: bool = False) -> Question:
        """What `plan` answers, on its mesh and within its memory limit; asked once.

        `lean`: with the candidates that only less memory brings, too.
        """
        key = plan.mesh, plan.memory_limit_bytes, plan.recomputed, lean, *plan.wires.items()
        if key not in self._questions:
            asked = self.ask(plan, self.captured, lean)
            unknown = plan.choices.keys() - set(asked.keys)
            if unknown or asked.choices_of(plan.choices) is None:  # a file's, without its hints
                asked = pose(annotate_as(self.captured, plan), asked.request, plan.recomputed)
            self._questions[key] = asked
        return self._questions[key]

    def ask(self, plan: Plan, captured: Captured, lean: bool = False) -> Question:
        """The question of `plan` for a graph captured anew."""
        request = replace(self.request, memory_bytes=plan.memory_limit_bytes)
        mesh = plan.mesh
        choice = next((each for each in request.meshes if each.mesh == mesh), MeshChoice(mesh))
        hints = hints_on(captured, request, choice)
        wires = {name: Layout.parse(text) for name, text in plan.wires.items()}
        annotated = annotate(
            captured,
            mesh,
            rules_in_force(),
            hints,
            request.local_inputs,
            wires=wires,
            lean=lean or any(map(is_lean, plan.choices.values())),
        )
        return pose(annotated, request, plan.recomputed)

    def answer(self, plan: Plan, lean: bool = False) -> tuple[Question, Answer]:
        """The question of `plan`, and the plan as its answer; ConfigError where it is another's."""
        question = self.question(plan, lean)
        choices = question.choices_of(plan.choices)
        if choices is None:
            raise ConfigError("the plan was changed after it was made for this model; plan again.")
        return question, question.price(choices, plan.certificate.gap)


def known_origin(origin: Origin | None, what: str) -> Origin:
    """`origin`, or ConfigError that says how to get it for `what`."""
    if origin is None:
        raise ConfigError(
            f"{what} solves again, and a plan that was read from a file knows no model; plan with "
            "autoplan.plan, or load it on the model: autoplan.parallelize(model, ..., "
            f"plan=path).plan.{what}."
        )
    return origin
