"""Read a pipeline: how it is cut, and a plan for each of its stages."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoplan.errors import ConfigError, LayoutError
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.pipelining.joined import (
    joined_blocks,
    joined_collectives,
    joined_mesh,
    joined_operations,
    joined_tensors,
)
from autoplan.pipelining.owners import longest_recomputation_s, with_own_modules
from autoplan.pipelining.schedules import Schedule, read_schedule
from autoplan.plan import FORMAT, Pipeline, Plan, StageRow, stage_name
from autoplan.planfiles.patterns import expanded
from autoplan.planfiles.sections import (
    FIGURES,
    asked_of,
    collectives_of,
    fields_of,
    mesh_of,
    plan_of,
)
from autoplan.planfiles.values import WrongError, check_names, convert, short, table, wrong_text
from autoplan.planfiles.write import CONFIG, RECOMPUTATION, REQUEST, SECTIONS, arranged
from autoplan.planfiles.write_pipeline import DERIVED, JOINED

PIPELINE = "pipeline"
"""The section that only a pipeline's file has."""
_TOP = ("format", "model", "request", CONFIG, PIPELINE, "stage", "figures", "end")
_FIX = "number the stages from 0, each once"


def read_pipeline(tables: Mapping[str, Any]) -> Plan:
    """The plan of a file that has a section [pipeline]."""
    check_names(tables, _TOP, "the top")
    asked = asked_of(tables)
    held = table(tables, PIPELINE, "the top")
    check_names(held, ("schedule", "size", "stages", "automatic"), "[pipeline]")
    size = _size(held)
    cut = _cut(held, "stages")
    schedule = _schedule(held, size, len(cut), asked["microbatches"])
    figures = table(tables, "figures", "the top")
    stages = _stages(tables, figures, asked, len(cut))
    _check_meshes(asked, stages, schedule, size)
    pipeline = _pipeline(figures, schedule, size, cut, _cut(held, "automatic"), stages)
    stage_of = dict(zip(pipeline.pieces, pipeline.actual, strict=True))
    names = [name for name in FIGURES if name not in JOINED]
    others = ("decisions", PIPELINE, "stages", "collectives")
    sends = tuple(collectives_of(figures, "[figures]"))
    return Plan(
        format=FORMAT,
        choices={},
        tensors=joined_tensors(with_own_modules(stages, stage_of)),
        operations=joined_operations(stages),
        collectives=joined_collectives(
            stages, arranged(sends, lambda row: row.path, lambda row: row.phase)
        ),
        recomputed=joined_blocks(stages),
        recomputation_s=longest_recomputation_s(stages, [row.rank for row in pipeline.stages]),
        pipeline=pipeline,
        stages=stages,
        **asked,
        **fields_of(figures, names, "[figures]", others),
    )


def _size(held: Mapping[str, Any]) -> int:
    size = held.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        problem = "'size' is missing" if size is None else f"the size is {short(size)}"
        raise WrongError("[pipeline]", problem, "give the number of pipeline ranks, 2 or more")
    return size


