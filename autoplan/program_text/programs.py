"""The programs of all ranks of a plan, emitted from what the plan was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from autoplan.emit import emit
from autoplan.plan import Plan
from autoplan.recompute.emission import recompute_blocks
from autoplan.runtime.program import Program
from autoplan.strategies.rule import TensorMeta
from autoplan.why.origin import known_origin


@dataclass(frozen=True)
class StagePrograms:
    """A stage of a plan, on pipeline rank `rank`: the program of each of its ranks.

    trained: parameters that want a gradient. constants: tensors of the model that are no parameters
    or buffers. loss: what is known of the loss, of the stage that makes it.
    """

    number: int
    rank: int
    plan: Plan
    programs: tuple[Program, ...]
    trained: frozenset[str]
    constants: Mapping[str, Tensor]
    loss: TensorMeta | None


def programs_of(plan: Plan) -> tuple[StagePrograms, ...]:
    """Every program of a plan, stage by stage; a plan without a pipeline is one stage.

    Raises ConfigError for a plan that was read from a file and not loaded on its model.
    """
    if plan.pipeline is None:
        return (_of_stage(plan, 0, 0),)
    rows = zip(plan.pipeline.stages, plan.stages, strict=True)
    return tuple(_of_stage(stage, number, row.rank) for number, (row, stage) in enumerate(rows))


def _of_stage(plan: Plan, number: int, rank: int) -> StagePrograms:
    question, answer = known_origin(plan._origin, "save_program(folder)").answer(plan)
    annotated = question.annotated
    programs = tuple(
        recompute_blocks(
            emit(annotated, answer.choices, question.pricer.routers, each, plan.whole_outputs),
            question.recomputed,
        )
        for each in range(plan.mesh.num_devices)
    )
    trained = (s.path for s in annotated.sites if s.kind == "parameter" and _trains(s.outputs))
    loss: Any = None if annotated.loss is None else annotated.outputs[annotated.loss]
    return StagePrograms(
        number,
        rank,
        plan,
        programs,
        frozenset(trained),
        dict(annotated.captured.constants),
        loss[1] if isinstance(loss, tuple) else None,
    )


def _trains(outputs: tuple[TensorMeta, ...]) -> bool:
    return any(meta.requires_grad for meta in outputs)
