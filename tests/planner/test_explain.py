"""Why: totals that an independent plan confirms, collectives that add up, and the text itself."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import autoplan
from autoplan.errors import ConfigError, LayoutError
from autoplan.plan import Plan
from autoplan.units import seconds, size
from autoplan.why.changes import changes, without_ties
from autoplan.why.explain import explain
from autoplan.why.origin import Origin
from autoplan.why.traffic import caused
from tests.planner.models import MLP, Residual, gpt2, token_ids
from tests.planner.origins import planned

GOLDEN = Path(__file__).parent / "golden" / "explain.txt"
ONE = {"cluster": "h100", "parallel": {"mesh": {"x": 4}}}
TWO = {"cluster": "h100", "parallel": {"mesh": {"a": 2, "b": 2}}}
Planned = tuple[Plan, Origin]


def mlp(**options: Any) -> Planned:
    return planned(MLP(1024, 4096), (torch.randn(256, 1024),), **({**ONE, **options}))


def plan_mlp(**options: Any) -> Plan:
    return mlp(**options)[0]


@pytest.fixture(scope="module")
def one() -> Planned:
    return mlp()


@pytest.fixture(scope="module")
def residual() -> Planned:
    return planned(Residual(3, 64), (torch.randn(32, 64),), **TWO)


def line_of(text: str, pattern: str) -> re.Match[str]:
    found = re.search(pattern, text, re.M)
    assert found is not None, text
    return found


def test_the_next_best_of_an_op_is_the_best_plan_without_its_strategy(one: Planned) -> None:
    plan, origin = one
    for path in ("up", "down"):
        chosen = next(row.choice for row in plan.operations if row.key == f"{path}/linear#1")
        other = plan_mlp(hints={path: {"op": f"!{chosen}"}})
        text = explain(plan, origin, path)
        found = line_of(
            text, rf"next best for {path}/linear#1: (\S+), (.*) a step .* (\S+ \S+) peak"
        )
        assert found[1] in {r.choice for r in other.operations if r.path == path}
        assert found[2] == seconds(other.step_time_s)
        assert other.step_time_s > plan.step_time_s


def test_every_forced_strategy_costs_what_a_plan_with_that_pin_costs(one: Planned) -> None:
    plan, origin = one
    table = explain(plan, origin, "down/linear#1").partition("each forced")[2]
    rows = re.findall(r"^    (\S+) +(\S+ \w+) .*?(\d\S* \w*B)(  this plan)?$", table, re.M)
    assert len(rows) >= 4
    assert sum(bool(mine) for *_, mine in rows) == 1
    for label, step, peak, mine in rows:
        pinned = plan_mlp(hints={"down": {"op": label}})
        assert step == seconds(pinned.step_time_s), label
        if mine:
            assert peak == size(plan.peak_memory_bytes)


def test_the_next_best_of_a_parameter_and_of_its_storage_alone(one: Planned) -> None:
    plan, origin = one
    row = plan.tensor("up.weight")
    text = explain(plan, origin, "up.weight")
    stored = line_of(text, r"next best storage of up.weight: (\(.*\)) -> \(.*\), (.*) a step")
    assert stored[1] != row.layout
    other = plan_mlp(hints={"up.weight": {"storage": f"!{row.layout[1:-1]}"}})
    assert stored[2] == seconds(other.step_time_s)
    either = line_of(text, r"next best for parameter up.weight: .*, (\S+ \w+) a step")
    read = plan_mlp(hints={"up.weight": {"use": f"!{row.use[1:-1]}"}})
    assert either[1] == seconds(min(other.step_time_s, read.step_time_s))


@pytest.mark.parametrize("options", [ONE, TWO, TWO | {"memory": 44.0e6}])
def test_solving_again_without_a_change_is_the_plan(options: dict[str, Any]) -> None:
    plan, origin = mlp(**options)
    question, given = origin.answer(plan)
    assert given.step_time_s == pytest.approx(plan.step_time_s, rel=1e-12)
    assert given.peak_memory_bytes == plan.peak_memory_bytes
    assert question.named(given.choices) == plan.choices
    again = question.solve()
    assert again.objective == pytest.approx(given.objective, rel=1e-9)
    assert again.peak_memory_bytes <= plan.memory_limit_bytes


def test_no_time_at_all_still_gives_choices_that_fit() -> None:
    plan, origin = mlp(**TWO)
    question, given = origin.answer(plan)
    limit = given.peak_memory_bytes - 1
    answer = question.within(limit).solve(time_limit_s=0.0)
    assert answer.peak_memory_bytes <= limit
    assert answer.objective >= given.objective * (1 - 1e-9)
    assert 0.0 <= answer.gap < 1.0


def test_forcing_one_block_leaves_the_others_free(residual: Planned) -> None:
    """The total is that of a plan with the same pin on that block alone."""
    plan, origin = residual
    text = explain(plan, origin, "layers.1.up")
    label, step = line_of(text, r"next best for \S+: (.*?), (\S+ \w+) a step").groups()
    axes = dict(zip(plan.axes, label.split(" | "), strict=True))
    options = TWO | {"hints": {"layers.1.up": {"op": axes}}}
    pinned, _ = planned(Residual(3, 64), (torch.randn(32, 64),), **options)
    assert step == seconds(pinned.step_time_s)


def test_collectives_of_all_sites_are_those_of_the_plan(residual: Planned) -> None:
    """One by one they are the body's collectives, and with the prologue's what the plan prices."""
    for plan, origin in (residual, mlp(**TWO), mlp(microbatches=2)):
        question, given = origin.answer(plan)
        every = caused(question, given.choices, range(len(question.keys)))
        body = [each for each in every if each.phase == "body"]
        listed = [each for each in plan.collectives if each.phase == "body"]
        assert sum(e.count for e in body) == sum(e.count for e in listed)
        assert sum(e.count * e.bytes for e in body) == sum(e.count * e.bytes for e in listed)
        assert sum(e.time_s for e in body) == pytest.approx(sum(e.time_s for e in listed))
        ahead = [each for each in every if each.phase == "prologue"]
        listed = [each for each in plan.collectives if each.phase == "prologue"]
        assert sum(e.bytes for e in ahead) == sum(e.bytes * e.count for e in listed)


def test_collectives_of_an_op_are_those_at_its_edges() -> None:
    """Pinned to the contracted index, the op leaves addends, which its reader has summed."""
    plan, origin = mlp(hints={"down": {"op": "i"}, "up": {"op": "o"}})
    question, given = origin.answer(plan)
    at = question.keys.index("down/linear#1")
    kinds = {(e.kind, e.source) for e in caused(question, given.choices, [at])}
    assert kinds == {("all_reduce", "down/linear#1")}


def test_hints_that_forbid_alternatives_are_named() -> None:
    plan, origin = mlp(hints={"up.weight": "S(0)"})
    text = explain(plan, origin, "up.weight")
    lost, every = line_of(text, r"hints forbid (\d+) of its (\d+) choices: 'up.weight'").groups()
    assert 0 < int(lost) < int(every)
    assert "next best storage of up.weight: none that fits" in text
    assert "hints forbid" not in explain(plan, origin, "down")


def test_every_kind_of_path(residual: Planned) -> None:
    plan, origin = residual
    assert "nothing here is a choice" in explain(plan, origin, "x")
    assert "layers.1.up/linear#1" in explain(plan, origin, "layers.1")
    assert "(op on mesh" in explain(plan, origin, "layers.1.up/linear#1")
    with pytest.raises(LayoutError, match=r"'layers.1.upp' \(did you mean 'layers.1.up'\?\)"):
        explain(plan, origin, "layers.1.upp")


def test_a_tied_parameter_is_its_other_name() -> None:
    ids = token_ids(4, 16)
    plan, origin = planned(gpt2(), (ids,), devices=2, cluster="h100")
    text = explain(plan, origin, "lm_head.weight")
    assert "next best for parameter transformer.wte.weight: " in text


def test_a_plan_from_a_file_says_how_to_get_the_rest(one: Planned, tmp_path: Path) -> None:
    plan, _ = one
    plan.save(tmp_path / "plan.toml")
    text = explain(autoplan.load_plan(tmp_path / "plan.toml"), None, "up")
    assert "up/linear#1: " in text
    assert "next best" not in text
    assert "plan again, or load it on the model" in text


def test_a_changed_plan_is_no_answer(one: Planned) -> None:
    plan, origin = one
    changed = dict(plan.choices) | {"up/linear#1": "zz"}
    with pytest.raises(ConfigError, match="plan again"):
        Origin(origin.captured, origin.request, "MLP").answer(
            msgspec.structs.replace(plan, choices=changed)
        )


def test_ties_stay_as_they_were(one: Planned) -> None:
    """Choices of equal cost go back to the plan's, and nothing gets dearer."""
    plan, origin = one
    question, given = origin.answer(plan)
    other = question.solve(start=None)
    nearer = without_ties(question, other.choices, given.choices)
    assert question.price(nearer).objective <= other.objective * (1 + 1e-12)
    assert not changes(plan.choices, plan.choices)


def test_golden_text() -> None:
    """Why `down` is as it is; renewed as the golden texts of test_golden are."""
    plan, origin = mlp()
    text = explain(plan, origin, "down")
    if os.environ.get("AUTOPLAN_RENEW_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
