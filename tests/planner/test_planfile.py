"""Plan files: small, the same every time, read back whole, and nothing runs by a damaged one."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import autoplan
from autoplan.errors import PlanFileError
from autoplan.hints.pins import PinPrice
from autoplan.plan import Plan, encode_plan
from autoplan.planfiles.read import read_plan
from autoplan.planfiles.write import canonical, toml, write_plan
from tests.planner.malformed import MALFORMED
from tests.planner.models import MLP, Residual, gpt2, token_ids

MESH = {"outer": 2, "inner": 2}
BATCH = (torch.randn(64, 16),)
PINS = {"layers.*": {"outer": "S(0)"}, "layers.*.up": {"inner": "S(1)"}, "layers.2": {"inner": "B"}}


def plan_of(layers: int, **options: Any) -> Plan:
    given = {"devices": 4, "cluster": "cpu", "parallel": {"mesh": MESH}} | options
    return autoplan.plan(Residual(layers), BATCH, **given)


def unhurried(plan: Plan) -> Plan:
    """The plan without how long the solver took, which is no part of its file."""
    proof = msgspec.structs.replace(plan.certificate, seconds=0.0)
    return msgspec.structs.replace(plan, certificate=proof)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(3, hints=PINS)


@pytest.fixture(scope="module")
def text(plan: Plan) -> str:
    return write_plan(plan)


@pytest.fixture(scope="module")
def many(plan: Plan) -> list[Plan]:
    ids = token_ids(4, 16)
    two = {"devices": 2, "cluster": "cpu"}
    return [
        plan,
        autoplan.plan(gpt2(), (ids,), {"labels": ids}, hints={"transformer.h.1": "S(2)"}, **two),
        autoplan.plan(MLP(), (torch.randn(4, 8),), devices=1, cluster="cpu"),
        autoplan.plan(MLP(), (torch.randn(4, 8),), training=False, optimizer="none", **two),
        autoplan.plan(torch.nn.Sequential(torch.nn.ReLU()), (torch.randn(4, 8),), **two),
    ]


# -- the text -----------------------------------------------------------------------------------


def test_all_of_a_plan_comes_back(many: list[Plan]) -> None:
    for each in many:
        read = read_plan(write_plan(each).encode(), "text")
        assert read == unhurried(each)
        assert list(read.choices) == list(each.choices)
        assert read.report() == unhurried(each).report()
        assert canonical(read) == read


def test_what_was_read_is_written_as_the_same_bytes(many: list[Plan]) -> None:
    for each in many:
        text = write_plan(each)
        assert write_plan(read_plan(text.encode(), "text")) == text


def test_every_field_is_in_the_file_but_the_solver_time(text: str, plan: Plan) -> None:
    """A field that is new is written by itself; one that is forgotten would show here."""
    tables = tomllib.loads(text)
    figures, request = tables["figures"], tables["request"]
    proof = msgspec.structs.fields(plan.certificate)
    assert figures["certificate"].keys() >= {field.name for field in proof if field.required}
    assert "seconds" not in figures["certificate"]
    for name in ("memory", "baselines", "step_time_s", "tensors", "operations", "collectives"):
        assert name in figures
    assert list(request["mesh"].items()) == list(MESH.items())
    assert figures["hints"] == list(plan.hints)


def test_a_plan_grows_by_no_line_with_its_blocks() -> None:
    """Twelve blocks are as many lines as six, and a file is a small part of the plan as JSON."""
    pins = {"layers.*.up.weight": {"inner": "S(0)"}}
    six, twelve = (plan_of(layers, hints=pins) for layers in (6, 12))
    sizes = [len(write_plan(each)) for each in (six, twelve)]
    assert sizes[1] < 1.1 * sizes[0]
    assert sizes[1] < 0.25 * len(encode_plan(twelve))


def test_another_choice_in_one_block_is_a_few_lines(plan: Plan, text: str) -> None:
    key = "layers.1.up/linear#1"
    assert plan.choices[key] != "B | B"
    other = msgspec.structs.replace(plan, choices=plan.choices | {key: "B | B"})
    before, after = ({*write_plan(each).splitlines()} for each in (plan, other))
    changed = {line for line in before ^ after if not line.startswith("decisions = ")}
    assert len(changed) == 3
    assert '"layers.1.up/linear#1" = "B | B"' in changed
    assert any(line.startswith('"layers.{0,2}.up/linear#1"') for line in changed)
    assert plan.diff(other) == f"layers.1.up/linear#1: {plan.choices[key]} -> B | B"


def test_what_is_not_known_is_left_out_and_read_as_none(plan: Plan) -> None:
    unknown = (PinPrice("'up': 'S(1)'", None, None, "no time"), PinPrice("'down': 'B'", -0.5, -8))
    priced = msgspec.structs.replace(unhurried(plan), pins=unknown, devices_per_node=None)
    assert read_plan(write_plan(priced).encode(), "text") == priced


@given(
    st.recursive(
        st.one_of(
            st.text(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=True)
        ),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
        max_leaves=12,
    )
)
@settings(max_examples=100, deadline=None)
def test_values_are_written_as_toml(value: Any) -> None:
    assert tomllib.loads(f"x = {toml(value)}") == {"x": value}


# -- edits --------------------------------------------------------------------------------------


def spelled(text: str) -> str:
    """Other spellings of the same decisions."""
    start, stop = text.index("\n[parameters]"), text.index("# Figures")
    middle = text[start:stop].replace("S(0)", " S( 0 )").replace("{0..2}", "{0,1,2}")
    middle = re.sub(r'= "\((?!.*->)(.*)\)"$', r'= " \1"', middle, flags=re.M)
    return text[:start] + middle.replace(" | ", "|").replace(" -> ", "->") + text[stop:]


def test_other_spellings_are_read(plan: Plan, text: str) -> None:
    assert spelled(text) != text
    assert read_plan(spelled(text).encode(), "text") == unhurried(plan)


def test_figures_of_an_edited_file_are_marked(plan: Plan, text: str) -> None:
    edited = text.replace('up/linear#1" = "', 'up/linear#1" = "B | B" # ', 1)
    read = read_plan(edited.encode(), "text")
    assert read.choices["layers.0.up/linear#1"] == "B | B"
    assert read.certificate.gap == 1.0
    assert "edited by hand" in read.report()
    assert "edited by hand" in read.notes[-1]
    assert "edited by hand" not in plan.report()


# -- malformed files ----------------------------------------------------------------------------


MODEL_STEP = "the plan file, ["
"""What begins the error of a file that can be read, but says what the model's op cannot do."""


