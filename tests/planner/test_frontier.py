"""Time against memory: every point is the plan that its limit gives, and none beats another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoplan.errors import ConfigError, InfeasibleError
from autoplan.plan import Plan
from autoplan.why.frontier import Frontier, frontier
from autoplan.why.origin import Origin
from tests.planner.models import MLP, Residual
from tests.planner.origins import planned

TWO = {"cluster": "h100", "parallel": {"mesh": {"a": 2, "b": 2}}}


def mlp(**options: Any) -> tuple[Plan, Origin]:
    return planned(MLP(512, 2048), (torch.empty(4096, 512, device="meta"),), **(TWO | options))


@pytest.fixture(scope="module")
def asked() -> tuple[Plan, Frontier]:
    plan, origin = mlp()
    return plan, frontier(plan, origin)


def test_every_point_is_the_plan_of_its_limit(asked: tuple[Plan, Frontier]) -> None:
    _, found = asked
    assert len(found.points) >= 3
    for point in found.points:
        plan, _ = mlp(memory=point.memory_limit_bytes)
        assert point.gap == 0.0
        assert plan.step_time_s == pytest.approx(point.step_time_s, rel=1e-9)
        assert plan.peak_memory_bytes <= point.memory_limit_bytes


def test_every_point_is_slower_and_leaner_than_the_one_before(asked: tuple[Plan, Frontier]) -> None:
    plan, found = asked
    pairs = zip(found.points, found.points[1:], strict=False)
    for before, after in pairs:
        assert after.step_time_s > before.step_time_s
        assert after.peak_memory_bytes < before.peak_memory_bytes
        assert after.memory_limit_bytes < before.memory_limit_bytes
    assert all(each.peak_memory_bytes <= each.memory_limit_bytes for each in found.points)
    fastest = found.points[0]
    assert fastest.step_time_s == pytest.approx(plan.step_time_s, rel=1e-9)
    assert fastest.is_plan


def test_below_the_last_point_there_is_no_plan(asked: tuple[Plan, Frontier]) -> None:
    """The least that was found is the least that planning finds, too."""
    _, found = asked
    with pytest.raises(InfeasibleError, match="too small"):
        mlp(memory=found.points[-1].peak_memory_bytes - 1)


def test_a_tight_plan_is_marked() -> None:
    """The frontier begins at the fastest plan, whatever limit the plan had."""
    free, origin = mlp()
    points = frontier(free, origin, points=5).points
    tight, tight_origin = mlp(memory=points[-2].memory_limit_bytes)
    found = frontier(tight, tight_origin, points=5).points
    assert found[0].step_time_s == pytest.approx(free.step_time_s, rel=1e-9)
    assert not found[0].is_plan
    assert any(each.is_plan for each in found[1:])


def test_the_table(asked: tuple[Plan, Frontier]) -> None:
    _, found = asked
    lines = str(found).splitlines()
    assert lines[0] == "time and memory on mesh a 2 x b 2"
    assert len(lines) == 2 + len(found.points)
    assert lines[2].endswith("proven  <- this plan")


def test_what_is_not_proven_within_the_time_limit_has_its_gap() -> None:
    """Small blocks under a tight limit take long to prove; the points keep their order."""
    options = TWO | {"time_limit_s": 4.0}
    plan, origin = planned(Residual(2, 128), (torch.empty(256, 128, device="meta"),), **options)
    points = frontier(plan, origin, points=4).points
    assert 2 <= len(points) <= 4
    assert points[0].step_time_s == pytest.approx(plan.step_time_s, rel=1e-9)
    assert all(0.0 <= each.gap < 1.0 for each in points)
    assert [*points] == sorted(points, key=lambda each: each.step_time_s)


def test_what_cannot_be_asked() -> None:
    plan, origin = mlp()
    with pytest.raises(ConfigError, match="at least 2 points, got points=1"):
        frontier(plan, origin, points=1)
    with pytest.raises(ConfigError, match=r"frontier\(\) solves again"):
        frontier(plan, None)
