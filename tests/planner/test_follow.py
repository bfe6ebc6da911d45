"""Plans on models that changed: what fits is held, the rest is solved around it and listed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import autoplan
from autoplan.capture import Captured, capture
from autoplan.errors import PlanFileError
from autoplan.plan import Plan
from autoplan.planfiles.fitting import annotate_as
from autoplan.planfiles.follow import adopt
from autoplan.planfiles.patterns import expanded
from autoplan.planfiles.read import EDITED, read_plan
from autoplan.planfiles.write import write_plan
from autoplan.planning import Planned
from autoplan.request import make_request
from tests.planner.models import MLP, Residual, gpt2, token_ids

BATCH = (torch.randn(64, 16),)
MESH = {"mesh": {"outer": 2, "inner": 2}}


@pytest.fixture(scope="module")
def plan() -> Plan:
    """With pins, so that parameters, ops and values lie in several ways."""
    pins = {"layers.*.up": {"inner": "S(1)"}, "layers.1": {"outer": "S(0)"}}
    made = autoplan.plan(Residual(2), BATCH, devices=4, cluster="cpu", parallel=MESH, hints=pins)
    return read_plan(write_plan(made).encode(), "text")


def on(model: nn.Module | Captured, plan: Plan, **options: Any) -> Planned:
    """The plan on a model that may be another one."""
    request = make_request(4, **({"cluster": "cpu"} | options))
    captured = capture(model, BATCH, {}) if isinstance(model, nn.Module) else model
    return adopt(captured, plan, request)


def with_choices(plan: Plan, choices: Mapping[str, str | None]) -> Plan:
    """The plan with other choices, or without those that are None."""
    new = {**plan.choices, **choices}
    kept = {key: text for key, text in new.items() if text is not None}
    return msgspec.structs.replace(plan, choices=kept)


def notes_of(planned: Planned) -> list[str]:
    return [note for note in planned.plan.notes if note.startswith("plan file: ")]


def test_a_plan_of_this_very_model_stays_as_it_is(plan: Plan) -> None:
    assert on(Residual(2), plan).plan == plan


def test_questions_have_the_boxes_of_hints_that_are_not_given_again() -> None:
    given: dict[str, Any] = {"devices": 4, "cluster": "cpu"}
    hints = {"layers.0.up": {"inner": "S(1)"}}  # one op alone reads it: else there is no box
    made = autoplan.plan(Residual(2), BATCH, parallel=MESH, hints=hints, **given)
    module = autoplan.parallelize(Residual(2), BATCH, plan=made, **given)
    assert module.plan._origin is not None
    question, answer = module.plan._origin.answer(module.plan)
    assert made.choices.keys() <= set(question.keys)
    assert answer.step_time_s == pytest.approx(made.step_time_s, rel=1e-9)


def test_more_blocks_are_solved_around_those_that_are_held(plan: Plan) -> None:
    planned = on(Residual(4), plan)
    for key, text in plan.choices.items():
        assert planned.plan.choices[key] == text
    assert planned.plan.certificate.gap == 0.0
    held = sum(key in plan.choices for key in planned.plan.choices)
    assert f"around the {held} decisions" in planned.plan.certificate.status
    notes = notes_of(planned)
    assert any("new here, solved: in layers.{2,3}.up: weight, bias" in note for note in notes)
    listed = {
        module
        for note in notes
        for module in expanded(note.partition(": in ")[2].partition(":")[0])
    }
    new = [key for key in planned.plan.choices if key not in plan.choices]
    assert listed == {
        key[len("parameter ") :].rpartition(".")[0]
        if key.startswith("parameter ")
        else key.rpartition("/")[0]
        for key in new
    }


def test_fewer_blocks_need_no_solving(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoplan.planfiles.follow.solve_within_memory", None)
    planned = on(Residual(1), plan)
    assert planned.plan.certificate.status == "given, not solved"
    assert planned.plan.certificate.gap == 1.0
    assert "plan file: not in this model, left out: in layers.1.up: weight, bias" in "\n".join(
        notes_of(planned)
    )
    assert planned.plan.report().count("not in this model") == len(notes_of(planned))


class Other(nn.Module):
    """Residual's blocks with a narrow first one, and something more at the end."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = Residual(2).layers
        self.layers[0].up = nn.Linear(16, hidden)  # type: ignore[union-attr]
        self.layers[0].down = nn.Linear(hidden, 16)  # type: ignore[union-attr]
        self.last = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.last(x).square().mean()


