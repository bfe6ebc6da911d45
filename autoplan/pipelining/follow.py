"""Follow: a given pipeline on a model, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgspec

from autoplan.baselines import baselines
from autoplan.capture import Captured
from autoplan.errors import InfeasibleError, PlanFileError
from autoplan.found import Found
from autoplan.layouts import B
from autoplan.parallel import MeshChoice
from autoplan.pipeline_choice import PipelineChoice
from autoplan.pipelining.describe import describe_staged, stage_origin, wires
from autoplan.pipelining.fitting import fitted
from autoplan.pipelining.joined import schedule_of
from autoplan.pipelining.pieces import Pieces, pieces_of
from autoplan.pipelining.planner import pieces_in_force
from autoplan.pipelining.splitting import Split, split
from autoplan.pipelining.stages import Frame, Staged, setting_of, together, too_little_memory
from autoplan.plan import Certificate, Pipeline, Plan
from autoplan.planfiles.follow import adopt_choices, follow, given
from autoplan.planning import Planned, PlannedPipeline
from autoplan.request import Request
from autoplan.solver import Solution
from autoplan.why.origin import Origin


def follow_pipeline(captured: Captured, plan: Plan, request: Request) -> PlannedPipeline:
    """The stages and choices of a pipeline of this very model."""
    pieces = pieces_in_force(captured, request)
    parts = split(captured, pieces, _stage_of(plan, pieces))
    stages = tuple(
        follow(stage, described, stage_request(request, plan, number))
        for number, (stage, described) in enumerate(zip(parts.stages, plan.stages, strict=True))
    )
    plan.remember(Origin(captured, request, plan.model))
    return PlannedPipeline(plan, stages, parts)


def adopt_pipeline(captured: Captured, plan: Plan, request: Request) -> PlannedPipeline:
    """A pipeline that was loaded, on this model; each stage as `adopt` takes a plan.

    Parts that the file has moved to another stage of equal mesh keep their decisions; elsewhere
    they are decided anew. The plan has the numbers of this model. Raises PlanFileError where the
    model has parts whose stage the file does not say, and as `adopt` does, naming the stage.
    """
    pieces = pieces_of(captured)
    stage_of = _stage_of(plan, pieces)
    parts = split(captured, pieces, stage_of)
    asked = [stage_request(request, plan, number) for number in range(len(parts.stages))]
    loaded = fitted(plan, parts)
    stages = []
    for number, (stage, described) in enumerate(zip(parts.stages, loaded, strict=True)):
        with _stage_in_errors(number):
            stages.append(_adopted(stage, described, asked[number], request))
    plans = tuple(stage.plan for stage in stages)
    _check_shared(parts, plans)
    staged = _staged(captured, plan, request, parts, pieces, stage_of, stages)
    error = too_little_memory(staged)
    if error is not None:
        raise error
    described = _described(plan, staged, plans)
    described = msgspec.structs.replace(
        described,
        baselines=baselines(captured, request),
        hints=plan.hints,
        config=plan.config,
    )
    described.remember(Origin(captured, request, plan.model))
    return PlannedPipeline(described, tuple(stages), parts)


def stage_request(request: Request, plan: Plan, number: int) -> Request:
    """What is asked of one stage of `plan`: to fit on its own ranks, beside what they hold, too."""
    pipeline = _pipeline(plan)
    row, stage = pipeline.stages[number], plan.stages[number]
    of_rank = sum(
        other.memory.total
        for other, each in zip(plan.stages, pipeline.stages, strict=True)
        if each.rank == row.rank
    )
    share = stage.memory.total / of_rank if of_rank else 1.0
    return replace(
        request,
        pipeline=None,
        devices=len(row.ranks),
        meshes=(MeshChoice(stage.mesh),),
        hints={},
        setting=setting_of(request.setting, schedule_of(pipeline), pipeline.size, number),
        memory_bytes=math.ceil(request.memory_bytes * share),
    )


def with_pipeline_of(request: Request, plan: Plan) -> Request:
    """A request that plans other forms of arguments as the pipeline that `plan` is."""
    pipeline = _pipeline(plan)
    schedule, size = schedule_of(pipeline), pipeline.size
    meshes = _meshes(plan)
    own = tuple((mesh,) for mesh in meshes)
    choice = PipelineChoice(size, schedule.name, schedule.chunks, None, own)
    return replace(request, pipeline=choice, meshes=(meshes[0],))


def _meshes(plan: Plan) -> tuple[MeshChoice, ...]:
    """The mesh of every pipeline rank."""
    pipeline = _pipeline(plan)
    schedule, size = schedule_of(pipeline), pipeline.size
    firsts = (schedule.stages_of(rank, size)[0] for rank in range(size))
    return tuple(MeshChoice(plan.stages[stage].mesh) for stage in firsts)


def _pipeline(plan: Plan) -> Pipeline:
    if plan.pipeline is None:
        raise PlanFileError("the plan has no pipeline; plan again.")
    return plan.pipeline


def _stage_of(plan: Plan, pieces: Pieces) -> tuple[int, ...]:
    """The stages of the model's pieces, as the plan says by their names."""
    known, pipeline = plan.stage_map, _pipeline(plan)
    for name in pieces.names:
        if name not in known:
            raise PlanFileError(
                f"the plan says no stage for {name!r}, which this model has; name it in "
                "[pipeline.stages], or plan again."
            )
    for name in known:
        if name not in pieces.names:
            raise PlanFileError(
                f"the plan puts {name!r} on stage {known[name]}, and this model has no such part; "
                "take it out of the file, or plan again."
            )
    stages = tuple(known[name] for name in pieces.names)
    count = len(pipeline.stages)
    for at in range(1, len(stages)):
        if stages[at] < stages[at - 1]:
            raise PlanFileError(
                f"the plan puts {pieces.names[at]!r} on stage {stages[at]}, and "
                f"{pieces.names[at - 1]!r}, which runs before, on stage {stages[at - 1]}: stages "
                "follow the order in which the model runs; correct [pipeline.stages]."
            )
    if set(stages) != set(range(count)):
        raise PlanFileError(
            f"the plan has parts of this model on stages {sorted(set(stages))} of {count}; give "
            "every stage a part, or plan again."
        )
    return stages


