"""What the page says in words: the numbers of its plan, and advice that was simulated."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch

import autoplan
from autoplan.html import memory, sections, tables
from autoplan.html.advice import advice
from autoplan.html.data import charts
from autoplan.html.memory import courses_of
from autoplan.html.spending import Spending, spending_of
from autoplan.html.wiring import asked_of
from autoplan.html.words import glossary, is_cut, story, where_words
from autoplan.pipelining.events import simulate
from autoplan.pipelining.joined import schedule_of, times_of
from autoplan.pipelining.schedules import read_schedule
from autoplan.plan import Plan, StageRow, load_plan
from autoplan.trace.predicted import predicted
from autoplan.units import seconds
from tests.html.plans import residual, small
from tests.pipelining.plans import plan_of, tied_plan
from tests.planner.models import MLP, Residual

UNKNOWN = Spending((), {})


@cache
def of_data(preset: str = "ddp", devices: int = 2, training: bool = True) -> Plan:
    """A perceptron under a preset of data parallelism, or on one device."""
    options = {"preset": preset} if devices > 1 else {}
    return autoplan.plan(
        MLP(64, 256), (torch.randn(32, 64),), devices=devices, cluster="h100",
        microbatches=2, training=training, **options,
    )  # fmt: skip


def with_rows(plan: Plan, rows: tuple[StageRow, ...]) -> Plan:
    """A pipeline whose stages take these times, simulated again."""
    assert plan.pipeline is not None
    pipeline = msgspec.structs.replace(plan.pipeline, stages=rows)
    step_s, bubble = _run(plan, pipeline.schedule, rows)
    pipeline = msgspec.structs.replace(pipeline, bubble=bubble)
    return msgspec.structs.replace(plan, pipeline=pipeline, step_time_s=step_s)


def _run(plan: Plan, name: str, rows: tuple[StageRow, ...]) -> tuple[float, float]:
    assert plan.pipeline is not None
    schedule = read_schedule(name, schedule_of(plan.pipeline).chunks)
    orders = schedule.orders(plan.pipeline.size, plan.microbatches, not plan.training)
    run = simulate(orders, times_of(rows, plan.pipeline.size))
    return run.makespan_s, run.bubble_fraction


# -- where the time goes ---------------------------------------------------------------------------


def test_shares_of_a_pipeline_are_those_of_its_trace() -> None:
    plan = plan_of("1f1b")
    spending = spending_of(plan, asked_of(plan))
    spans = [span for span in predicted(plan).spans if span.track.endswith(" communication")]
    traced_s = sum(span.time_s for span in spans) / plan.mesh.num_devices
    assert spending.seconds("communicating") == pytest.approx(traced_s, rel=1e-9)
    assert traced_s > 0
    said = " ".join(story(plan, spending))
    assert "Sends between stages are no part of communicating" in said
    assert "is send over" not in said


def test_the_prologue_costs_its_part_of_full_buckets() -> None:
    """Not what its buckets take alone, which the table of collectives says."""
    plan = of_data()
    spending = spending_of(plan, asked_of(plan))
    rows = [row for row in plan.collectives if row.phase == "prologue"]
    assert {row.kind for row in rows} == {"all_reduce"}
    paid_s = sum(time_s for (kind, _), time_s in spending.moved.items() if kind == "all_reduce")
    assert 0 < paid_s < 0.5 * sum(row.time_s for row in rows)
    assert "each bucket alone" in tables.collectives(plan)
    assert "each bucket alone" in plan.report()


def test_a_plan_from_a_file_does_not_split_its_step(tmp_path: Path) -> None:
    of_data().save(tmp_path / "plan.toml")
    plan = load_plan(tmp_path / "plan.toml")
    spending = spending_of(plan, ())
    assert spending.shares == ()
    assert "is not known: the plan was read from a file" in " ".join(story(plan, spending))
    assert "stepbar" not in sections.summary(plan, spending, [])
    plan_of("1f1b").save(tmp_path / "plan.toml")
    names = [each.name for each in spending_of(load_plan(tmp_path / "plan.toml"), ()).shares]
    assert names == ["working", "waiting"]


# -- advice ----------------------------------------------------------------------------------------


def test_a_schedule_is_advised_as_far_as_it_saves() -> None:
    plan = plan_of("gpipe")
    found = [line for line in advice(plan, (), UNKNOWN) if "schedule=" in line]
    assert len(found) == 1
    name = re.findall(r"schedule='([\w-]+)' instead of 'gpipe'", found[0])[0]
    assert plan.pipeline is not None
    step_s, _ = _run(plan, name, plan.pipeline.stages)
    assert f"a step would take {seconds(step_s)}" in found[0]
    assert step_s < plan.step_time_s


def test_no_schedule_is_advised_where_none_helps() -> None:
    """One stage has all the work: ranks wait for it under every schedule."""
    plan = plan_of("gpipe")
    assert plan.pipeline is not None
    rows = tuple(
        msgspec.structs.replace(row, forward_s=1.0 if not at else 1e-6, backward_s=1e-6)
        for at, row in enumerate(plan.pipeline.stages)
    )
    lines = advice(with_rows(plan, rows), (), UNKNOWN)
    assert not [line for line in lines if "schedule=" in line]
    assert [line for line in lines if line.startswith("Stages are uneven")]


def test_even_stages_are_advised_as_far_as_they_save() -> None:
    """Where the longest stage is the first, stages of equal work may take longer."""
    plan = plan_of("gpipe")
    assert plan.pipeline is not None
    times = ((448, 450, 56), (356, 327, 34), (171, 171, 22), (266, 267, 24))
    rows = tuple(
        msgspec.structs.replace(row, forward_s=f * 1e-6, backward_s=b * 1e-6, once_s=once * 1e-6)
        for row, (f, b, once) in zip(plan.pipeline.stages, times, strict=True)
    )
    pipeline = msgspec.structs.replace(plan.pipeline, schedule="1f1b")
    for order, helps in ((rows, False), (rows[::-1], True)):
        uneven = with_rows(
            msgspec.structs.replace(plan, pipeline=pipeline, microbatches=4),
            tuple(msgspec.structs.replace(r, rank=at) for at, r in enumerate(order)),
        )
        assert uneven.pipeline is not None
        mean = [sum(getattr(row, name) for row in order) / 4
                for name in ("forward_s", "backward_s", "once_s")]  # fmt: skip
        even = tuple(
            msgspec.structs.replace(row, forward_s=mean[0], backward_s=mean[1], once_s=mean[2])
            for row in uneven.pipeline.stages
        )
        step_s, _ = _run(uneven, "1f1b", even)
        lines = [each for each in advice(uneven, (), UNKNOWN) if "Stages are uneven" in each]
        assert bool(lines) is (step_s < 0.995 * uneven.step_time_s)
        assert all(f"a step would take {seconds(step_s)}" in each for each in lines)
        assert bool(lines) is helps


def test_recomputation_that_was_asked_for() -> None:
    options = {"devices": 2, "cluster": "cpu", "parallel": {"mesh": {"x": 2}}}
    plan = autoplan.plan(Residual(3, 256), (torch.zeros(64, 256),), recompute=True, **options)
    lines = [each for each in advice(plan, (), UNKNOWN) if "a second time" in each]
    assert len(lines) == 1
    assert lines[0].startswith("Recomputation was asked for, of all blocks: 3 blocks run")
    assert "to save memory" not in lines[0]


def test_devices_that_do_the_same_are_said_to() -> None:
    plan = residual()
    assert is_cut(plan) is any("S" in row.layout for row in plan.operations)
    whole = tuple(msgspec.structs.replace(row, layout="(B)", use="") for row in plan.tensors)
    ops = tuple(msgspec.structs.replace(row, layout="(B)") for row in plan.operations)
    same = msgspec.structs.replace(plan, tensors=whole, operations=ops)
    assert not is_cut(same)
    assert "nothing is cut" in where_words(same)[0]
    assert any(line.startswith("All 2 devices do the same") for line in advice(same, (), UNKNOWN))
    assert is_cut(small())
    assert not any(line.startswith("All 4") for line in advice(small(), (), UNKNOWN))


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "training", "said"),
    [
        ("zero1", True, "stores a slice of each parameter, gathers the whole ones once a step"),
        ("zero2", True, "summed and cut in every microbatch"),
        ("ddp", True, "gradients are summed"),
        ("ddp", False, "works on its own part of the batch."),
    ],
)
def test_the_glossary_says_what_the_plan_does(mode: str, training: bool, said: str) -> None:
    (text,) = glossary(of_data(mode, training=training))
    assert said in text
    assert ("gradients" in text) is training


def test_a_gap_is_a_part_of_this_plans_step() -> None:
    plan = residual()
    open_ = msgspec.structs.replace(plan.certificate, gap=0.41, bound=0.59 * plan.step_time_s)
    page = sections.summary(msgspec.structs.replace(plan, certificate=open_), UNKNOWN, [])
    assert "at most 41 % to gain" in page
    assert "within 41 %" not in page
    faster = [
        msgspec.structs.replace(each, step_time_s=plan.step_time_s / 2, peak_memory_bytes=1)
        for each in plan.baselines
    ]
    kept = msgspec.structs.replace(plan, baselines=tuple(faster))
    assert "of plans that keep what was asked for" in sections.summary(kept, UNKNOWN, [])
    assert "of plans that keep" not in sections.summary(plan, UNKNOWN, [])


def test_nobody_gave_a_hint() -> None:
    page = tables.hints(tied_plan())
    assert "is read by several stages" not in page
    shared = ("'a' is read by several stages",)
    plan = msgspec.structs.replace(tied_plan(), pins=(), hints=shared)
    assert "No hints were given" in tables.hints(plan)


def test_hints_are_those_of_the_report() -> None:
    """Priced ones alone: they hold every hint, and every scheme once."""
    plan = small()
    rows = re.findall(r"<tr><td><code>(.*?)</code>", tables.hints(plan))
    told = plan.report().partition("\nhints")[2].partition("\nnotes")[0]
    assert len(rows) == len(plan.pins) == len(told.strip().splitlines()) - 1


def test_nothing_communicated_is_no_empty_table() -> None:
    page = tables.collectives(of_data(devices=1))
    assert "None: nothing is communicated." in page
    assert "<table" not in page


def test_nothing_gathered_is_not_called_gathered() -> None:
    one, cut = of_data(devices=1), of_data("zero1")
    assert "gathered parameters" not in one.report()
    assert "gathered parameters" not in charts(one, ())["kinds"]
    assert "gathered parameters" in cut.report()
    assert "gathered parameters" in charts(cut, ())["kinds"]


def test_one_rank_is_no_ranks() -> None:
    said = where_words(plan_of("gpipe"))
    assert said[0].startswith("Stage 0 runs on rank 0: ")
    assert where_words(plan_of("1f1b"))[0].startswith("Stage 0 runs on ranks 0-1: ")


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [12, 320])
def test_moments_are_of_their_phase(monkeypatch: pytest.MonkeyPatch, points: int) -> None:
    """However many moments are one point, none stands for moments of two phases."""
    monkeypatch.setattr(memory, "_MOST_POINTS", points)
    words: dict[str, str | tuple[str, ...]] = {"before": "gathering", "forward": "forward of"}
    words["reduce, optimizer"] = "reducing gradients", "the optimizer's step"
    for plan in (small(), residual()):
        (course,) = courses_of(plan, asked_of(plan))
        assert len(course.moments) <= max(points, 8)
        ends = [*(at for _, at in course.phases[1:]), len(course.moments)]
        for (name, start), end in zip(course.phases, ends, strict=True):
            assert end > start
            for moment in course.moments[start:end]:
                begins = words.get(name, ("backward of", "recomputation of"))
                assert moment.startswith(begins), (name, moment)