def test_what_no_longer_fits_is_solved_again_and_listed(plan: Plan) -> None:
    """One column cannot be split: every decision that splits it gives way, and no other."""
    planned = on(Other(1), plan)
    text = "\n".join(notes_of(planned))
    assert "changed here, solved again: in layers.0.up: weight (the file: " in text
    assert f"linear#1 (the file: {plan.choices['layers.0.up/linear#1']!r})" in text
    assert "new here, solved: in last: weight, bias, linear#1" in text
    changed = [note for note in notes_of(planned) if "changed here" in note]
    assert all("layers.1" not in note for note in changed)
    for key, choice in plan.choices.items():
        if key.startswith(("parameter layers.1.", "layers.1.")):
            assert planned.plan.choices[key] == choice


def test_an_edit_is_held_and_the_rest_stays(plan: Plan) -> None:
    key = "layers.0.down/linear#1"
    for choice in ("B | B", "i | i", "B | o"):
        planned = on(Residual(2), with_choices(plan, {key: choice}))
        assert planned.plan.choices == plan.choices | {key: choice}
        assert planned.plan.step_time_s >= plan.step_time_s * (1 - 1e-9)
        assert not notes_of(planned)


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_lines_taken_out_of_the_fastest_plan_come_back_as_fast(data: st.DataObject) -> None:
    """The optimum with anything freed is the optimum."""
    best = BEST.get("plan") or BEST.setdefault(
        "plan", autoplan.plan(Residual(2), BATCH, devices=4, cluster="cpu", parallel=MESH)
    )
    keys = data.draw(st.sets(st.sampled_from(sorted(best.choices)), min_size=1, max_size=12))
    planned = on(Residual(2), with_choices(best, dict.fromkeys(keys)))
    assert planned.plan.step_time_s == pytest.approx(best.step_time_s, rel=1e-9)
    assert planned.plan.choices.keys() == best.choices.keys()
    listed = " ".join(notes_of(planned))
    assert all(key.rpartition("/")[2].rpartition(".")[2] in listed for key in keys)


BEST: dict[str, Plan] = {}


def test_the_choice_made_again_is_the_best_of_all(plan: Plan) -> None:
    """Brute force: every choice of the op whose line is missing, with all others held."""
    key = "layers.1.down/linear#1"
    captured = capture(Residual(2), BATCH, {})
    sites = annotate_as(captured, plan).sites
    site = next(s for s in sites if s.path == "layers.1.down" and s.kind == "op")
    times = [
        on(captured, with_choices(plan, {key: text})).plan.step_time_s
        for text in {str(candidate) for candidate in site.candidates}
    ]
    assert len(times) > 20
    planned = on(captured, with_choices(plan, {key: None}))
    assert planned.plan.step_time_s == pytest.approx(min(times), rel=1e-9)
    assert notes_of(planned) == ["plan file: new here, solved: in layers.1.down: linear#1"]


def test_an_impossible_edit_is_an_error_that_lists_what_is_possible(plan: Plan) -> None:
    for key, text, meant in (
        ("layers.0.up/linear#1", "B | oo", "B | o"),
        ("parameter layers.0.up.weight", "(B, S(7)) -> (B, S(7))", "(B, S(1))"),
        ("layers.0.norm/layer_norm#1", "b1 | B", "B | B"),
    ):
        with pytest.raises(PlanFileError) as caught:
            on(Residual(2), with_choices(plan, {key: text}))
        said = str(caught.value)
        assert key.removeprefix("parameter ") in said
        assert meant in said
        assert "this model allows" in said
    with pytest.raises(PlanFileError, match=r"did you mean 'B \| o'\?"):
        on(Residual(2), with_choices(plan, {"layers.0.up/linear#1": "B | oo"}))


