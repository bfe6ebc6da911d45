"""The predicted step as spans: the pieces of the cost model, or the events of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from autoplan.errors import ConfigError
from autoplan.memory.stage_memory import stage_memory
from autoplan.pipelining.events import Run, Timed
from autoplan.pipelining.joined import run_of, schedule_of, sends_of
from autoplan.plan import Pipeline, Plan
from autoplan.trace.memory import bytes_by_event, bytes_by_moment
from autoplan.trace.pieces import Moment, Piece, Pieces, pieces_of
from autoplan.trace.spans import Group, Level, Span, rank_name
from autoplan.why.origin import known_origin
from autoplan.why.question import Question

PREDICTED = "predicted"
SHOWN_MICROBATCHES = 8
"""Microbatches that are shown op by op; those between the first ones and the last are one span."""
_MOST_SPANS = 100_000
"""Spans beyond which equal ranks share tracks, and then events of pipelines hold no ops."""
_MOST_EVENTS = 50_000
"""Microbatches times stages up to which a pipeline is simulated."""
ADDITIVE = (
    "the cost model adds up ops and collectives, and nothing overlaps: while a rank communicates, "
    "its compute track waits"
)


def predicted(plan: Plan) -> Group:
    """The step of `plan` as priced: it ends after `plan.step_time_s`.

    Each rank has a track of what it computes and one of what it communicates; equal ranks share
    them where there would be too many spans. Raises ConfigError for a plan that was read from a
    file and not loaded on its model, unless it is a pipeline, whose events alone are then shown,
    and for a pipeline of more microbatches than can be simulated.
    """
    return _of_pipeline(plan, plan.pipeline) if plan.pipeline else _of_model(plan)


def _asked(plan: Plan) -> tuple[Question, tuple[int, ...]]:
    question, answer = known_origin(plan._origin, "save_trace(path)").answer(plan)
    return question, answer.choices


# -- without a pipeline ------------------------------------------------------------------------


def _of_model(plan: Plan) -> Group:
    question, choices = _asked(plan)
    pieces = pieces_of(question, choices)
    alive = bytes_by_moment(question.timeline, choices)
    moments = list(_in_order(pieces, plan.microbatches, question, alive))
    spans, levels, clock = [], [], 0.0
    for moment, name, kinds in moments:
        if kinds is not None:
            levels.append(Level("", clock, kinds))
        for piece in moment.pieces:
            spans.append(_span(piece, clock, moment.doing, name))
            clock += piece.time_s
    levels = _without_hidden(levels)
    mesh = plan.mesh
    ranks = [dict(zip(mesh.axes, mesh.coordinates(r), strict=True)) for r in range(_count(plan))]
    shared = len(spans) * len(ranks) > _MOST_SPANS
    names = [_all_ranks(0, len(ranks))] if shared else [rank_name(*e) for e in enumerate(ranks)]
    notes: dict[str, Any] = {"overlap": ADDITIVE}
    if shared:
        notes["ranks"] = "all ranks do the same, and share their tracks"
    if plan.microbatches > SHOWN_MICROBATCHES:
        notes["microbatches"] = (
            f"{SHOWN_MICROBATCHES} of {plan.microbatches} are shown op by op, the others as one "
            "span"
        )
    return Group(
        PREDICTED,
        tuple(f"{name} {track}" for name in names for track in ("compute", "communication")),
        tuple(_on(span, name) for name in names for span in spans),
        tuple(replace(level, counter=f"{name} bytes alive") for name in names for level in levels),
        notes,
    )


def _count(plan: Plan) -> int:
    return plan.mesh.num_devices


def _in_order(
    pieces: Pieces, microbatches: int, question: Question, alive: Sequence[Mapping[str, float]]
) -> Iterator[tuple[Moment, str, Mapping[str, float] | None]]:
    """Every moment, whose microbatch it is, and what is alive then."""
    last, rounds = question.timeline.schedule.last, question.timeline.rounds
    for moment in pieces.before:
        yield moment, "", alive[0]
    body = (*pieces.forward, *pieces.backward) if question.request.setting.training else ()
    body = body or pieces.forward
    skipped = range(0)
    if microbatches > SHOWN_MICROBATCHES:
        skipped = range(SHOWN_MICROBATCHES - 1, microbatches - 1)
    for number in range(microbatches):
        if number in skipped:
            if number == skipped[0]:
                time_s = len(skipped) * sum(moment.time_s for moment in body)
                name = f"microbatches {skipped[0]} to {skipped[-1]}, each as the one before"
                piece = Piece(name, "compute", time_s, {"microbatches": len(skipped)})
                yield Moment(0, "microbatches", (piece,)), "", None
            continue
        offset = last * min(number, rounds - 1)
        for moment in body:
            at = offset + moment.number
            yield moment, str(number), alive[at] if at < len(alive) else None
    for moment in pieces.after:
        at = rounds * last + moment.number - last
        yield moment, "", alive[at] if at < len(alive) else None


def _without_hidden(levels: Iterable[Level]) -> list[Level]:
    """One level a moment in time: the highest of those that begin at once."""
    kept: list[Level] = []
    for level in levels:
        if kept and kept[-1].start_s == level.start_s:
            if level.total > kept[-1].total:
                kept[-1] = level
        else:
            kept.append(level)
    return kept


def _span(piece: Piece, start_s: float, doing: str, microbatch: str) -> Span:
    args = {**piece.args, "microbatch": microbatch} if microbatch else piece.args
    return Span(piece.track, piece.name, doing, start_s, piece.time_s, args)


def _on(span: Span, name: str) -> Span:
    return replace(span, track=f"{name} {span.track}")


def _all_ranks(first: int, last: int) -> str:
    return f"ranks {first} to {last - 1}"


# -- pipelines ---------------------------------------------------------------------------------


def _of_pipeline(plan: Plan, pipeline: Pipeline) -> Group:
    if plan.microbatches * len(plan.stages) > _MOST_EVENTS:
        raise ConfigError(
            f"a trace shows every microbatch on every stage, and {plan.microbatches} on "
            f"{len(plan.stages)} stages are too many; plan with fewer microbatches to look at it."
        )
    run = run_of(plan)
    known = [_known(stage) for stage in plan.stages]
    ranks_each = len(pipeline.stages[0].ranks)
    details = sum(len(p.forward) + len(p.backward) for p in known if p is not None)
    shared = details * min(plan.microbatches, SHOWN_MICROBATCHES) * ranks_each > _MOST_SPANS
    levels = _levels(plan, pipeline, run)
    tracks: list[str] = []
    spans: list[Span] = []
    counted: list[Level] = []
    for rank in range(pipeline.size):
        own = [*_computed(plan, pipeline, run, rank, known), *_sent(plan, pipeline, run, rank)]
        lanes = dict.fromkeys(("compute", "communication", *(span.track for span in own)))
        for name in _names(plan, pipeline, rank, ranks_each, shared):
            tracks += (f"{name} {lane}" for lane in lanes)
            spans += (_on(span, name) for span in own)
            counted += (replace(each, counter=f"{name} bytes alive") for each in levels[rank])
    notes: dict[str, Any] = {"overlap": ADDITIVE, "schedule": pipeline.schedule}
    notes["idle"] = f"{run.bubble_fraction:.1%} of all ranks' time"
    if plan.microbatches > SHOWN_MICROBATCHES:
        notes["microbatches"] = f"the ops of the first {SHOWN_MICROBATCHES} are shown in events"
    if any(each is None for each in known):
        notes["ops"] = "unknown, as is memory: the plan was not loaded on its model"
    return Group(PREDICTED, tuple(tracks), tuple(spans), tuple(counted), notes)


def _known(stage: Plan) -> Pieces | None:
    if stage._origin is None:
        return None
    return pieces_of(*_asked(stage), gathers_once=True)


def _names(
    plan: Plan, pipeline: Pipeline, rank: int, ranks_each: int, shared: bool
) -> Iterator[str]:
    """Of the tracks of a pipeline rank's devices."""
    stages = [stage for row, stage in _rows(plan, pipeline) if row.rank == rank]
    mesh, first = stages[0].mesh, rank * ranks_each
    if shared:
        yield f"{_all_ranks(first, first + ranks_each)} (pipeline {rank})"
        return
    for device in range(ranks_each):
        own = dict(zip(mesh.axes, mesh.coordinates(device), strict=True))
        yield rank_name(first + device, {"pipeline": rank, **own})


