"""Describe: a pipeline that was found as the plain data of a Plan, and what emission needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec

from autoplan.describe import describe_plan
from autoplan.found import Found
from autoplan.hints.pins import PinPrice
from autoplan.parallel import MeshChoice
from autoplan.pipelining.joined import (
    joined_blocks,
    joined_collectives,
    joined_mesh,
    joined_operations,
    joined_tensors,
)
from autoplan.pipelining.owners import longest_recomputation_s, with_own_modules
from autoplan.pipelining.planner import Piped
from autoplan.pipelining.stages import Staged
from autoplan.plan import (
    FORMAT,
    Baseline,
    Certificate,
    Collective,
    Memory,
    Pipeline,
    Plan,
    StageRow,
    stage_name,
)
from autoplan.planfiles.write import arranged
from autoplan.request import Request
from autoplan.sites import Annotated
from autoplan.solver.problem import relative_gap
from autoplan.why.origin import Origin

T = TypeVar("T")


def describe_pipeline(
    piped: Piped,
    request: Request,
    model: str,
    baselines: tuple[Baseline, ...],
    pins: tuple[PinPrice, ...] = (),
) -> Plan:
    """The plain data of a pipeline: what its stages are, and a plan for each of them."""
    staged = piped.staged
    stages = tuple(
        _stage_plan(staged, number, request, model) for number in range(len(staged.stages))
    )
    floor = min(piped.floor, piped.step_time_s)
    certificate = Certificate(
        objective=piped.step_time_s,
        bound=floor,
        gap=relative_gap(piped.step_time_s, floor),
        seconds=piped.seconds,
        status="best cut found",
        num_variables=sum(stage.certificate.num_variables for stage in stages),
        num_classes=sum(stage.certificate.num_classes for stage in stages),
        num_binaries=sum(stage.certificate.num_binaries for stage in stages),
    )
    plan = describe_staged(staged, stages, model, certificate, piped.automatic, piped.bound)
    return msgspec.structs.replace(plan, baselines=baselines, pins=pins)


def describe_staged(
    staged: Staged,
    stages: tuple[Plan, ...],
    model: str,
    certificate: Certificate,
    automatic: tuple[int, ...],
    bound: float = 0.0,
) -> Plan:
    """A pipeline of the plans of its stages, without baselines and the prices of hints."""
    frame = staged.frame
    request = frame.request
    mesh = joined_mesh(frame.size, [choice.mesh for choice in frame.meshes])
    stage_of = dict(zip(frame.pieces.names, staged.stage_of, strict=True))
    rows = tuple(_row(staged, number) for number in range(len(stages)))
    sends = arranged(list(_transfers(staged)), lambda row: row.path, lambda row: row.phase)
    return Plan(
        format=FORMAT,
        model=model,
        axes=mesh.axes,
        sizes=mesh.sizes,
        cluster=request.cluster.profile.name,
        training=request.setting.training,
        optimizer=request.setting.optimizer,
        microbatches=request.setting.microbatches,
        memory_limit_bytes=request.memory_bytes,
        local_inputs=request.local_inputs,
        whole_outputs=request.whole_outputs,
        choices={},
        tensors=joined_tensors(with_own_modules(stages, stage_of)),
        operations=joined_operations(stages),
        collectives=joined_collectives(stages, sends),
        memory=_memory(staged),
        devices_per_node=request.cluster.devices_per_node,
        step_time_s=staged.step_time_s,
        certificate=certificate,
        hints=_distinct(hint for stage in stages for hint in stage.hints),
        notes=_distinct(note for stage in stages for note in stage.notes),
        recomputed=joined_blocks(stages),
        recomputation_s=longest_recomputation_s(stages, [row.rank for row in rows]),
        pipeline=Pipeline(
            schedule=frame.schedule.name,
            size=frame.size,
            pieces=frame.pieces.names,
            actual=staged.stage_of,
            automatic=automatic,
            stages=rows,
            bubble=staged.run.bubble_fraction,
            bound=bound,
        ),
        stages=stages,
    )


def _stage_plan(staged: Staged, number: int, request: Request, model: str) -> Plan:
    """The plan of one stage: of its own part of the model, on its own ranks."""
    found, frame = staged.stages[number], staged.frame
    alone = replace(
        request,
        pipeline=None,
        devices=frame.ranks_per_stage,
        meshes=(MeshChoice(found.annotated.mesh),),
        setting=frame.setting(number),
    )
    plan = describe_plan(found, alone, stage_name(number, model), ())
    plan = msgspec.structs.replace(plan, wires=wires(found.annotated, found.solution.choices))
    return plan.remember(stage_origin(found, alone, plan.model))


def stage_origin(found: Found, request: Request, name: str) -> Origin:
    """What one stage was planned from: its part of the model, with the hints that it was given."""
    captured = replace(found.annotated.captured, pins=())
    return Origin(captured, replace(request, hints={}, held=found.hints), name)


def wires(annotated: Annotated, choices: Sequence[int]) -> dict[str, str]:
    """The layouts of what a stage receives and sends, by graph node."""
    return {
        site.name.removesuffix(":sent"): str(site.candidates[choice].outputs[0])
        for site, choice in zip(annotated.sites, choices, strict=True)
        if site.kind in ("received", "sent")
    }


def _row(staged: Staged, number: int) -> StageRow:
    frame, times = staged.frame, staged.times[number]
    rank, k = frame.rank_of(number), frame.ranks_per_stage
    ahead, back = staged.transfer_s(number)
    names = frame.pieces.names
    return StageRow(
        rank=rank,
        ranks=tuple(range(rank * k, (rank + 1) * k)),
        pieces=tuple(n for n, at in zip(names, staged.stage_of, strict=True) if at == number),
        forward_s=float(times.forward_s.sum()),
        backward_s=float(times.backward_s.sum()),
        forward_transfer_s=ahead,
        backward_transfer_s=back,
        once_s=float(times.once_s.sum()),
        in_flight=frame.in_flight[number],
        peak_memory_bytes=staged.alone(number).total,
        rank_peak_memory_bytes=staged.memory_bytes[rank],
    )


def _transfers(staged: Staged) -> Iterable[Collective]:
    """What ranks send to the next stage, and back, in a step."""
    count = staged.frame.request.setting.microbatches
    for number, found in enumerate(staged.stages):
        ahead, back = staged.transfer_s(number)
        if not ahead:
            continue
        names = [*staged.frame.pieces.names]
        path = names[max(i for i, at in enumerate(staged.stage_of) if at == number)]
        sent = [
            (found.pricer.local_bytes(s.outputs[0], s.candidates[c].outputs[0]), s.outputs[0])
            for s, c in zip(found.annotated.sites, found.solution.choices, strict=True)
            if s.kind == "sent"
        ]
        whole = sum(size for size, _ in sent)
        yield Collective("send", whole, count, "pipeline", path, "body", "forward", count * ahead)
        if back:
            grads = sum(size for size, meta in sent if meta.requires_grad)
            yield Collective(
                "send", grads, count, "pipeline", path, "body", "backward", count * back
            )


def _memory(staged: Staged) -> Memory:
    """The peak of the fullest pipeline rank."""
    return max(staged.memories, key=lambda each: each.total)


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))
