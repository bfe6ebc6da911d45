"""Demands: what a user asks of a plan beyond its model and devices, each to be given up alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from autoplan.capture import Captured
from autoplan.errors import ConfigError
from autoplan.hints import origin_of
from autoplan.hints.inside import pin_origin
from autoplan.parallel import MeshChoice
from autoplan.pipeline_choice import PipelineChoice, default_schedule
from autoplan.pipelining.schedules import Schedule
from autoplan.pipelining.stage_hints import stage_map_text
from autoplan.request import Request
from autoplan.units import size

_UNLIMITED = 1 << 62
"""Bytes that no plan needs."""


@dataclass(frozen=True)
class Demand:
    """What a user wrote: a hint, the scheme of one or more mesh axes, the memory limit, or a
    pipeline's stage map or schedule."""

    kind: Literal["hint", "scheme", "memory", "stage_map", "schedule"]
    text: str
    path: str = ""
    """The key of a hint, as errors write it."""

    def __str__(self) -> str:
        return f"hint {self.text}" if self.text.startswith(("'", '"')) else self.text


def demands_of(captured: Captured, request: Request) -> tuple[Demand, ...]:
    """Everything in `request`, and inside forward, that can be given up on its own."""
    found = [_of_hint(pattern, value) for pattern, value in request.hints.items()]
    found += [Demand("hint", pin_origin(pin)) for pin in captured.pins]
    own = _meshes_of_ranks(request)
    for choice in request.meshes if own is None else chain(*own):
        found += [Demand("scheme", _scheme(choice, axis)) for axis in choice.schemes]
    if request.pipeline is not None:
        found += _of_pipeline(request.pipeline, request.setting.microbatches)
    found.append(_of_memory(request))
    return tuple(dict.fromkeys(found))


def only(
    captured: Captured, request: Request, kept: Collection[Demand]
) -> tuple[Captured, Request]:
    """The same model and request without the demands that are not `kept`."""
    return (
        replace(
            captured,
            pins=tuple(p for p in captured.pins if Demand("hint", pin_origin(p)) in kept),
        ),
        replace(
            request,
            hints={p: v for p, v in request.hints.items() if _of_hint(p, v) in kept},
            meshes=request.meshes
            if _meshes_of_ranks(request) is not None
            else tuple(_with_schemes(choice, kept) for choice in request.meshes),
            pipeline=_with_pipeline_demands(request, kept),
            memory_bytes=request.memory_bytes if _of_memory(request) in kept else _UNLIMITED,
        ),
    )


def _meshes_of_ranks(request: Request) -> tuple[tuple[MeshChoice, ...], ...] | None:
    """Where each pipeline rank has meshes of its own, `request.meshes` bind nothing."""
    return None if request.pipeline is None else request.pipeline.meshes


def _with_schemes(choice: MeshChoice, kept: Collection[Demand]) -> MeshChoice:
    dropped = [a for a in choice.schemes if Demand("scheme", _scheme(choice, a)) not in kept]
    return choice.without_schemes(dropped)


def _of_pipeline(pipeline: PipelineChoice, microbatches: int) -> list[Demand]:
    """A stage map; and a schedule where another would run the same stages without being asked."""
    found = []
    if pipeline.stage_map is not None:
        found.append(Demand("stage_map", stage_map_text(pipeline.stage_map)))
    default = default_schedule(pipeline.size, microbatches, pipeline.chunks)
    if default.torch_name != pipeline.order.torch_name and _runs(default, pipeline, microbatches):
        found.append(Demand("schedule", f"schedule={pipeline.schedule!r}"))
    return found


def _runs(schedule: Schedule, pipeline: PipelineChoice, microbatches: int) -> bool:
    try:
        schedule.check(pipeline.size, microbatches)
    except ConfigError:
        return False
    return True


def _with_pipeline_demands(request: Request, kept: Collection[Demand]) -> PipelineChoice | None:
    pipeline, microbatches = request.pipeline, request.setting.microbatches
    if pipeline is None:
        return None
    for each in _of_pipeline(pipeline, microbatches):
        if each in kept:
            continue
        if each.kind == "stage_map":
            pipeline = replace(pipeline, stage_map=None)
        else:
            default = default_schedule(pipeline.size, microbatches, pipeline.chunks)
            pipeline = replace(pipeline, schedule=default.name)
    if pipeline.meshes is not None:
        own = [tuple(_with_schemes(c, kept) for c in choices) for choices in pipeline.meshes]
        pipeline = replace(pipeline, meshes=tuple(own))
    return pipeline


def _scheme(choice: MeshChoice, axis: str) -> str:
    return choice.written.get(axis, f"the scheme {choice.schemes[axis]!r} of axis {axis!r}")


def _of_hint(pattern: str, value: object) -> Demand:
    return Demand("hint", origin_of(pattern, value), repr(pattern))


def _of_memory(request: Request) -> Demand:
    return Demand("memory", f"the memory limit of {size(request.memory_bytes)} a device")