def test_a_plan_of_another_model(plan: Plan) -> None:
    with pytest.raises(PlanFileError, match=r"of another model: it does not mention .*plan again"):
        on(MLP(16, 32), plan)


def test_frozen_parameters_need_no_other_file(plan: Plan) -> None:
    """B/P is B where nothing needs a gradient any more."""
    model = Residual(2)
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(False)
    planned = on(model, plan)
    assert not [note for note in notes_of(planned) if "parameter" in note and "changed" in note]


class Scales(nn.Module):
    """A list of parameters, whose names are numbers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.ones(16) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = torch.relu(x * scale)
        return x.square().mean()


def test_notes_name_parameters_that_are_numbers() -> None:
    made = autoplan.plan(Scales(2), BATCH, devices=4, cluster="cpu", parallel=MESH)
    notes = notes_of(on(Scales(4), made))
    assert "plan file: new here, solved: in scales: {2,3}" in notes
    assert "plan file: new here, solved: in the model itself: mul#3, relu#3, mul#4, relu#4" in notes


class TwoScales(nn.Module):
    """Two parameters of one shape, read by two ops, one way or the other."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(16))
        self.b = nn.Parameter(torch.ones(16))
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.b, self.a) if self.swapped else (self.a, self.b)
        return (torch.relu(x * a) + b).square().mean()


def test_decisions_that_another_wiring_sets_against_each_other() -> None:
    """Both ops and both parameters are there still, but nothing joins what was chosen for them."""
    options: dict[str, Any] = {"devices": 4, "cluster": "cpu", "parallel": MESH}
    made = autoplan.plan(TwoScales(False), BATCH, **options)
    sliced = {"parameter a": "(B, S(0)) -> (B/P, S(0))", "/mul#1": "b0 | b1"}
    whole = {"parameter b": "(B, B) -> (B/P, B/P)", "/add#1": "b0 | B/P", "/relu#1": "b0 | b1"}
    plan = on(TwoScales(False), with_choices(made, sliced | whole)).plan
    assert plan.choices == made.choices | sliced | whole
    planned = on(TwoScales(True), plan)
    assert planned.plan.choices.keys() == plan.choices.keys()
    assert planned.plan.choices["/relu#1"] == plan.choices["/relu#1"]
    [note] = notes_of(planned)
    assert "does not go with what changed, solved again" in note
    assert planned.plan.step_time_s < float("inf")
    edited = msgspec.structs.replace(plan, notes=(EDITED,))
    with pytest.raises(PlanFileError, match="contradict what they stand beside"):
        on(TwoScales(True), edited)


def test_too_little_memory_for_what_is_held(plan: Plan) -> None:
    missing = with_choices(plan, {"layers.1.down/linear#1": None})
    with pytest.raises(PlanFileError, match=r"holds leaves no plan.*memory.*Take out lines"):
        on(Residual(2), missing, memory=2000)


def test_a_model_that_changed_runs_as_the_original_does(tmp_path: Path) -> None:
    ids = token_ids(4, 16)
    arguments: tuple[Any, ...] = ((ids,), {"labels": ids})
    path = tmp_path / "plan.toml"
    pins = {"transformer.h.1": "S(2)"}
    autoplan.plan(gpt2(), *arguments, devices=2, cluster="cpu", hints=pins).save(path)
    for model in (gpt2(), gpt2(n_layer=3), gpt2(n_embd=36, n_head=3)):
        module = autoplan.parallelize(model, *arguments, plan=path)
        assert module.verify(*arguments).ok
        assert module.plan.layout("transformer.h.1") == autoplan.Layout.parse("S(2)")
