"""The `pipeline` entry of the `parallel` argument: its size, schedule, stage map and own meshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoplan.errors import ConfigError, LayoutError
from autoplan.hints.text import stage_number
from autoplan.parallel import MeshChoice, mesh_choices, pipeline_size, positive
from autoplan.pipelining.schedules import SCHEDULES, Schedule, read_schedule


@dataclass(frozen=True)
class PipelineChoice:
    """A pipeline of `size` ranks, each a group of devices that holds `chunks` stages.

    `schedule`: its name in `SCHEDULES`. `stage_map`: stages from 0, one for every block of the
    model, whose number is not known here; None leaves the cut to the planner. `meshes`: what each
    pipeline rank's devices may form where the user said so for each, [size]; else None.
    """

    size: int
    schedule: str
    chunks: int
    stage_map: tuple[int, ...] | None = None
    meshes: tuple[tuple[MeshChoice, ...], ...] | None = None
    held: Mapping[str, int] = field(default_factory=dict)
    """The stage of each module, by path, when another form of arguments is planned."""
    held_pieces: Mapping[str, int] = field(default_factory=dict)
    """Then the stage of each piece of the first form, by name."""
    homes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Then the stages on whose ranks each parameter and buffer is."""

    @property
    def num_stages(self) -> int:
        return self.size * self.chunks

    @property
    def order(self) -> Schedule:
        """The schedule itself."""
        return read_schedule(self.schedule, self.chunks)


def pipeline_choice(
    parallel: Mapping[str, Any] | None,
    preset: str | None,
    devices: int,
    microbatches: int,
    node_size: int | None = None,
) -> PipelineChoice | None:
    """The pipeline that `parallel` asks for; None if it has none, or one of size 1.

    `dict(pipeline=4)`, or `dict(pipeline=dict(size=4, schedule="1f1b", chunks=1, stage_map=[...],
    stages=[...]))`. `stages` gives each pipeline rank a `parallel` dict of its own, None for the
    axes beside `pipeline`. Raises ConfigError with the fix for anything that cannot run; what
    depends on the model is checked when it is planned.
    """
    if parallel is None or parallel.get("pipeline") is None:
        return None
    given = parallel["pipeline"]
    options: Mapping[str, Any] = given if isinstance(given, Mapping) else {"size": given}
    size = pipeline_size(parallel)
    if options.get("size") is None and any(each is not None for each in options.values()):
        raise ConfigError(
            f"pipeline={dict(options)!r} says no size; add the number of pipeline ranks, such as "
            "size=2."
        )
    schedule = _schedule(options, size, microbatches)
    if size > 1 or schedule.chunks > 1:
        schedule.check(size, microbatches)
    choice = PipelineChoice(
        size,
        schedule.name,
        schedule.chunks,
        _stage_map(options.get("stage_map"), size, schedule.chunks),
        _meshes(options.get("stages"), parallel, preset, devices, node_size),
    )
    return None if size == 1 else choice


def default_schedule(size: int, microbatches: int, chunks: int = 1) -> Schedule:
    """The schedule of a pipeline for which none is named.

    One microbatch goes stage after stage; 1F1B holds the fewest activations, and needs as many
    microbatches as ranks, below which GPipe runs.
    """
    if chunks > 1:
        return read_schedule("interleaved-1f1b", chunks)
    if microbatches == 1:
        return SCHEDULES["naive"]
    return SCHEDULES["1f1b" if microbatches >= size else "gpipe"]


def _schedule(options: Mapping[str, Any], size: int, microbatches: int) -> Schedule:
    name, chunks = options.get("schedule"), options.get("chunks")
    if chunks is not None:
        positive(chunks, "the number of chunks, stages per pipeline rank,")
    if chunks is not None and chunks > 1 and size == 1:
        raise ConfigError(
            f"chunks={chunks} puts {chunks} stages on each pipeline rank, and pipeline size 1 has "
            "no other rank to take turns with; leave chunks out, or give it a larger size."
        )
    if name is None:
        return default_schedule(size, microbatches, chunks or 1)
    try:
        return read_schedule(name, chunks)
    except ConfigError as error:
        if chunks is None:
            raise
        raise ConfigError(f"pipeline schedule={name!r}, chunks={chunks}: {error}") from error


