"""Shapes: every way to use the devices that the user leaves open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from autoplan.errors import ConfigError
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice, mesh_choices
from autoplan.parallel.parts import divisors
from autoplan.pipeline_choice import PipelineChoice, pipeline_choice

if TYPE_CHECKING:
    from autoplan.request import Request

_MOST_MICROBATCHES = 12
"""Counts of microbatches that are priced; more divisors of a batch are thinned out."""
_CHECKED = 4
"""Pipelines that are looked at before a model is there."""
_ALL_FACTORS_UP_TO = 16
"""Devices up to which every mesh of three axes is a shape."""


@dataclass(frozen=True)
class Shape:
    """A mesh for the devices of each pipeline rank, a pipeline or none, and microbatches a step."""

    mesh: MeshChoice
    microbatches: int
    pipeline: PipelineChoice | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every rank has one stage, and runs each backward as a whole."""
        return self.pipeline is None or self.pipeline.order.is_plain

    @property
    def num_stages(self) -> int:
        """Of its pipeline; 1 without one."""
        return 1 if self.pipeline is None else self.pipeline.num_stages

    @property
    def size(self) -> int:
        """Pipeline ranks."""
        return 1 if self.pipeline is None else self.pipeline.size

    def __str__(self) -> str:
        mesh = self.mesh.mesh
        axes = [f"{a} {n}" for a, n in zip(mesh.axes, mesh.sizes, strict=True)]
        if self.pipeline is not None:
            axes.insert(0, f"pipeline {self.size} ({_schedule_text(self.pipeline)})")
        count = self.microbatches
        return f"{' x '.join(axes) or 'one device'}, {count} microbatch{'es' * (count != 1)}"


@dataclass(frozen=True)
class Space:
    """What is open: sizes of a pipeline, its schedule, meshes, microbatches.

    `pipelines`: sizes in question. `microbatches`: None leaves their number open.
    `names_schedule`: whether the user says how a pipeline is run.
    """

    devices: int
    node_size: int
    parallel: Mapping[str, Any] | None
    preset: str | None
    pipelines: tuple[int, ...]
    microbatches: int | None
    names_schedule: bool = False

    def shapes(self, rows: int | None, num_pieces: int) -> tuple[Shape, ...]:
        """All of them, each pipeline under every schedule in question.

        rows: of the batch, which microbatches divide; None where the arguments have none.
        """
        found = []
        failure: ConfigError | None = None
        for size in self.pipelines:
            if size > max(1, num_pieces):
                continue
            try:
                meshes = self.meshes(size)
            except ConfigError as error:
                failure = failure or error
                continue
            for count in self._counts(rows, size):
                try:
                    pipeline = self.pipeline(size, count)
                except ConfigError as error:
                    failure = failure or error
                    continue
                for mesh in meshes:
                    shape = Shape(mesh, count, pipeline)
                    all_of_it = (shape, *self._other_schedules(shape))
                    found += [each for each in all_of_it if each.num_stages <= max(1, num_pieces)]
        if not found:
            raise failure or ConfigError(
                f"no pipeline of {' or '.join(map(str, self.pipelines))} ranks fits a model of "
                f"{num_pieces} parts; ask for a smaller one."
            )
        return tuple(found)

    def check(self) -> None:
        """Raise ConfigError where no batch and no model leave any shape."""
        few = replace(self, pipelines=self.pipelines[:_CHECKED])
        few.shapes(math.lcm(*few.pipelines, self.microbatches or 1), max(few.pipelines))

    def meshes(self, size: int) -> tuple[MeshChoice, ...]:
        """What the devices of one rank of a pipeline of `size` may form."""
        each = self.devices // size
        if self.parallel is None and self.preset is None:
            return tuple(MeshChoice(mesh) for mesh in free_meshes(each, self.node_size))
        parallel = dict(self.parallel or {})
        parallel.pop("pipeline", None)
        if not parallel and self.preset is None:
            return mesh_choices({}, None, each, self.node_size)
        return mesh_choices(parallel or None, self.preset, each, self.node_size)

    def pipeline(
        self, size: int, microbatches: int, schedule: str | None = None, chunks: int | None = None
    ) -> PipelineChoice | None:
        """A pipeline of `size` ranks; ConfigError where its schedule cannot run so many."""
        given = (self.parallel or {}).get("pipeline")
        options = dict(given) if isinstance(given, Mapping) else {}
        options["size"] = size
        if schedule is not None:
            options |= {"schedule": schedule, "chunks": chunks}
        parallel = {**(self.parallel or {}), "pipeline": options}
        return pipeline_choice(parallel, self.preset, self.devices, microbatches, self.node_size)

    def _other_schedules(self, shape: Shape) -> Iterator[Shape]:
        """The same pipeline under the other schedules, which fill its bubble and hold more."""
        if shape.pipeline is None or self.names_schedule or shape.microbatches == 1:
            return
        for name, chunks in _SCHEDULES:
            try:
                pipeline = self.pipeline(shape.size, shape.microbatches, name, chunks)
            except ConfigError:
                continue
            yield replace(shape, pipeline=pipeline)

    def _counts(self, rows: int | None, size: int) -> list[int]:
        """Numbers of microbatches in question."""
        if self.microbatches is not None:
            return [self.microbatches]
        counts = divisors(rows or 1)
        if size > 1:  # one microbatch runs stage after stage, which copies do without sending
            counts = [n for n in counts if n >= size] or counts[-1:]
        while len(counts) > _MOST_MICROBATCHES:
            counts = counts[:2] + counts[2:-1:2] + counts[-1:]
        return counts


_SCHEDULES = (
    ("interleaved-1f1b", 2),
    ("interleaved-1f1b", 4),
    ("zero-bubble", 2),
    ("zbv", None),
)
"""Beside 1F1B. GPipe takes as long as 1F1B and holds more; DualPipeV fills the bubble as ZBV does
and overlaps what is not modelled."""


def free_meshes(devices: int, node_size: int) -> list[Mesh]:
    """One axis, two, and three: every factorisation of few devices.

    Of many, those whose inner axes have at most two nodes' devices: an axis that spans nodes anyway
    gains nothing by being inside another.
    """
    if devices == 1:
        return [Mesh.of(devices=1)]
    meshes = [Mesh.of(devices=devices)]
    most = devices if devices <= _ALL_FACTORS_UP_TO else max(_ALL_FACTORS_UP_TO, 2 * node_size)
    factors = [n for n in range(2, min(most, devices // 2) + 1) if devices % n == 0]
    for inner in factors:
        meshes.append(Mesh.of(outer=devices // inner, inner=inner))
    for middle, inner in product(factors, factors):
        if middle * inner <= most and devices % (middle * inner) == 0:
            outer = devices // (middle * inner)
            if outer > 1:
                meshes.append(Mesh.of(outer=outer, middle=middle, inner=inner))
    return meshes


def _schedule_text(pipeline: PipelineChoice) -> str:
    return pipeline.schedule + (f", {pipeline.chunks} chunks" if pipeline.chunks > 1 else "")


def request_at(request: Request, shape: Shape) -> Request:
    """The request of one shape, with nothing open."""
    return replace(
        request,
        setting=replace(request.setting, microbatches=shape.microbatches),
        pipeline=shape.pipeline,
        meshes=(shape.mesh,),
        space=None,
    )