def _rows(plan: Plan, pipeline: Pipeline) -> Iterator[tuple[Any, Plan]]:
    return zip(pipeline.stages, plan.stages, strict=True)


def _computed(
    plan: Plan, pipeline: Pipeline, run: Run, rank: int, known: Sequence[Pieces | None]
) -> Iterator[Span]:
    """Events with their ops inside, what comes once, and the bubble between."""
    clock = run.before_s[rank]
    for timed in run.events[rank]:
        yield from _bubble(clock, timed.start_s)
        yield _event(timed)
        clock = timed.end_s
        pieces = known[timed.event.stage]
        if pieces is not None and timed.event.microbatch < SHOWN_MICROBATCHES:
            yield from _inside(timed, pieces)
    end = clock
    for number, row in enumerate(pipeline.stages):
        if row.rank != rank:
            continue
        if row.once_s:
            args = {"stage": number, "what": "gathering, reducing gradients, the optimizer"}
            yield Span("compute", f"once a step, stage {number}", "once", end, row.once_s, args)
        found = known[number]
        at = end
        if found is not None:
            moments = [*found.before, *found.after]
            for doing, piece in ((m.doing, piece) for m in moments for piece in m.pieces):
                yield _span(piece, at, doing, "")
                at += piece.time_s
        end += row.once_s
    yield from _bubble(end, run.makespan_s)


