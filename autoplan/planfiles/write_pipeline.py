"""Write a pipeline: how it is cut, then the decisions of every stage, then all figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autoplan.pipelining.joined import sends_of
from autoplan.plan import Pipeline, Plan
from autoplan.planfiles.patterns import shortened
from autoplan.planfiles.write import (
    FIGURES,
    collectives,
    decisions,
    figures,
    listed,
    mesh_line,
    plain,
    request,
    toml,
    toml_key,
)

DERIVED = ("rank", "ranks", "pieces")
"""Of a stage's row: what the schedule and the cut say."""
JOINED = ("recomputation_s",)
"""Figures of a pipeline that its stages make."""

_CUT = """\

# A pipeline: its stages are cut from the model's parts, which run in this order. To move a boundary
# take parts from the end of a stage to the start of the next, or back; they are named by path."""
_OWN = """\

# Every stage is a plan on its own devices: as above, with the layouts of what it receives and sends
# (by graph node; both stages say the same)."""


def pipeline_lines(plan: Plan) -> Iterator[str]:
    """All of the file but its first and last lines."""
    pipeline = plan.pipeline
    assert pipeline is not None
    yield from request(plan)
    yield from (_CUT, "[pipeline]", f"schedule = {toml(pipeline.schedule)}")
    yield f"size = {pipeline.size}"
    yield from ("", "[pipeline.stages]  # stage = its parts", *_cut(pipeline, pipeline.actual))
    automatic = "[pipeline.automatic]  # as the planner takes them by itself, without stage hints"
    yield from ("", automatic, *_cut(pipeline, pipeline.automatic))
    yield _OWN
    for number, stage in enumerate(plan.stages):
        yield from ("", f"[stage.{number}]", mesh_line(stage))
        if stage.wires:
            yield from ("", f"[stage.{number}.wires]")
            yield from (f"{toml_key(name)} = {toml(text)}" for name, text in stage.wires.items())
        yield from decisions(stage, f"stage.{number}.")
    yield FIGURES
    yield from figures(plan, ("figures",), JOINED)
    yield from ("", "[figures.pipeline]", f"bubble = {toml(pipeline.bubble)}")
    if pipeline.bound:
        yield f"bound = {toml(pipeline.bound)}"
    yield f"stages = {listed([plain(row, but=DERIVED) for row in pipeline.stages])}"
    yield from collectives(sends_of(plan), ("figures",))
    for number, stage in enumerate(plan.stages):
        yield ""
        yield from figures(stage, ("figures", "stages", str(number)))


def _cut(pipeline: Pipeline, stage_of: Sequence[int]) -> Iterator[str]:
    """The parts of each stage in order, repeated blocks as one."""
    for stage in range(len(pipeline.stages)):
        at = zip(pipeline.pieces, stage_of, strict=True)
        parts = shortened([name for name, held in at if held == stage])
        yield f"{stage} = {toml(parts)}"