def test_there_are_a_hundred_of_them() -> None:
    assert len(MALFORMED) >= 100


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_gives_one_error_and_runs_nothing(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file, or the line of one that is well formed, and what to do."""
    changed = MALFORMED[name](text)
    path = tmp_path / "plan.toml"
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    assert path.read_bytes() != text.encode()
    monkeypatch.setattr("autoplan.planned.emit", never)
    monkeypatch.setattr("autoplan.planfiles.follow.solve_within_memory", never)
    with pytest.raises(PlanFileError) as caught:
        autoplan.parallelize(Residual(3), BATCH, plan=path, cluster="cpu")
    said = str(caught.value)
    assert said.startswith((f"{str(path)!r} is not a plan file of autoplan, or is ", MODEL_STEP))
    assert said.endswith(".")
    assert re.search(r"; .+\.$|correct the line", said), said
    assert "\n" not in said
    assert len(said) < 900


def never(*given: object) -> None:
    raise AssertionError("something ran")


@pytest.mark.parametrize("make", ["folder", "nothing", "name of nothing", "closed"])
def test_a_path_that_is_no_file(make: str, tmp_path: Path) -> None:
    path = {
        "folder": tmp_path,
        "nothing": tmp_path / "nowhere.toml",
        "name of nothing": "a\0b",
        "closed": tmp_path / "file" / "plan.toml",
    }[make]
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanFileError, match=r"check the path|give the path"):
        autoplan.load_plan(path)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_file_cut_anywhere_is_an_error(data: st.DataObject, text: str) -> None:
    stop = data.draw(st.integers(0, len(text) - 2))
    with pytest.raises(PlanFileError):
        read_plan(text[:stop].encode(), "text")


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_noise_is_read_or_refused(data: st.DataObject, text: str) -> None:
    """Bytes changed anywhere: a plan, or a PlanFileError; no other exception."""
    whole = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        noise = data.draw(st.binary(max_size=4))
        whole[at : at + data.draw(st.integers(0, 12))] = noise
    read_or_refused(bytes(whole))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a value in nested dicts and lists."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


strange = st.sampled_from(
    ["", "(S(0), B)", "x | y", -1, 0, 10**30, 1.5, float("nan"), float("inf"), True, [], {}, ["x"],
     {"x": 1}, [[]], [{"kind": 1}]]
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_strange_value_anywhere_is_read_or_refused(data: st.DataObject, text: str) -> None:
    tables = tomllib.loads(text)
    place = data.draw(st.sampled_from(places(tables)[1:]))
    held: Any = tables
    for key in place[:-1]:
        held = held[key]
    if data.draw(st.booleans()):
        held[place[-1]] = data.draw(strange)
    else:
        del held[place[-1]]
    lines = "".join(f"{toml(key)} = {toml(each)}\n" for key, each in tables.items())
    read_or_refused(lines.encode())


def read_or_refused(data: bytes) -> None:
    try:
        plan = read_plan(data, "text")
    except PlanFileError:
        return
    assert read_plan(write_plan(plan).encode(), "text") == plan
    plan.report()


# -- an example ---------------------------------------------------------------------------------


def test_the_decisions_of_a_known_plan() -> None:
    """Megatron's cut of blocks, as a person reads it; the figures depend on the cost model.

    Renew: env AUTOPLAN_RENEW_GOLDEN=1 .venv/bin/python -m pytest tests/planner/test_planfile.py
    """
    plan = plan_of(
        4, devices=2, parallel={"tensor": {"size": 2, "mode": "1d"}}, hints={"layers.*.up": "S(1)"}
    )
    decisions = write_plan(plan).partition("\n# Figures")[0]
    golden = Path(__file__).parent / "golden" / "plan.toml"
    if os.environ.get("AUTOPLAN_RENEW_GOLDEN"):
        golden.write_text(decisions)
    assert decisions == golden.read_text()
