"""Where the plan changes: planned anew on either side of every turn that is reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from autoplan.cost_models import Cluster
from autoplan.cost_models.profile import load_profile
from autoplan.errors import ConfigError
from autoplan.plan import Plan
from autoplan.why.origin import Origin
from autoplan.why.scaling import rates
from autoplan.why.sensitivity import Sensitivity, sensitivity
from autoplan.why.turns import TIE
from tests.planner.models import MLP
from tests.planner.origins import planned

TWO = {"parallel": {"mesh": {"a": 2, "b": 2}}}
ROWS, DEVICES = 256, 4


def mlp(cluster: Any = "h100", rows: int = ROWS, **options: Any) -> tuple[Plan, Origin]:
    x = torch.empty(rows, 1024, device="meta")
    return planned(MLP(1024, 4096), (x,), DEVICES, cluster=cluster, **(TWO | options))


@pytest.fixture(scope="module")
def asked() -> tuple[Plan, Origin, Sensitivity]:
    plan, origin = mlp()
    return plan, origin, sensitivity(plan, origin)


def on(quantity: str, factor: float) -> Cluster:
    """The cluster with one rate times a factor."""
    profile = load_profile("h100")
    scale = next(scale for name, _, scale in rates(profile) if name == quantity)
    return Cluster(scale(factor), DEVICES)


def gained(old: Plan, there: tuple[Plan, Origin]) -> float:
    """What the plan made there saves, of a step, over the old choices at their price there."""
    plan, origin = there
    question, given = origin.answer(plan)
    choices = question.choices_of(old.choices)
    assert choices is not None
    return question.price(choices).objective / given.objective - 1


@pytest.mark.parametrize("way", ["below", "above"])
def test_bandwidth(asked: tuple[Plan, Origin, Sensitivity], way: Any) -> None:
    """Ten percent further the plan made there is faster than this one; ten percent nearer, not."""
    plan, _, found = asked
    turn = found.turn("node bandwidth", way)
    assert turn.factor is not None
    assert turn.factor < 1 if way == "below" else turn.factor > 1
    beyond = 0.9 if way == "below" else 1.1
    assert gained(plan, mlp(on("node bandwidth", turn.factor * beyond))) > TIE
    assert gained(plan, mlp(on("node bandwidth", turn.factor / beyond))) <= TIE
    assert turn.changes
    assert turn.kept_time_s is not None
    assert turn.step_time_s is not None
    assert turn.kept_time_s > turn.step_time_s


def test_what_does_not_change_the_plan(asked: tuple[Plan, Origin, Sensitivity]) -> None:
    plan, _, found = asked
    for way in ("below", "above"):
        unused = found.turn("network bandwidth", way)  # all four devices are in one node
        assert unused.factor is None
        assert unused.note == "the mesh does not use it"
    for way, factor in (("below", 1 / 16), ("above", 16.0)):
        rate = found.turn("compute rate", way)
        if rate.factor is None:
            assert gained(plan, mlp(on("compute rate", factor))) <= TIE


def test_memory(asked: tuple[Plan, Origin, Sensitivity]) -> None:
    """One byte less than the turn costs time; the turn itself does not."""
    plan, _, found = asked
    turn = found.turn("memory limit", "below")
    assert turn.factor is not None
    assert turn.step_time_s is not None
    least = round(turn.factor * plan.memory_limit_bytes)
    slower, _ = mlp(memory=least)
    assert slower.step_time_s == pytest.approx(turn.step_time_s, rel=1e-9)
    assert slower.step_time_s > plan.step_time_s * (1 + TIE)
    enough, _ = mlp(memory=least + 1)
    assert enough.step_time_s == pytest.approx(plan.step_time_s, rel=1e-9)
    assert found.turn("memory limit", "above").factor is None  # it does not bind


def test_more_memory_where_it_binds(asked: tuple[Plan, Origin, Sensitivity]) -> None:
    free, _, found = asked
    factor = found.turn("memory limit", "below").factor
    assert factor is not None
    tight, origin = mlp(memory=round(factor * free.memory_limit_bytes))
    turn = sensitivity(tight, origin).turn("memory limit", "above")
    assert turn.factor is not None
    more, _ = mlp(memory=tight.memory_limit_bytes * turn.factor)
    assert more.step_time_s == pytest.approx(turn.step_time_s, rel=1e-9)
    assert more.step_time_s < tight.step_time_s * (1 - TIE)


def test_batch(asked: tuple[Plan, Origin, Sensitivity]) -> None:
    plan, _, found = asked
    turn = found.turn("batch", "above")
    assert turn.factor is not None
    rows = round(turn.factor * ROWS)
    assert rows % DEVICES == 0
    assert turn.value == f"{rows} rows"
    assert gained(plan, mlp(rows=rows)) > TIE
    assert gained(plan, mlp(rows=round(0.9 * rows) // DEVICES * DEVICES)) <= TIE


def test_without_the_arguments_the_batch_is_not_varied() -> None:
    plan, origin = mlp()
    text = str(sensitivity(plan, replace(origin, recapture=None)))
    assert "not varied: the arguments are not known" in text


def test_the_table(asked: tuple[Plan, Origin, Sensitivity]) -> None:
    _, _, found = asked
    lines = str(found).splitlines()
    assert lines[0].endswith("one quantity at a time, on mesh a 2 x b 2")
    assert [line.split("  ")[1] for line in lines[2:7]] == [*found.now]
    assert len(found.turns) == 2 * len(found.now)
    with pytest.raises(KeyError, match="the quantities are"):
        found.turn("weather", "below")


def test_a_plan_that_is_not_the_best_is_said_to_be_none(asked: Any) -> None:
    """Hints leave the plan the best of what they allow; another's choices are not."""
    _, origin, _ = asked
    pinned, _ = mlp(hints={"down": {"op": {"a": "b0", "b": "b0"}}})
    found = sensitivity(pinned, origin)
    assert found.notes
    assert "not the best as things are" in str(found)


def test_a_plan_without_its_model() -> None:
    plan, _ = mlp()
    with pytest.raises(ConfigError, match=r"sensitivity\(\) solves again.*parallelize\(model"):
        sensitivity(plan, None)


def test_a_scaled_profile_differs_in_one_rate() -> None:
    profile = load_profile("h100")
    for _, rate, scale in rates(profile):
        changed = scale(2.0)
        differing = [
            name
            for name in profile.__struct_fields__
            if getattr(profile, name) != getattr(changed, name)
        ]
        assert len(differing) == 1
        assert rate > 0
        back = msgspec.structs.replace(changed, **{differing[0]: getattr(profile, differing[0])})
        assert back == profile