def _bubble(start_s: float, end_s: float) -> Iterator[Span]:
    if end_s - start_s > 1e-12:
        yield Span("compute", "bubble", "bubble", start_s, end_s - start_s)


def _event(timed: Timed) -> Span:
    event = timed.event
    kind = event.kind.replace("_", " of ")
    args = {"stage": event.stage, "microbatch": event.microbatch}
    name = f"{kind} {event.microbatch}, stage {event.stage}"
    return Span("compute", name, event.kind, timed.start_s, timed.end_s - timed.start_s, args)


def _inside(timed: Timed, pieces: Pieces) -> Iterator[Span]:
    """The ops of an event; of halves of a backward none, since they are not priced by op."""
    event = timed.event
    halves = event.kind in ("backward_input", "backward_weight")
    moments = pieces.forward if event.kind == "forward" else pieces.backward
    clock = timed.start_s
    for moment in () if halves else moments:
        for piece in moment.pieces:
            yield _span(piece, clock, moment.doing, str(event.microbatch))
            clock += piece.time_s


def _sent(plan: Plan, pipeline: Pipeline, run: Run, rank: int) -> list[Span]:
    """What a rank sends, from the end of the event that made it, in as many lanes as overlap."""
    sizes = {(row.path, row.direction): row.bytes for row in sends_of(plan)}
    found: list[Span] = []
    for timed in run.events[rank]:
        event, ahead = timed.event, timed.event.kind == "forward"
        other = event.stage + 1 if ahead else event.stage - 1
        if event.kind == "backward_weight" or not 0 <= other < len(pipeline.stages):
            continue
        row = pipeline.stages[event.stage if ahead else other]
        time_s = row.forward_transfer_s if ahead else row.backward_transfer_s
        if not time_s or pipeline.stages[other].rank == rank:
            continue
        what = "values" if ahead else "gradients"
        args = {
            "microbatch": event.microbatch,
            "bytes": sizes.get((row.pieces[-1], "forward" if ahead else "backward"), 0),
            "to rank": pipeline.stages[other].rank,
        }
        name = f"send {what} of {event.microbatch} to stage {other}"
        found.append(Span("sends", name, "send", timed.end_s, time_s, args))
    return _in_lanes(found)


def _in_lanes(spans: Iterable[Span]) -> list[Span]:
    """Spans that overlap on tracks beside each other."""
    ends: list[float] = []
    placed = []
    for span in sorted(spans, key=lambda each: each.start_s):
        free = (lane for lane, end in enumerate(ends) if end <= span.start_s + 1e-15)
        lane = next(free, len(ends))
        ends[lane : lane + 1] = [span.end_s]
        placed.append(replace(span, track=f"sends {lane + 1}" if lane else "sends"))
    return placed


def _levels(plan: Plan, pipeline: Pipeline, run: Run) -> list[list[Level]]:
    """Bytes alive on each pipeline rank: what an event needs at its worst, from its start on."""
    origins = [stage._origin for stage in plan.stages]
    if plan._origin is None or any(origin is None for origin in origins):
        return [[] for _ in range(pipeline.size)]
    asked = [_asked(stage) for stage in plan.stages]
    held = [
        stage_memory(question.annotated, choices, question.pricer, question.recomputed)
        for question, choices in asked
    ]
    given = sum(each.meta.num_bytes for each in plan._origin.captured.inputs_of("input"))
    schedule = schedule_of(pipeline)
    result = []
    for rank, events in enumerate(run.events):
        mine = {stage: held[stage] for stage in schedule.stages_of(rank, pipeline.size)}
        amounts = bytes_by_event(
            [timed.event for timed in events], mine, given * plan.microbatches, plan.training
        )
        end = run.ends_s[rank]
        ends = (end - run.after_s[rank], end - run.after_s[rank] / 2)
        starts = chain((0.0,), (timed.start_s for timed in events), ends)
        levels = [Level("", start, kinds) for start, kinds in zip(starts, amounts, strict=False)]
        result.append(_without_hidden(levels))
    return result