def _stage_map(value: Any, size: int, chunks: int) -> tuple[int, ...] | None:
    """Stages from 0 that go up one by one, from the first to the last."""
    if value is None:
        return None
    numbers = not isinstance(value, (str, bytes)) and isinstance(value, Sequence)
    if not numbers or any(isinstance(s, bool) or not isinstance(s, int) for s in value):
        raise ConfigError(
            "stage_map is a list of stage numbers, one for every block of the model, such as "
            f"[0]*6 + [1]*6, got {value!r}."
        )
    stages = size * chunks
    try:
        found = tuple(stage_number(stage, stages) for stage in value)
    except LayoutError as error:
        raise ConfigError(f"stage_map (pipeline {size} x chunks {chunks}): {error}") from error
    for at, stage in enumerate(found):
        before = found[at - 1] if at else -1
        if stage not in ((0,) if not at else (before, before + 1)):
            raise ConfigError(
                f"stage_map has stage {stage} at entry {at}"
                + (f", after stage {before}" if at else "")
                + ": blocks go to stages in the order in which the model runs them, from stage 0, "
                "none left out."
            )
    if not found or found[-1] != stages - 1:
        ends = f"ends with stage {found[-1]}" if found else "is empty"
        raise ConfigError(
            f"stage_map {ends}, and pipeline {size} x chunks {chunks} has {stages} stages; place "
            f"blocks on stages up to {stages - 1}, or give the pipeline fewer stages."
        )
    return found


def _meshes(
    value: Any,
    parallel: Mapping[str, Any],
    preset: str | None,
    devices: int,
    node_size: int | None,
) -> tuple[tuple[MeshChoice, ...], ...] | None:
    """The meshes of each pipeline rank where `stages` is given."""
    common = mesh_choices(parallel, preset, devices, node_size)
    if value is None:
        return None
    size = pipeline_size(parallel)
    if size == 1:
        raise ConfigError(
            "stages gives every pipeline rank its own axes, and pipeline size 1 is one rank; write "
            "its axes beside pipeline, or give it a larger size."
        )
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ConfigError(
            "stages is a list with a parallel dict for each pipeline rank, such as [dict(data=2), "
            f"dict(tensor=dict(size=2, mode='1d'))], got {value!r}."
        )
    if len(value) != size:
        raise ConfigError(
            f"stages has {len(value)} of the {size} entries that pipeline size {size} needs: one "
            "for each pipeline rank, whose stages all share it, or None for the axes beside "
            "pipeline."
        )
    axes = ("data", "tensor", "sequence", "expert", "mesh")
    beside = [key for key in axes if parallel.get(key) is not None]
    if beside and None not in value:
        raise ConfigError(
            f"stages gives every pipeline rank its own axes, so that {' and '.join(beside)} beside "
            "pipeline would hold nowhere; leave that out, or give None in stages where it holds."
        )
    return tuple(
        common if each is None else _own(each, rank, preset, devices // size, node_size)
        for rank, each in enumerate(value)
    )


def _own(
    value: Any, rank: int, preset: str | None, devices: int, node_size: int | None
) -> tuple[MeshChoice, ...]:
    """The meshes of one pipeline rank, its demands named apart from those of others."""
    where = f"stages[{rank}]={value!r}, for {devices} device{'s' * (devices > 1)}"
    if isinstance(value, Mapping) and value.get("pipeline") is not None:
        raise ConfigError(f"{where}: a pipeline rank has no pipeline of its own; leave it out.")
    try:
        choices = mesh_choices(value, preset, devices, node_size)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return tuple(
        replace(
            choice,
            written={axis: f"{text} of stages[{rank}]" for axis, text in choice.written.items()},
        )
        for choice in choices
    )
