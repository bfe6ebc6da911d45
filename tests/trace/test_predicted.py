"""The predicted trace: its total, order, bytes and collectives are those of the plan."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import autoplan
from autoplan.errors import ConfigError, PlanFileError
from autoplan.pipelining.joined import run_of
from autoplan.plan import Plan, load_plan
from autoplan.trace.perfetto import save_trace
from autoplan.trace.pieces import Piece, _called, pieces_of
from autoplan.trace.predicted import SHOWN_MICROBATCHES, predicted
from autoplan.trace.spans import Span
from autoplan.why.question import Question
from tests.models import ideal_cluster
from tests.pipelining.plans import CASES, batch, cluster_of, residual
from tests.planner.models import MLP
from tests.trace.reading import Process, read_trace

pytest.importorskip("jsonschema")

MEGATRON = {"layers.*.up.weight": "S(0)", "layers.*.down.weight": "S(1)"}
MODELS: dict[str, dict[str, Any]] = {
    "megatron": {"hints": MEGATRON},
    "inference": {"hints": MEGATRON, "training": False, "outputs": "whole"},
    "fsdp": {"preset": "fsdp", "microbatches": 2},
    "zero2": {"preset": "zero2", "microbatches": 2},
    "zero3, recomputed": {"preset": "zero3", "microbatches": 4, "recompute": ["layers.*"]},
    "recomputed": {"hints": MEGATRON, "recompute": ["layers.0"], "microbatches": 2},
    "summa": {"devices": 4, "parallel": {"tensor": {"size": 4, "mode": "2d"}}},
    "two axes": {"devices": 4, "parallel": {"mesh": {"a": 2, "b": 2}}},
}
PIPELINES = ("naive", "1f1b", "interleaved", "zero-bubble", "unlike", "recomputed")


@cache
def of_model(name: str) -> Plan:
    options = {"devices": 2, **MODELS[name]}
    if "preset" not in options and "parallel" not in options:
        options["parallel"] = {"mesh": {"x": 2}}
    cluster = ideal_cluster(options["devices"])
    return autoplan.plan(residual(), *batch(), cluster=cluster, **options)


@cache
def of_pipeline(name: str) -> Plan:
    args, kwargs = batch()
    return autoplan.plan(residual(), args, kwargs, cluster=cluster_of(name), **CASES[name])


def saved(plan: Plan) -> Process:
    """The trace of a plan as a viewer reads its file."""
    if id(plan) not in _read:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            plan.save_trace(path)
            found = read_trace(path)
        assert list(found) == ["predicted"]
        _read[id(plan)] = plan, found["predicted"]
    return _read[id(plan)][1]


_read: dict[int, tuple[Plan, Process]] = {}


# -- without a pipeline --------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_step_takes_what_the_plan_says(name: str) -> None:
    plan = of_model(name)
    process = saved(plan)
    assert process.end_us == pytest.approx(1e6 * plan.step_time_s, rel=1e-9)
    ranks = {thread.rpartition(" ")[0] for thread in process.threads}
    assert len(ranks) == plan.mesh.num_devices
    for rank in ranks:
        own = [e for t in ("compute", "communication") for e in process.threads[f"{rank} {t}"]]
        # Additive: nothing overlaps, and nothing waits beside the other track.
        assert sum(e.duration_us for e in own) == pytest.approx(process.end_us, rel=1e-9)
        in_order = sorted(own, key=lambda e: e.start_us)
        for before, after in pairwise(in_order):
            assert before.end_us == pytest.approx(after.start_us, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_most_bytes_alive_are_the_peak_of_the_plan(name: str) -> None:
    plan = of_model(name)
    for levels in saved(plan).counters.values():
        assert max(value for _, value in levels) == plan.peak_memory_bytes


@pytest.mark.parametrize("name", MODELS)
def test_collectives_are_those_of_the_ledger(name: str) -> None:
    """Body collectives one by one: kind, axis and bytes, as often as the plan counts them."""
    plan = of_model(name)
    question, answer = plan._origin.answer(plan)
    pieces = pieces_of(question, answer.choices)
    seen: Counter[tuple[Any, ...]] = Counter()
    for moment in (*pieces.forward, *pieces.backward):
        for piece in moment.pieces:
            if piece.track == "communication":
                kind = piece.name.rpartition(": ")[2]
                seen[kind, piece.args["axis"], piece.args["bytes"]] += plan.microbatches
    counted: Counter[tuple[Any, ...]] = Counter()
    for row in plan.collectives:
        if row.phase == "body":
            counted[row.kind, row.axis, row.bytes] += row.count
    assert seen == counted
    assert seen or name == "inference"


def test_forward_backward_then_the_optimizer() -> None:
    group = predicted(of_model("fsdp"))
    own = [span for span in group.spans if span.track in group.tracks[:2]]
    phases = [span.category for span in sorted(own, key=lambda each: each.start_s)]
    runs = [one for one, before in zip(phases, [None, *phases], strict=False) if one != before]
    once = "gathering parameters", "reducing gradients", "the optimizer's step"
    assert runs == [once[0], *["forward", "backward"] * 2, *once[1:]]
    steps = [span for span in group.spans if span.category == "the optimizer's step"]
    trained = [row for row in of_model("fsdp").tensors if row.kind == "parameter"]
    assert {span.name.removesuffix(": optimizer") for span in steps} <= {r.path for r in trained}


def test_an_op_says_how_it_lies() -> None:
    plan = of_model("megatron")
    spans = predicted(plan).spans
    span = next(s for s in spans if s.name == "layers.0.up/linear#1")
    row = next(r for r in plan.operations if r.key == span.name)
    assert span.args["layout"] == row.layout
    assert span.args["strategy"] == row.choice
    assert span.args["shape"] == f"float64{list(row.shape)}"
    forward_s = sum(s.time_s for s in spans if s.name == span.name and s.category == "forward")
    assert forward_s == pytest.approx(2 * row.forward_s, rel=1e-9)  # on two ranks


def test_many_microbatches_are_shown_together() -> None:
    plans = [
        autoplan.plan(MLP(), (torch.randn(240, 8),), devices=2, cluster="cpu", microbatches=count)
        for count in (SHOWN_MICROBATCHES, 40, 120)
    ]
    few, more, most = (len(predicted(plan).spans) for plan in plans)
    assert few < more <= most + 4
    for plan in plans[1:]:
        process = saved(plan)
        assert process.end_us == pytest.approx(1e6 * plan.step_time_s, rel=1e-9)
        (thread,) = [t for t in process.threads if t.startswith("rank 1") and "compute" in t]
        (rest,) = [e for e in process.threads[thread] if e.category == "microbatches"]
        assert rest.args["microbatches"] == plan.microbatches - SHOWN_MICROBATCHES
        notes = predicted(plan).notes
        assert notes["microbatches"].startswith(f"8 of {plan.microbatches} are shown op by op")


def test_equal_ranks_share_tracks_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = of_model("megatron")
    monkeypatch.setattr("autoplan.trace.predicted._MOST_SPANS", 100)
    group = predicted(plan)
    assert group.tracks == ("ranks 0 to 1 compute", "ranks 0 to 1 communication")
    assert group.end_s == pytest.approx(plan.step_time_s, rel=1e-9)
    assert "share" in group.notes["ranks"]


# -- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_its_schedule(name: str) -> None:
    plan = of_pipeline(name)
    process = saved(plan)
    assert process.end_us == pytest.approx(1e6 * plan.step_time_s, rel=1e-9)
    run, pipeline = run_of(plan), plan.pipeline
    assert pipeline is not None
    width = len(pipeline.stages[0].ranks)
    for thread, slices in process.threads.items():
        if not thread.endswith("compute"):
            continue
        rank = int(thread.split()[1]) // width
        events = [e for e in slices if e.depth == 0 and "microbatch" in e.args]
        assert [(e.category, e.args["stage"], e.args["microbatch"]) for e in events] == [
            (t.event.kind, t.event.stage, t.event.microbatch) for t in run.events[rank]
        ]
        idle = sum(e.duration_us for e in slices if e.category == "bubble")
        assert idle == pytest.approx(1e6 * run.idle_s[rank], rel=1e-9, abs=1e-4)
        busy = sum(e.duration_us for e in slices if e.depth == 0 and e.category != "bubble")
        assert busy == pytest.approx(1e6 * run.busy_s[rank], rel=1e-9)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_most_bytes_of_a_pipeline_are_its_peak(name: str) -> None:
    plan = of_pipeline(name)
    levels = saved(plan).counters
    assert len(levels) == plan.mesh.num_devices
    assert max(v for each in levels.values() for _, v in each) == plan.peak_memory_bytes
    assert plan.pipeline is not None
    for row in plan.pipeline.stages:
        for rank in row.ranks:
            (mine,) = [v for k, v in levels.items() if k.startswith(f"rank {rank} ")]
            assert max(value for _, value in mine) == row.rank_peak_memory_bytes


@pytest.mark.parametrize("name", ["1f1b", "unlike", "recomputed"])
def test_ops_lie_in_their_events_and_sum_to_them(name: str) -> None:
    plan = of_pipeline(name)
    assert plan.pipeline is not None
    for row, stage in zip(plan.pipeline.stages, plan.stages, strict=True):
        question, answer = stage._origin.answer(stage)
        pieces = pieces_of(question, answer.choices, gathers_once=True)
        forward = sum(each.time_s for each in pieces.forward)
        backward = sum(each.time_s for each in pieces.backward)
        once = sum(each.time_s for each in (*pieces.before, *pieces.after))
        assert (forward, backward, once) == (
            pytest.approx(row.forward_s, rel=1e-9),
            pytest.approx(row.backward_s, rel=1e-9),
            pytest.approx(row.once_s, rel=1e-9),
        )


def test_what_is_sent() -> None:
    plan = of_pipeline("1f1b")
    sends: dict[str, list[Span]] = {}
    for span in predicted(plan).spans:
        if span.category == "send":
            sends.setdefault(span.track, []).append(span)
    # Two ranks a stage: each sends 4 microbatches' values ahead, or their gradients back.
    assert len(sends) == 4
    sizes = {row.direction: row.bytes for row in plan.collectives if row.kind == "send"}
    for track, spans in sends.items():
        assert len(spans) == 4
        direction = "forward" if track.startswith(("rank 0", "rank 1")) else "backward"
        assert {span.args["bytes"] for span in spans} == {sizes[direction]}


def test_sends_that_overlap_lie_beside_each_other() -> None:
    """A wire so slow that microbatches' values overtake each other's start."""
    cluster = ideal_cluster(2, latency_s=1.0)
    args, kwargs = batch()
    options = CASES["zero-bubble"]
    plan = autoplan.plan(residual(), args, kwargs, cluster=cluster, **options)
    process = saved(plan)
    assert any(thread.endswith("sends 2") for thread in process.threads)


# -- files ---------------------------------------------------------------------------------------


def test_a_plan_from_a_file_needs_its_model(tmp_path: Path) -> None:
    plan = of_model("megatron")
    plan.save(tmp_path / "plan.toml")
    alone = load_plan(tmp_path / "plan.toml")
    with pytest.raises(ConfigError, match=r"save_trace\(path\) solves.* load it on the"):
        alone.save_trace(tmp_path / "trace.json")


def test_a_pipeline_from_a_file_shows_its_events(tmp_path: Path) -> None:
    plan = of_pipeline("1f1b")
    plan.save(tmp_path / "plan.toml")
    group = predicted(load_plan(tmp_path / "plan.toml"))
    assert group.end_s == pytest.approx(plan.step_time_s, rel=1e-9)
    assert not group.levels
    assert group.notes["ops"].startswith("unknown")


def test_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PlanFileError, match=r"cannot write trace .*: No such file"):
        of_model("megatron").save_trace(tmp_path / "none" / "trace.json")


def test_the_reader_refuses_what_is_no_trace(tmp_path: Path) -> None:
    """What the tests above rest on."""
    group = predicted(of_model("megatron"))
    track = group.tracks[0]
    first = next(span for span in group.spans if span.track == track)
    middle_s = first.start_s + first.time_s / 2
    crossing = Span(track, "crossing", "x", middle_s, 2 * group.end_s)
    save_trace(tmp_path / "trace.json", [group])
    read_trace(tmp_path / "trace.json")
    spans = (*group.spans, crossing)
    save_trace(tmp_path / "trace.json", [type(group)("predicted", group.tracks, spans)])
    with pytest.raises(ValueError, match="ends after what it lies in"):
        read_trace(tmp_path / "trace.json")
    path = tmp_path / "trace.json"
    path.write_text(path.read_text().replace('"ph":"X"', '"ph":"Y"', 1))
    with pytest.raises(Exception, match="'Y' is not one of"):
        read_trace(path)


def test_one_device_gathers_and_reduces_nothing() -> None:
    """What it does to parameters alone, once a step, is no communication and not called so."""
    plan = autoplan.plan(MLP(), (torch.randn(24, 8),), devices=1, cluster="cpu")
    pieces = pieces_of(*_answered(plan))
    doing = {each.doing: each.pieces for each in (*pieces.before, *pieces.after)}
    for name in ("gathering parameters", "reducing gradients"):
        assert not doing.get(name)
    plan = of_model("fsdp")
    pieces = pieces_of(*_answered(plan))
    assert pieces.before[0].doing == "gathering parameters"
    piece = next(each for each in pieces.before[0].pieces if each.track == "communication")
    assert piece.name.endswith(f": {piece.args['kind']}")
    work = Piece("wpe: slice", "compute", 1e-6)
    assert _called("gathering parameters", [work]) == "work on parameters alone"
    assert _called("gathering parameters", [work, piece]) == "gathering parameters"


def _answered(plan: Plan) -> tuple[Question, tuple[int, ...]]:
    assert plan._origin is not None
    question, answer = plan._origin.answer(plan)
    return question, answer.choices
