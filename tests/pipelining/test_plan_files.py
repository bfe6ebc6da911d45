"""Plan files of pipelines: read back whole, edited by hand, and refused where they are wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autoplan
from autoplan.capture import capture
from autoplan.describe import site_keys
from autoplan.errors import InfeasibleError, PlanFileError
from autoplan.pipelining.follow import follow_pipeline
from autoplan.pipelining.joined import run_of
from autoplan.plan import Plan, decode_plan, encode_plan
from autoplan.planfiles.read import EDITED, read_plan
from autoplan.planfiles.write import canonical, toml, write_plan
from autoplan.request import make_request
from tests.models import ideal_cluster, language_batch
from tests.pipelining.plans import (
    CASES,
    batch,
    cluster_of,
    microbatch,
    plan_of,
    residual,
    tied,
    tied_plan,
    unhurried,
)

TIED = "tied"
ALL = (*CASES, TIED)


def plan_called(name: str) -> Plan:
    return tied_plan() if name == TIED else plan_of(name)


@cache
def text_of(name: str) -> str:
    return write_plan(plan_called(name))


def read(text: str) -> Plan:
    return read_plan(text.encode(), "text")


def loaded(name: str, text: str, path: Path, **options: Any) -> autoplan.ParallelModule:
    """The file on its model."""
    (path / "plan.toml").write_text(text)
    if name == TIED:
        args, kwargs = language_batch()
        given = {"devices": 4, "cluster": ideal_cluster(4), **options}
        return autoplan.parallelize(tied(), args, kwargs, plan=path / "plan.toml", **given)
    given = {"devices": CASES[name]["devices"], "cluster": cluster_of(name), **options}
    return autoplan.parallelize(residual(), *batch(), plan=path / "plan.toml", **given)


# -- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_all_of_a_plan_comes_back(name: str) -> None:
    plan = plan_called(name)
    back = read(write_plan(plan))
    assert back == unhurried(plan)
    assert back.report() == unhurried(plan).report()
    assert write_plan(back) == write_plan(plan)
    for one, other in zip(back.stages, plan.stages, strict=True):
        assert list(one.choices) == list(other.choices)
        assert canonical(one) == one


@pytest.mark.parametrize("name", ALL)
def test_both_stage_ids_are_in_the_file(name: str) -> None:
    plan = plan_called(name)
    assert plan.pipeline is not None
    held = tomllib.loads(write_plan(plan))["pipeline"]
    assert (held["schedule"], held["size"]) == (plan.pipeline.schedule, plan.pipeline.size)
    for table, stage_of in (
        ("stages", plan.pipeline.actual),
        ("automatic", plan.pipeline.automatic),
    ):
        counts = [len(_parts(parts)) for parts in held[table].values()]
        assert list(held[table]) == [str(stage) for stage in range(len(plan.stages))]
        assert counts == [stage_of.count(stage) for stage in range(len(plan.stages))]


def _parts(patterns: list[str]) -> list[str]:
    """Written out here, apart from the reader."""
    found = []
    for each in patterns:
        braces = re.search(r"\{(\d+)(?:\.\.|,)(\d+)\}", each)
        numbers = range(int(braces[1]), int(braces[2]) + 1) if braces else ()
        found += [each.replace(braces[0], str(n)) for n in numbers] if braces else [each]
    return found


def test_decisions_come_before_figures_and_blocks_are_one_line() -> None:
    decisions = text_of("1f1b").partition("\n# Figures")[0]
    assert '0 = ["layers.{0,1}"]' in decisions
    assert len(re.findall(r'^"layers\.\{\d,\d\}\.up\.weight" = ', decisions, re.M)) == 2
    assert decisions.count("\n") < 110
    assert [line for line in decisions.splitlines() if line.startswith("[")] == [
        "[request]",
        "[pipeline]",
        "[pipeline.stages]  # stage = its parts",
        "[pipeline.automatic]  # as the planner takes them by itself, without stage hints",
        *(f"[stage.0{each}]" for each in ("", ".wires", ".parameters", ".inputs", ".operations")),
        *(f"[stage.1{each}]" for each in ("", ".wires", ".parameters", ".operations")),
    ]


# -- on the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_loaded_on_its_model_it_is_the_same_plan(name: str, tmp_path: Path) -> None:
    """Made anew from the decisions: times, memory, rows and all."""
    plan = plan_called(name)
    module = loaded(name, write_plan(plan), tmp_path)
    assert unhurried(module.plan) == unhurried(plan)
    assert module.plan.diff(plan) == "no difference"
    if name in ("interleaved", "unlike", TIED):
        check = module.verify(*(language_batch(2) if name == TIED else microbatch(name)))
        assert check.ok, str(check)


def test_other_ranks_follow_the_plan_of_the_first() -> None:
    plan = plan_of("interleaved")
    assert plan.pipeline is not None
    captured = capture(residual(), *microbatch("interleaved"))
    request = make_request(4, cluster_of("interleaved"), microbatches=4)
    followed = follow_pipeline(captured, decode_plan(encode_plan(plan), "rank 0"), request)
    assert followed.plan == plan
    for stage, row in zip(followed.stages, plan.pipeline.stages, strict=True):
        assert stage.pricer.setting.in_flight == row.in_flight
        sites = zip(site_keys(stage.annotated), stage.annotated.sites, stage.choices, strict=True)
        chosen = {key: str(site.candidates[choice]) for key, site, choice in sites}
        assert chosen.items() >= stage.plan.choices.items()


def changed(text: str, *edits: tuple[str, str]) -> str:
    for old, new in edits:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


def consistent(plan: Plan) -> None:
    """Its figures are of itself."""
    assert plan.pipeline is not None
    assert run_of(plan).makespan_s == plan.step_time_s == plan.certificate.objective
    for row, stage in zip(plan.pipeline.stages, plan.stages, strict=True):
        assert row.peak_memory_bytes == stage.peak_memory_bytes
    assert EDITED not in plan.notes
    assert read_plan(write_plan(plan).encode(), "text") == unhurried(plan)


MOVED = (
    ('0 = ["layers.{0,1}"]', '0 = ["layers.{0..2}"]'),
    ('1 = ["layers.{2,3}"', '1 = ["layers.3"'),
)


def test_a_boundary_moved_by_hand(tmp_path: Path) -> None:
    """The block keeps its decisions, and the plan is the one that a stage map would have given."""
    text = text_of("1f1b")
    module = loaded("1f1b", changed(text, *MOVED), tmp_path)
    plan, before = module.plan, plan_of("1f1b")
    assert plan.stage_map["layers.2"] == 0
    assert plan.pipeline is not None
    assert plan.pipeline.automatic == before.pipeline.automatic  # type: ignore[union-attr]
    consistent(plan)
    assert plan.certificate.gap == 1.0
    assert "layers.2: stage 0, automatic 1" in plan.report()
    moved = {k: v for k, v in before.stages[1].choices.items() if "layers.2." in k}
    assert len(moved) > 5
    assert {k: plan.stages[0].choices[k] for k in moved} == moved
    assert not any("layers.2" in key for key in plan.stages[1].choices)
    assert plan.step_time_s == pytest.approx(plan_of("stage map").step_time_s, rel=1e-3)
    assert module.verify(*microbatch("1f1b")).ok


def test_a_boundary_moved_to_another_mesh_is_solved_there(tmp_path: Path) -> None:
    text = text_of("unlike")
    assert MOVED[0][0] in text
    module = loaded("unlike", changed(text, *MOVED), tmp_path)
    consistent(module.plan)
    assert any("new here, solved: in layers.2" in note for note in module.plan.notes)
    assert module.plan.certificate.status == "solved around the decisions of the plan file"
    assert module.plan.stages[0].tensor("layers.2.up.weight").layout.count(",") >= 1
    held = plan_of("unlike").stages[0].choices
    kept = [k for k in held if "layers.0" in k]
    assert {k: module.plan.stages[0].choices[k] for k in kept} == {k: held[k] for k in kept}
    assert module.verify(*microbatch("unlike")).ok


def test_a_layout_edited_inside_of_a_stage(tmp_path: Path) -> None:
    text = text_of("1f1b")
    line = re.search(r'^"layers\.\{2,3\}\.up/linear#1" = "(.*)"$', text, re.M)
    assert line is not None
    assert line[1] != "B"
    edited = changed(text, (line[0], '"layers.{2,3}.up/linear#1" = "B"'))
    assert EDITED in read(edited).notes
    module = loaded("1f1b", edited, tmp_path)
    plan, before = module.plan, plan_of("1f1b")
    assert plan.stages[1].choices["layers.3.up/linear#1"] == "B"
    assert plan.stages[0] == unhurried(before).stages[0]
    assert plan.step_time_s > before.step_time_s
    consistent(plan)
    assert module.verify(*microbatch("1f1b")).ok


def test_a_line_taken_out_is_decided_again(tmp_path: Path) -> None:
    text = text_of("1f1b")
    line = re.search(r'^"layers\.\{2,3\}\.up/linear#1" = ".*"\n', text, re.M)
    assert line is not None
    plan = loaded("1f1b", changed(text, (line[0], "")), tmp_path).plan
    assert unhurried(plan).stages[1].choices == plan_of("1f1b").stages[1].choices
    assert any("new here, solved" in note for note in plan.notes)


def test_another_schedule_holds_other_microbatches(tmp_path: Path) -> None:
    edited = changed(text_of("1f1b"), ('schedule = "1f1b"', 'schedule = "GPipe"'))
    plan = loaded("1f1b", edited, tmp_path).plan
    assert plan.pipeline is not None
    assert plan.pipeline.schedule == "gpipe"
    assert [row.in_flight for row in plan.pipeline.stages] == [4, 4]
    assert plan.peak_memory_bytes > plan_of("1f1b").peak_memory_bytes
    consistent(plan)


def test_less_memory_than_the_plan_takes(tmp_path: Path) -> None:
    most = plan_of("1f1b").peak_memory_bytes
    loaded("1f1b", text_of("1f1b"), tmp_path, memory=most)
    with pytest.raises(InfeasibleError, match=r"stage \d: the plan takes .*; give memory="):
        loaded("1f1b", text_of("1f1b"), tmp_path, memory=most - 1)


# -- files that are wrong -------------------------------------------------------------------------


def line_out(start: str) -> Callable[[str], str]:
    return lambda text: re.sub(rf"^{re.escape(start)}.*\n", "", text, count=1, flags=re.M)


def swap(old: str, new: str) -> Callable[[str], str]:
    return lambda text: changed(text, (old, new))


def without_section(name: str) -> Callable[[str], str]:
    return lambda text: re.sub(rf"^\[{re.escape(name)}\].*\n(?:[^\[#].*\n|\n)*", "", text, count=1,
                               flags=re.M)  # fmt: skip


WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "an unknown key": (swap("size = 2", "size = 2\nsiez = 3"), r"\[pipeline\]: 'siez'.*'size'"),
    "no schedule": (line_out('schedule = "1f1b"'), r"\[pipeline\]: 'schedule' is missing"),
    "an unknown schedule": (swap('"1f1b"', '"1f1c"'), r"\[pipeline\] schedule: .*'1f1b'"),
    "a schedule with more stages": (swap('"1f1b"', '"zbv"'), r"'zbv' has exactly 2 stages"),
    "a schedule without microbatches": (
        swap('"1f1b"', '"naive"'),
        r"\[pipeline\] schedule: schedule 'naive' .*4",
    ),
    "no size": (line_out("size = 2"), r"\[pipeline\]: 'size' is missing"),
    "size 3": (swap("size = 2", "size = 3"), r"\[pipeline.stages\]: 2 stages .* 3 pipeline ranks"),
    "size 1": (swap("size = 2", "size = 1"), r"\[pipeline\]: the size is 1"),
    "no stages": (without_section("pipeline.stages"), r"\[pipeline\]: 'stages' is missing"),
    "no automatic ids": (without_section("pipeline.automatic"), r"\[pipeline\]: 'automatic'"),
    "a stage number": (
        swap('\n1 = ["l', '\n7 = ["l'),
        r"\[pipeline.stages\]: '7' is none .* 0 to 1",
    ),
    "a stage name": (swap('\n1 = ["l', '\nb = ["l'), r"\[pipeline.stages\]: 'b' is none"),
    "a stage without parts": (
        swap('0 = ["layers.{0,1}"]', "0 = []"),
        r"\[pipeline.stages\] 0: the stage has no part",
    ),
    "parts that are no texts": (swap('0 = ["layers.{0,1}"]', "0 = [1]"), r"\[pipeline.stages\] 0"),
    "a part twice": (
        swap('0 = ["layers.{0,1}"]', '0 = ["layers.{0..2}"]'),
        r"\[pipeline.stages\] 1: 'layers.2' stands there twice, also on stage 0",
    ),
    "a set that is none": (
        swap('0 = ["layers.{0,1}"]', '0 = ["layers.{1..0}"]'),
        r"\[pipeline.stages\] 0: '1..0' in",
    ),
    "a part that only automatic has": (
        swap('0 = ["layers.{0,1}"]', '0 = ["layers.1"]'),
        r"\[pipeline.automatic\]: 'layers.0' is on none of \[pipeline.stages\]",
    ),
    "no section of a stage": (
        lambda text: re.sub(r"^\[stage\.1[\s\S]*?(?=\n# Figures)", "", text, count=1, flags=re.M),
        r"\[stage\]: stage 1 is missing",
    ),
    "one stage too many": (
        swap("\n[stage.1]", "\n[stage.2]\nmesh = {}\n\n[stage.1]"),
        r"\[stage\]: '2' is none of the stages 0 to 1",
    ),
    "an unknown section of a stage": (
        swap("[stage.0.operations]", "[stage.0.operation]"),
        r"\[stage.0\]: 'operation' is not known \(did you mean 'operations'\?\)",
    ),
    "no parameters": (
        swap("[stage.1.parameters]", "[stage.1.inputs]"),
        r"\[stage.1\]: 'parameters' is missing",
    ),
    "no mesh of a stage": (
        swap("[stage.1]\nmesh = { data = 2 }", "[stage.1]"),
        r"\[stage.1\]: 'mesh'",
    ),
    "another mesh of a stage": (
        swap("[stage.1]\nmesh = { data = 2 }", "[stage.1]\nmesh = { data = 4 }"),
        r"\[stage.1\] mesh: data 4 on each of 2 pipeline ranks are 8 devices, and .* has 4",
    ),
    "a stage's axis called pipeline": (
        lambda text: text.replace("mesh = { data = 2 }", "mesh = { pipeline = 2 }"),
        r"\[stage.0\] mesh: .*do not match one to one",
    ),
    "another mesh of all": (
        swap("mesh = { pipeline = 2, data = 2 }", "mesh = { data = 2, pipeline = 2 }"),
        r"\[request\] mesh: it is data 2 x pipeline 2, .* is pipeline 2 x data 2",
    ),
    "a layout": (
        lambda text: re.sub(r'(\[stage\.1\.parameters\]\n".*?" = )".*"', r'\1"(X)"', text),
        r"\[stage.1.parameters\] .*'X'",
    ),
    "a layout of two axes": (
        lambda text: re.sub(r'(\[stage\.1\.parameters\]\n".*?" = )".*"', r'\1"(B, B)"', text),
        r"\[stage.1.parameters\] .*2 entries, the mesh has 1 axis",
    ),
    "a wire": (
        lambda text: re.sub(r"(\[stage\.0\.wires\]\n\w+ = ).*", r'\1"(Y)"', text),
        r"\[stage.0.wires\]",
    ),
    "no figures of a stage": (
        swap("[figures.stages.1]", "[figures.stages.3]"),
        r"\[figures.stages\]: '3' is none",
    ),
    "no rows": (
        swap("[figures.pipeline]", "[figures.pipelines]"),
        r"\[figures\]: 'pipeline' is missing",
    ),
    "an unknown figure of a row": (
        swap("forward_s = ", "forwards = 1, forward_s = "),
        r"'forwards'",
    ),
    "a rank in a row": (
        swap("{ forward_s = ", "{ rank = 1, forward_s = "),
        r"\[figures.pipeline\] stages\[0\]: 'rank' is not known",
    ),
    "a negative time": (
        lambda text: re.sub(r"\{ forward_s = ", "{ forward_s = -", text, count=1),
        r"\[figures.pipeline\] stages\[0\] forward_s",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_and_names_the_place(name: str) -> None:
    change, said = WRONG[name]
    text = text_of("1f1b")
    assert change(text) != text
    with pytest.raises(PlanFileError, match=r"^'text' is not a plan file of autoplan, or is ") as e:
        read(change(text))
    message = str(e.value)
    assert re.search(said, message), message
    assert "; " in message
    assert message.endswith(".")
    assert "\n" not in message


FOREIGN: dict[str, tuple[Callable[[str], str], str]] = {
    "the order of the model": (
        lambda text: changed(
            text,
            ('0 = ["layers.{0,1}"]', '0 = ["layers.{2,3}"]'),
            ('1 = ["layers.{2,3}"', '1 = ["layers.{0,1}"'),
        ),
        r"puts 'layers.2' on stage 0, and 'layers.1', which runs before, on stage 1",
    ),
    "a part that the model has not": (
        lambda text: text.replace('"layers.{0,1}"]', '"layers.{0,1}", "layers.9"]'),
        r"puts 'layers.9' on stage 0, and this model has no such part",
    ),
    "a part that the file has not": (
        lambda text: text.replace('= ["layers.{0,1}"]', '= ["layers.0"]'),
        r"says no stage for 'layers.1', which this model has",
    ),
    "a choice of an op": (
        lambda text: re.sub(r'^("layers\.\{2,3\}\.up/linear#1") = ".*"', r'\1 = "zz"', text,
                            flags=re.M),
        r"^stage 1: the plan file, \[operations\] .*'zz'",
    ),
    "ends that disagree": (
        lambda text: re.sub(r"(\[stage\.1\.wires\]\n\w+ = ).*", r'\1"(P)"', text),
        r"\[stage.0.wires\] .* and \[stage.1.wires\] .*'\(P\)'.*make them agree",
    ),
    "a wire too small": (
        lambda text: re.sub(r"(\[stage\.0\.wires\]\n\w+ = ).*", r'\1"(S(5))"', text),
        r"\[stage.0.wires\] .* says '\(S\(5\)\)', which it is too small for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_does_not_go_with_the_model(name: str, tmp_path: Path) -> None:
    change, said = FOREIGN[name]
    text = text_of("1f1b")
    assert change(text) != text
    with pytest.raises(PlanFileError, match=said):
        loaded("1f1b", change(text), tmp_path)


def test_a_shared_parameter_stored_otherwise_in_one_stage(tmp_path: Path) -> None:
    text = text_of(TIED)
    head = r'(\[stage\.1\.parameters\][\s\S]*?"transformer\.wte\.weight" = )".*"'
    edited = re.sub(head, r'\1"(B) -> (B/P)"', text, count=1)
    assert edited != text
    with pytest.raises(PlanFileError, match=r"'transformer.wte.weight' is read by stages 0 and 1"):
        loaded(TIED, edited, tmp_path)


def test_values_of_other_meshes_pass_as_slices(tmp_path: Path) -> None:
    text = text_of("unlike")
    edited = re.sub(r"(\[stage\.1\.wires\]\n\w+ = ).*", r'\1"(S(1))"', text)
    assert edited != text
    with pytest.raises(
        PlanFileError, match=r"\[stage.1.wires\] .* the meshes of the stages differ"
    ):
        loaded("unlike", edited, tmp_path)


# -- anything -------------------------------------------------------------------------------------


def read_or_refused(data: bytes) -> None:
    try:
        plan = read_plan(data, "text")
    except PlanFileError:
        return
    assert read_plan(write_plan(plan).encode(), "text") == plan
    plan.report()


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_noise_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(text_of("interleaved").encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        noise = data.draw(st.binary(max_size=4))
        whole[at : at + data.draw(st.integers(0, 12))] = noise
    read_or_refused(bytes(whole))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a value in nested dicts and lists."""
    pairs: Any = value.items() if isinstance(value, dict) else ()
    pairs = enumerate(value) if isinstance(value, list) else pairs
    return [path, *(place for key, each in pairs for place in places(each, (*path, key)))]


strange = st.sampled_from(
    ["", "(S(0), B)", "x | y", -1, 0, 10**30, 1.5, float("nan"), float("inf"), True, [], {}, ["x"],
     {"x": 1}, [[]], [{"kind": 1}], 2, 3, 4, 10**6, 1e300, "gpipe", "zbv"]
)  # fmt: skip


@pytest.mark.parametrize("most", [3, 9])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_strange_value_anywhere_is_read_or_refused(most: int, data: st.DataObject) -> None:
    """In the short paths, where sections and what was asked are, and in all."""
    tables = tomllib.loads(text_of("interleaved"))
    found = [place for place in places(tables)[1:] if len(place) <= most]
    place = data.draw(st.sampled_from(found))
    held: Any = tables
    for key in place[:-1]:
        held = held[key]
    if data.draw(st.booleans()):
        held[place[-1]] = data.draw(strange)
    else:
        del held[place[-1]]
    lines = "".join(f"{toml(key)} = {toml(each)}\n" for key, each in tables.items())
    read_or_refused(lines.encode())
