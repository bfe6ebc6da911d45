"""Rows 3, 20 and E of the capability table, and of row 5 what needs no pipeline: without one there
is one stage, so that a stage hint is read and checked, and holds already."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import autoplan
from autoplan import B, ConfigError, HintError, InfeasibleError, S
from autoplan.request import make_request
from tests.capabilities.hint_ranks import GRID, WRITTEN, Mlp, inside, on_four, written
from tests.capabilities.ranks import Held
from tests.models import gpt2, language_batch
from tests.runtime.launch import run_ranks

X = torch.randn(8, 12, dtype=torch.float64)


def plan_mlp(**options: Any) -> autoplan.Plan:
    given = {"devices": 4, "cluster": "cpu", "parallel": GRID} | options
    return autoplan.plan(Mlp(given.pop("layout", None)), (X,), **given)


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Any]]:
    return run_ranks(on_four, 4, timeout_s=200)


# -- 3: n-d SBP given by the user ---------------------------------------------------------------


def check_written(ranks: list[Held]) -> None:
    assert len(ranks) == 4
    for held in ranks:
        assert held.weights["up.weight"] == (16, 12)
        assert held.weights["down.weight"] == (12, 16)
        assert held.local["up"] == (8, 16)
        assert held.error < 1e-9


def check_inside(ranks: list[Held]) -> None:
    for held in ranks:
        assert held.local["act"] == (4, 16)
        assert held.error < 1e-9


@pytest.mark.parametrize("way", WRITTEN)
def test_row_03_text_and_objects(way: str) -> None:
    check_written(written(4, way))


@pytest.mark.parametrize(
    "layout", ["(S(1), S(0))", (S(1), S(0)), {"a": "S(1)", "b": S(0)}], ids=str
)
def test_row_03_inside_forward(layout: Any) -> None:
    check_inside(inside(4, layout))


def test_row_03_on_real_ranks(four_ranks: list[dict[str, Any]]) -> None:
    for way in WRITTEN:
        check_written([result[way] for result in four_ranks])
    check_inside([result["inside"] for result in four_ranks])
    for result in four_ranks:
        assert result["verified"].startswith("equal"), result["verified"]


@pytest.mark.parametrize(
    "layout",
    ["(S(0), B, S(1))", (S(0), B, S(1)), "(S(0), S(1))", "a=S(0), one=S(7), b=S(1)",
     {"a": "S(0)", "one": "!S", "b": S(1)}],
    ids=str,
)  # fmt: skip
def test_row_03_axes_of_size_1_collapse(layout: Any) -> None:
    """Three named axes, one of size 1: it may be spoken of, and is no axis of the mesh."""
    mesh = {"mesh": {"a": 2, "one": 1, "b": 2}}
    if isinstance(layout, str) and "S(7)" in layout:
        with pytest.raises(HintError, match=r"S\(7\).*2 dimensions"):
            plan_mlp(parallel=mesh, hints={"up.weight": layout})
        return
    for options in ({"hints": {"up.weight": layout}}, {"layout": layout}):
        plan = plan_mlp(parallel=mesh, **options)
        assert str(plan.mesh) == "a 2 x b 2"
    assert plan_mlp(parallel=mesh, hints={"up.weight": layout}).layout("up.weight") == (S(0), S(1))


# -- 5: stages, of which there is one ------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, -1, "0"])
def test_row_05_a_stage_is_read(stage: Any) -> None:
    """The head on the last stage, and a free parameter on the first: with one stage both hold."""
    hints = {"lm_head": {"stage": -1}, "transformer.wpe.weight": {"stage": stage}}
    args, kwargs = language_batch()
    plan = autoplan.plan(gpt2(), args, kwargs, devices=2, cluster="cpu", hints=hints)
    free = autoplan.plan(gpt2(), args, kwargs, devices=2, cluster="cpu")
    assert plan.step_time_s == pytest.approx(free.step_time_s, rel=1e-9)
    assert len(plan.hints) == 2


@pytest.mark.parametrize("stage", [1, 3, -2])
def test_row_05_a_stage_that_the_plan_does_not_have_is_refused(stage: int) -> None:
    with pytest.raises(HintError, match=rf"the plan has 1 stage.*0 or -1, got {stage}"):
        plan_mlp(hints={"down": {"stage": stage}})
    with pytest.raises(HintError, match=rf"the plan has 1 stage.*got {stage}"):
        plan_mlp(hints={"down.weight": f"stage: {stage}"})
    with pytest.raises(HintError, match=rf"hint_ranks.py:\d+: the plan has 1 stage.*got {stage}"):
        plan_mlp(layout=f"stage: {stage}")


# -- 20: data size inferred ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "pipeline", "devices", "data"),
    [(2, 1, 8, 4), (4, 1, 8, 2), (8, 1, 8, 1), (1, 1, 6, 6), (3, 1, 6, 2)],
)
def test_row_20_the_data_size_is_inferred(
    tensor: int, pipeline: int, devices: int, data: int
) -> None:
    parallel = {"tensor": {"size": tensor, "mode": "1d"}, "pipeline": pipeline}
    plan = plan_mlp(devices=devices, parallel=parallel)
    sizes = dict(zip(plan.axes, plan.sizes, strict=True))
    assert sizes.get("data", 1) == data
    assert sizes.get("tensor", 1) == tensor


def test_row_20_a_pipeline_counts_in_what_is_inferred() -> None:
    """Tensor 2, pipeline 2 on 8 devices leave data 2."""
    parallel = {"tensor": {"size": 2, "mode": "1d"}, "pipeline": 2}
    request = make_request(8, "cpu", parallel)
    assert [str(choice.mesh) for choice in request.meshes] == ["data 2 x tensor 2"]
    assert request.num_stages == 2
    plan = plan_mlp(devices=8, parallel=parallel)
    sizes = dict(zip(plan.axes, plan.sizes, strict=True))
    assert (sizes["data"], sizes["tensor"]) == (2, 2)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"tensor": {"size": 3, "mode": "1d"}}, r"3 does not divide 8.*9 devices"),
        ({"tensor": {"size": 2, "mode": "1d"}, "pipeline": 3},
         r"tensor x pipeline = 6 does not divide 8.*12 devices"),
        ({"data": 3, "tensor": {"size": 2, "mode": "1d"}}, r"data 3 x tensor 2 = 6 devices.*=8"),
        ({"data": 2, "tensor": {"size": 2, "mode": "1d"}, "pipeline": 4},
         r"data 2 x tensor 2 x pipeline 4 = 16 devices.*devices=8"),
        ({"pipeline": 3}, r"pipeline size 3 does not divide 8.*9 devices"),
        ({"pipeline": 4, "data": 4}, r"data 4 x tensor 1 x pipeline 4 = 16 devices.*devices=8"),
        ({"pipeline": 4, "mesh": {"a": 4}}, r"a 4 x pipeline 4 = 16 devices.*devices=8"),
        ({"data": 16}, r"data 16 x tensor 1 = 16 devices.*devices=8"),
    ],
)  # fmt: skip
def test_row_20_an_impossible_product_is_an_error_with_its_numbers(
    parallel: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_mlp(devices=8, parallel=parallel)


# -- E: the price of a pin, and the doctor -------------------------------------------------------


def test_row_e_every_pin_has_its_price_in_time_and_bytes() -> None:
    hints = {"up.weight": "use: S(1)", "down.bias": "!S", "x": "S(1)"}
    plan = plan_mlp(layout="B", hints=hints)
    prices = {each.hint: each for each in plan.pins}
    assert len(prices) == 5  # three from outside, one inside forward, and all of them together
    for key, value in hints.items():
        others = {k: v for k, v in hints.items() if k != key}
        without = plan_mlp(layout="B", hints=others)
        price = prices[f"{key!r}: {value!r}"]
        assert price.time_s == pytest.approx(
            plan.step_time_s - without.step_time_s, abs=1e-9 * plan.step_time_s
        )
        if price.time_s:
            assert price.memory_bytes == plan.peak_memory_bytes - without.peak_memory_bytes
    (inner,) = (each for name, each in prices.items() if name.startswith("autoplan.hint"))
    without = plan_mlp(hints=hints)
    assert inner.time_s == pytest.approx(plan.step_time_s - without.step_time_s, abs=1e-12)
    assert max(each.time_s or 0.0 for each in plan.pins) > 0
    section = plan.report().partition("\nhints")[2]
    assert all(name in re.sub(r"\s+", " ", section) for name in prices if len(name) < 60)


def test_row_e_the_doctor_names_the_smallest_conflict_and_the_way_out() -> None:
    hints = {"x": "S(0)", "up.weight": "S(0)", "down.weight": "S(1)", "up.w*": "!S(0)"}
    with pytest.raises(HintError) as caught:
        plan_mlp(hints=hints)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  hint 'up.weight': 'S(0)'", "  hint 'up.w*': '!S(0)'"]
    assert lines[3].startswith("why: ")
    times = {
        key: plan_mlp(hints={k: v for k, v in hints.items() if k != key}).step_time_s
        for key in ("up.weight", "up.w*")
    }
    best = min(times, key=lambda key: times[key])
    assert lines[4].startswith(f"cheapest to drop: hint {best!r}: {hints[best]!r}; without it")


def test_row_e_the_doctor_counts_memory_among_what_conflicts() -> None:
    hints = {"*.weight": "B"}
    whole = plan_mlp(hints=hints)
    free = plan_mlp(hints={"*.weight": "S"})
    limit = (whole.memory.parameters + whole.memory.optimizer + whole.memory.gradients) - 1
    assert free.peak_memory_bytes < limit
    with pytest.raises(InfeasibleError) as caught:
        plan_mlp(hints=hints, memory=limit)
    text = str(caught.value)
    assert "hint '*.weight': 'B'" in text
    assert re.search(r"the memory limit of .* a device; with .* a step takes", text)
    assert re.search(r"'B'; without it a step takes .*, with ", text)