@contextmanager
def _stage_in_errors(number: int) -> Iterator[None]:
    try:
        yield
    except PlanFileError as error:
        raise PlanFileError(f"stage {number}: {error}") from error
    except InfeasibleError as error:
        raise InfeasibleError(f"stage {number}: {error}") from error


def _adopted(captured: Captured, plan: Plan, asked: Request, request: Request) -> Planned:
    """One stage, with what it needs to be asked about."""
    planned = adopt_choices(captured, plan, asked)
    described = msgspec.structs.replace(
        planned.plan,
        wires=wires(planned.annotated, planned.choices),
        memory_limit_bytes=request.memory_bytes,
    )
    asked = replace(asked, memory_bytes=request.memory_bytes)
    described.remember(stage_origin(_found(planned), asked, plan.model))
    return replace(planned, plan=described)


def _found(planned: Planned) -> Found:
    solution = Solution(planned.choices, given(planned.plan.step_time_s, len(planned.choices)))
    memory, blocks = planned.plan.memory, planned.recomputed
    return Found((), planned.annotated, planned.pricer, solution, memory, blocks)


def _check_shared(parts: Split, stages: Sequence[Plan]) -> None:
    """A parameter that several stages read lies alike there, rank by rank."""
    for path, numbers in parts.shared.items():
        said = {n: stages[n].tensor(path).layout for n in numbers}
        first = numbers[0]
        for number in numbers[1:]:
            alike = stages[number].mesh == stages[first].mesh and said[number] == said[first]
            whole = all(e == B for n in (first, number) for e in stages[n].layout(path))
            if not alike and not whole:
                raise PlanFileError(
                    f"{path!r} is read by stages {first} and {number}, which store it as "
                    f"{said[first]} and {said[number]}: what they share lies alike on meshes that "
                    "are equal, and whole (B) on others; correct the plan file."
                )


def _staged(
    captured: Captured,
    plan: Plan,
    request: Request,
    parts: Split,
    pieces: Pieces,
    stage_of: tuple[int, ...],
    stages: Sequence[Planned],
) -> Staged:
    """The stages as if they had been found."""
    pipeline = _pipeline(plan)
    schedule, size = schedule_of(pipeline), pipeline.size
    frame = Frame(captured, request, pieces, schedule, size, _meshes(plan), {}, 0.0)
    return together(frame, stage_of, parts, [_found(each) for each in stages])


def _described(plan: Plan, staged: Staged, stages: tuple[Plan, ...]) -> Plan:
    """The plan of this model; what was proven and priced of the plan before where it is the same.

    Decisions that could not be held were solved stage by stage.
    """
    own = plan.pipeline
    assert own is not None
    kept = [(stage.choices, stage.wires, stage.recomputed) for stage in plan.stages]
    now = [(stage.choices, stage.wires, stage.recomputed) for stage in stages]
    same_time = math.isclose(staged.step_time_s, plan.step_time_s, rel_tol=1e-9)
    before = dict(zip(own.pieces, own.automatic, strict=True))
    automatic = tuple(before[name] for name in staged.frame.pieces.names)
    if kept == now and same_time:
        described = describe_staged(
            staged, stages, plan.model, plan.certificate, automatic, own.bound
        )
        return msgspec.structs.replace(described, pins=plan.pins)
    solved = any("around" in stage.certificate.status for stage in stages)
    certificate = Certificate(
        objective=staged.step_time_s,
        bound=0.0,
        gap=1.0,
        status="solved around the decisions of the plan file" if solved else "given, not solved",
        num_variables=sum(stage.certificate.num_variables for stage in stages),
        num_classes=sum(stage.certificate.num_classes for stage in stages),
        num_binaries=sum(stage.certificate.num_binaries for stage in stages),
    )
    return describe_staged(staged, stages, plan.model, certificate, automatic)
