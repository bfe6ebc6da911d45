"""The report of a pipeline: text to be read, and numbers that are those of its plan.

Renew: env AUTOPLAN_RENEW_GOLDEN=1 .venv/bin/python -m pytest tests/pipelining/test_report.py
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

import autoplan
from autoplan.errors import ConfigError, LayoutError
from autoplan.pipelining.gantt import gantt
from autoplan.pipelining.joined import run_of, schedule_of, sends_of
from autoplan.pipelining.owners import owner
from autoplan.plan import Plan, load_plan
from autoplan.report_pipeline import located_collectives, located_tensors
from autoplan.units import seconds
from tests.models import gpt2, language_batch
from tests.pipelining.plans import CASES, batch, cluster_of, plan_of, residual, tied_plan

GOLDEN = Path(__file__).parent / "golden" / "report.txt"


def test_golden() -> None:
    plan = autoplan.plan(
        gpt2(n_layer=2),
        *language_batch(),
        devices=2,
        cluster="h100",
        microbatches=4,
        parallel={"pipeline": 2},
    )
    text, count = re.subn(r"solved in [\d.,]+ \w+", "solved in (some time)", plan.report())
    assert count == 1
    if os.environ.get("AUTOPLAN_RENEW_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "see the top of this file for how to renew it"


@pytest.mark.parametrize("name", CASES)
def test_rows_simulated_again_take_the_step_of_the_plan(name: str) -> None:
    plan = plan_of(name)
    assert plan.pipeline is not None
    run = run_of(plan)
    assert run.makespan_s == plan.step_time_s
    assert run.bubble_fraction == plan.pipeline.bubble
    most = run.peak_in_flight if plan.training else (1,) * len(plan.stages)
    assert most == tuple(row.in_flight for row in plan.pipeline.stages)


@pytest.mark.parametrize("name", CASES)
def test_the_report_shows_every_stage(name: str) -> None:
    plan = plan_of(name)
    text, pipeline = plan.report(), plan.pipeline
    assert pipeline is not None
    schedule = schedule_of(pipeline)
    for number, row in enumerate(pipeline.stages):
        assert f"stage {number} owns ranks {list(row.ranks)}: " in text
        rank = schedule.rank_of(number, pipeline.size)
        k = plan.mesh.num_devices // pipeline.size
        assert row.ranks == tuple(range(rank * k, (rank + 1) * k))
        assert seconds(row.forward_s) in text
        assert str(plan.stages[number].mesh) in text
    assert f"schedule {pipeline.schedule}, {len(plan.stages)} stages on {pipeline.size}" in text
    assert f"ranks wait {pipeline.bubble:.1%}" in text
    assert f"{pipeline.imbalance:.1%} over the mean" in text
    for line in gantt(run_of(plan), 116).splitlines():
        assert f"  {line}\n" in text


def test_ids_that_differ_from_the_automatic_ones_are_named() -> None:
    plan = plan_of("stage map")
    assert plan.pipeline is not None
    moved = [
        (name, actual, own)
        for name, actual, own in zip(
            plan.pipeline.pieces, plan.pipeline.actual, plan.pipeline.automatic, strict=True
        )
        if actual != own
    ]
    assert [name for name, *_ in moved] == ["layers.2"]
    assert "layers.2: stage 0, automatic 1\n" in plan.report()
    assert "automatic stage ids: the same" in plan_of("1f1b").report()


@pytest.mark.parametrize("name", CASES)
def test_sends_are_collectives(name: str) -> None:
    """One forward, and one backward in training, for every microbatch and boundary of ranks."""
    plan = plan_of(name)
    assert plan.pipeline is not None
    rows = plan.pipeline.stages
    crossing = [a.rank != b.rank for a, b in pairwise(rows)]
    ways = ("forward", "backward") if plan.training else ("forward",)
    for way in ways:
        sends = [row for row in sends_of(plan) if row.direction == way]
        assert all((s.kind, s.axis, s.count) == ("send", "pipeline", plan.microbatches)
                   for s in sends)  # fmt: skip
        assert len(sends) == sum(crossing)
        assert " send " in plan.report()
    assert {s.direction for s in sends_of(plan)} == set(ways)
    assert len(sends_of(plan)) + sum(len(s.collectives) for s in plan.stages) == len(
        plan.collectives
    )


def test_the_certificate_says_what_is_proven() -> None:
    plan = plan_of("1f1b")
    text = plan.report()
    assert plan.certificate.bound <= plan.step_time_s
    assert "stages: 2 of 2 proven optimal" in text
    assert "not proven best" in text
    first = msgspec.structs.replace(
        plan.stages[0],
        certificate=msgspec.structs.replace(plan.stages[0].certificate, gap=0.25, status="late"),
    )
    unproven = msgspec.structs.replace(plan, stages=(first, plan.stages[1]))
    assert "stages: 1 of 2 proven optimal" in unproven.report()
    assert "stage 0: late, gap 25.000%" in unproven.report()


def test_recomputed_blocks_are_of_their_stage() -> None:
    plan = plan_of("recomputed")
    assert plan.recomputed == ("layers.0",)
    assert plan.recomputation_s == plan.stages[0].recomputation_s > 0
    assert "  recomputed in backward: 1 block (layers.*), " in plan.report()
    rows = re.findall(r"^ +(\d+) .* (layers\.\d|-)$", plan.report(), re.M)
    assert dict(rows) == {"0": "layers.0", "1": "-"}


def test_ranks_recompute_beside_each_other(tmp_path: Path) -> None:
    """What all ranks run again is not summed: as much as the rank with most, from a file, too."""
    options = {"devices": 2, "microbatches": 2, "parallel": {"pipeline": 2}, "recompute": True}
    plan = autoplan.plan(residual(), *batch(), cluster=cluster_of("recomputed"), **options)
    spent = [stage.recomputation_s for stage in plan.stages]
    assert min(spent) > 0
    plan.save(tmp_path / "plan.toml")
    for each in (plan, load_plan(tmp_path / "plan.toml")):
        assert each.recomputation_s == pytest.approx(max(spent), rel=1e-9)
        assert f"{seconds(max(spent))} of a step on the rank with most" in each.report()


def test_a_bound_of_cuts_above_the_step_is_not_told() -> None:
    """It is at the prices of the model solved whole, and stages by themselves may be faster."""
    plan = plan_of("1f1b")
    assert plan.pipeline is not None
    for factor, told in ((0.9, True), (1.1, False)):
        pipeline = msgspec.structs.replace(plan.pipeline, bound=factor * plan.step_time_s)
        text = msgspec.structs.replace(plan, pipeline=pipeline).report()
        assert ("none takes less than" in text) is told


@pytest.mark.parametrize("name", CASES)
def test_sends_are_of_the_stage_that_sends(name: str) -> None:
    plan = plan_of(name)
    assert plan.pipeline is not None
    cuts = [n for n, (a, b) in enumerate(pairwise(plan.pipeline.stages)) if a.rank != b.rank]
    for way, offset in (("forward", 0), ("backward", 1)):
        found = [at for row, at in located_collectives(plan) if (row.kind, row.direction) ==
                 ("send", way)]  # fmt: skip
        assert sorted(found) == [cut + offset for cut in cuts if way == "forward" or plan.training]


def test_a_module_is_of_the_stage_that_owns_its_piece(tmp_path: Path) -> None:
    """A later stage that runs copies of some of its ops has another value, which is not its."""
    plan = plan_of("1f1b")
    real = plan.stages[0].tensor("layers.0")
    copied = msgspec.structs.replace(real, shape=(1, 1), local_shape=(1, 1), layout="(B)")
    last = msgspec.structs.replace(plan.stages[1], tensors=(*plan.stages[1].tensors, copied))
    copying = msgspec.structs.replace(plan, stages=(plan.stages[0], last))
    assert [(r.shape, at) for r, at in located_tensors(copying) if r.path == "layers.0"] == [
        (real.shape, 0)
    ]
    copying.save(tmp_path / "plan.toml")
    assert load_plan(tmp_path / "plan.toml").tensor("layers.0") == real


def test_a_module_around_several_pieces_is_of_the_last() -> None:
    stage_of = {"embed": 0, "layers.0": 0, "layers.1": 1, "head": 1}
    assert owner("layers.0.up", stage_of) == 0
    assert owner("layers", stage_of) == 1
    assert owner("elsewhere", stage_of) is None


def test_a_tied_parameter_says_so_and_no_hint_was_given() -> None:
    text = tied_plan().report()
    assert re.search(r"^lm_head\.weight +tied ", text, re.M)
    assert re.search(r"^transformer\.wte\.weight +parameter ", text, re.M)
    assert "is read by several stages" not in text


# -- questions about a plan -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_path_has_a_stage_and_a_layout(name: str) -> None:
    plan = plan_of(name)
    for row in plan.tensors:
        stage = plan.stage(row.path)
        assert any(each.path == row.path for each in plan.stages[stage].tensors)
        assert not any(
            each.path == row.path for before in plan.stages[:stage] for each in before.tensors
        )
        assert len(plan.layout(row.path)) in {each.mesh.ndim for each in plan.stages}
    assert plan.stage_map == {
        piece: number for number, each in enumerate(plan.pipeline.stages) for piece in each.pieces
    }  # type: ignore[union-attr]
    assert all(plan.stage(piece) == stage for piece, stage in plan.stage_map.items())


def test_a_tied_parameter_is_on_the_first_of_its_stages() -> None:
    plan = tied_plan()
    both = [any(row.path == "lm_head.weight" for row in s.tensors) for s in plan.stages]
    assert both == [True, True]
    assert plan.stage("lm_head.weight") == plan.stage("transformer.wte.weight") == 0
    assert plan.stage("transformer.h.1.mlp") == 1


def test_an_unknown_path_suggests_the_nearest() -> None:
    plan = plan_of("1f1b")
    for ask in (plan.stage, plan.layout, plan.explain):
        with pytest.raises(LayoutError, match=r"did you mean 'layers\.3\.up\.weight'"):
            ask("layers.3.upp.weight")


def test_a_plan_without_a_pipeline_has_one_stage() -> None:
    plan = autoplan.plan(residual(), *batch(), devices=2, cluster="cpu")
    assert plan.stage("layers.3") == 0
    assert plan.stage_map == {}
    with pytest.raises(LayoutError):
        plan.stage("nothing")


def test_explain_asks_the_stage_that_holds_a_path() -> None:
    plan = plan_of("1f1b")
    for path in ("layers.3.up", "layers.3.up.weight", "layers.3.up/linear#1"):
        stage = plan.stage("layers.3")
        text = plan.explain(path)
        assert text.startswith(f"stage {stage} of 2, on ranks [2, 3]; ")
        assert "next best for" in text
        assert len(re.findall(r"^stage \d of", text, re.M)) == 1
    shared = tied_plan().explain("transformer.wte.weight")
    assert [line[:12] for line in shared.splitlines() if re.match(r"stage \d of", line)] == [
        "stage 0 of 2",
        "stage 1 of 2",
    ]
    assert "is read by several stages" in shared


def test_what_solves_again_is_asked_of_a_stage() -> None:
    plan = plan_of("1f1b")
    for ask, name in ((plan.sensitivity, "sensitivity"), (plan.frontier, "frontier")):
        with pytest.raises(ConfigError, match=rf"ask a stage, as plan\.stages\[0\]\.{name}\(\)"):
            ask()
    points = plan.stages[0].frontier(points=3).points
    assert min(p.step_time_s for p in points) <= plan.stages[0].step_time_s * (1 + 1e-9)


# -- differences ----------------------------------------------------------------------------------


def plain() -> Plan:
    options = {"devices": 4, "microbatches": 4, "parallel": {"data": 4}}
    return autoplan.plan(residual(), *batch(), cluster=cluster_of("1f1b"), **options)


def test_diff_of_pipelines() -> None:
    one, other = plan_of("1f1b"), plan_of("stage map")
    assert one.diff(one) == "no difference"
    lines = one.diff(other).splitlines()
    assert "stage of layers.2: 1 -> 0" in lines
    assert any(line.startswith("step time: ") for line in lines)
    assert not any("schedule" in line or line.startswith("mesh") for line in lines)
    lines = one.diff(plan_of("interleaved")).splitlines()
    assert "pipeline schedule: 1f1b -> interleaved-1f1b" in lines
    lines = one.diff(plan_of("unlike")).splitlines()
    assert "mesh of stage 0: data 2 -> a 2 x b 2" in lines
    assert "mesh: pipeline 2 x data 2 -> pipeline 2 x rank 4" in lines


def test_diff_of_a_pipeline_and_a_plan_without() -> None:
    lines = plain().diff(plan_of("1f1b")).splitlines()
    assert "mesh: data 4 -> pipeline 2 x data 2" in lines
    assert "pipeline schedule: none -> 1f1b" in lines
    assert any(re.match(r"stage of layers\.\{0,1\}.*: none -> 0", line) for line in lines)
    assert any(line.startswith("send on pipeline: none -> 8 of ") for line in lines)
    back = plan_of("1f1b").diff(plain()).splitlines()
    assert "pipeline schedule: 1f1b -> none" in back