def _schedule(held: Mapping[str, Any], size: int, num_stages: int, microbatches: int) -> Schedule:
    """The schedule of that many stages on `size` ranks, which can run the microbatches."""
    name = held.get("schedule")
    if not isinstance(name, str):
        problem = "is missing" if name is None else f"is no text, but {short(name)}"
        raise WrongError("[pipeline]", f"'schedule' {problem}")
    if num_stages % size:
        problem = f"{num_stages} stages are not the same number on each of {size} pipeline ranks"
        raise WrongError("[pipeline.stages]", problem, "correct the stages or the size")
    try:
        schedule = read_schedule(name, num_stages // size)
        schedule.check(size, microbatches)
    except ConfigError as error:
        raise wrong_text("[pipeline] schedule", error) from error
    return schedule


def _cut(held: Mapping[str, Any], name: str) -> list[list[str]]:
    """The parts of each stage, in order."""
    place = f"[pipeline.{name}]"
    found = table(held, name, "[pipeline]")
    _check_numbered(found, len(found), place)
    seen: dict[str, int] = {}
    cut: list[list[str]] = []
    for stage in range(len(found)):
        where = f"{place} {stage}"
        parts = []
        for pattern in convert(found[str(stage)], list[str], where):
            try:
                parts += expanded(pattern)
            except ValueError as error:
                raise wrong_text(where, error) from error
        if not parts:
            raise WrongError(where, "the stage has no part", "give it one of its neighbours' parts")
        for part in parts:
            if part in seen:
                problem = f"{part!r} stands there twice, also on stage {seen[part]}"
                raise WrongError(where, problem, "take it out of one")
            seen[part] = stage
        cut.append(parts)
    return cut


def _check_numbered(held: Mapping[str, Any], count: int, place: str) -> None:
    """Keys are the numbers of all stages."""
    known = [str(stage) for stage in range(count)]
    for key in held:
        if key not in known:
            raise WrongError(place, f"{short(key)} is none of the stages 0 to {count - 1}", _FIX)
    for key in known:
        if key not in held:
            raise WrongError(place, f"stage {key} is missing", _FIX)


def _stages(
    tables: Mapping[str, Any], figures: Mapping[str, Any], asked: Mapping[str, Any], count: int
) -> tuple[Plan, ...]:
    """A plan of every stage, which was asked what the whole plan was."""
    held = table(tables, "stage", "the top")
    rows = table(figures, "stages", "[figures]")
    _check_numbered(held, count, "[stage]")
    _check_numbered(rows, count, "[figures.stages]")
    stages = []
    for number in map(str, range(count)):
        place = f"[stage.{number}]"
        decided = table(held, number, "[stage]")
        check_names(decided, ("mesh", "wires", *SECTIONS, RECOMPUTATION), place)
        axes, sizes = mesh_of(decided, place)
        own = {name: asked[name] for name in REQUEST if name in asked}
        own |= {"model": stage_name(int(number), asked["model"]), "axes": axes, "sizes": sizes}
        own["wires"] = _wires(decided, len(axes), number)
        own_rows = table(rows, number, "[figures.stages]")
        places = place, f"[figures.stages.{number}]"
        stages.append(plan_of(own, decided, own_rows, f"stage.{number}.", places))
    return tuple(stages)


def _wires(decided: Mapping[str, Any], ndim: int, number: str) -> dict[str, str]:
    """Layouts of what a stage receives and sends; the first and the last may share nothing."""
    place = f"[stage.{number}.wires]"
    if "wires" not in decided:
        return {}
    wires = {}
    for name, text in table(decided, "wires", f"[stage.{number}]").items():
        if not isinstance(text, str):
            raise WrongError(f"{place} {name!r}", f"expected a text, got {short(text)}")
        try:
            layout = Layout.parse(text)
        except LayoutError as error:
            raise wrong_text(f"{place} {name!r}", error) from error
        if len(layout) != ndim:
            problem = f"the layout {text!r} has {len(layout)} entries, the mesh {ndim}"
            raise WrongError(f"{place} {name!r}", problem, "write one for each axis")
        wires[name] = str(layout)
    return wires


def _check_meshes(
    asked: Mapping[str, Any], stages: Sequence[Plan], schedule: Schedule, size: int
) -> None:
    """Every stage has the same number of devices, those of one rank the same mesh."""
    meshes = []
    for rank in range(size):
        held = schedule.stages_of(rank, size)
        meshes.append(stages[held[0]].mesh)
        for stage in held:
            if stages[stage].mesh != meshes[-1]:
                problem = f"it is {stages[stage].mesh}, and stage {held[0]} of the same devices "
                raise WrongError(
                    f"[stage.{stage}] mesh", f"{problem}has {meshes[-1]}", "give both the same"
                )
    whole = Mesh(asked["axes"], asked["sizes"])
    for rank, mesh in enumerate(meshes):
        if mesh.num_devices * size != math.prod(whole.sizes):
            raise WrongError(
                f"[stage.{schedule.stages_of(rank, size)[0]}] mesh",
                f"{mesh} on each of {size} pipeline ranks are {mesh.num_devices * size} devices, "
                f"and [request] has {math.prod(whole.sizes)}",
                "make the numbers agree",
            )
    try:
        expected = joined_mesh(size, meshes)
    except ConfigError as error:
        raise wrong_text("[stage.0] mesh", error) from error
    if whole != expected:
        problem = f"it is {whole}, and the pipeline with its stages is {expected}"
        raise WrongError("[request] mesh", problem, "make them agree")


def _pipeline(
    figures: Mapping[str, Any],
    schedule: Schedule,
    size: int,
    cut: Sequence[Sequence[str]],
    automatic: Sequence[Sequence[str]],
    stages: Sequence[Plan],
) -> Pipeline:
    """The cut with its figures."""
    place = "[figures.pipeline]"
    held = table(figures, PIPELINE, "[figures]")
    check_names(held, ("bubble", "bound", "stages"), place)
    rows = held.get("stages")
    if not isinstance(rows, list) or len(rows) != len(cut):
        raise WrongError(place, f"'stages' is no list of {len(cut)} tables, but {short(rows)}")
    pieces = tuple(part for parts in cut for part in parts)
    actual = {part: stage for stage, parts in enumerate(cut) for part in parts}
    own = {part: stage for stage, parts in enumerate(automatic) for part in parts}
    if len(automatic) != len(cut):
        problem = f"it has {len(automatic)} stages, and [pipeline.stages] {len(cut)}"
        raise WrongError("[pipeline.automatic]", problem, _FIX)
    for part in own:
        if part not in actual:
            near = difflib.get_close_matches(part, pieces, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise WrongError(
                "[pipeline.automatic]",
                f"{part!r} is on none of [pipeline.stages]{meant}",
                "name the same parts in both",
            )
    made = []
    k = stages[0].mesh.num_devices
    for stage, each in enumerate(rows):
        where = f"{place} stages[{stage}]"
        if not isinstance(each, dict):
            raise WrongError(where, f"expected a table, got {short(each)}")
        check_names(each, [n for n in StageRow.__struct_fields__ if n not in DERIVED], where)
        rank = schedule.rank_of(stage, size)
        ranks = list(range(rank * k, (rank + 1) * k))
        derived = {"rank": rank, "ranks": ranks, "pieces": list(cut[stage])}
        made.append(convert({**each, **derived}, StageRow, where))
    numbers = {
        name: convert(held[name], float, f"{place} {name}") for name in held if name != "stages"
    }
    if "bubble" not in numbers:
        raise WrongError(place, "'bubble' is missing")
    return Pipeline(
        schedule=schedule.name,
        size=size,
        pieces=pieces,
        actual=tuple(actual[part] for part in pieces),
        automatic=tuple(own.get(part, actual[part]) for part in pieces),
        stages=tuple(made),
        **numbers,
    )
