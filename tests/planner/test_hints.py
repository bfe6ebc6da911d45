"""Hints through `plan`: what is asked for is what is planned, never for less time than free."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autoplan
from autoplan.errors import HintError, InfeasibleError
from autoplan.layouts import BP, B, Layout, S
from autoplan.plan import Plan
from tests.planner.models import MLP, Residual, gpt2, token_ids

TWO = {"mesh": {"a": 2, "b": 2}}


def plan_mlp(hints: Any = None, parallel: Any = TWO, **options: Any) -> Plan:
    given = {"devices": 4, "cluster": "cpu", "parallel": parallel} | options
    return autoplan.plan(MLP(64, 256), (torch.randn(32, 64),), hints=hints, **given)


@pytest.fixture(scope="module")
def free() -> Plan:
    return plan_mlp()


@pytest.mark.parametrize(
    ("hints", "layouts"),
    [
        ({"up.weight": "S(0)"}, {"up.weight": [(S(0), S(0))]}),
        ({"up.weight": "(B, S(1))"}, {"up.weight": [(B, S(1))]}),
        ({"up.weight": "S(-1)"}, {"up.weight": [(S(1), S(1))]}),
        ({"up.weight": Layout((S(0), B))}, {"up.weight": [(S(0), B)]}),
        ({"up.weight": S(0)}, {"up.weight": [(S(0), S(0))]}),
        ({"up.weight": [S(1), "B"]}, {"up.weight": [(S(1), B)]}),
        ({"up.weight": {"b": "S(1)"}}, {"up.weight": [(e, S(1)) for e in (B, S(0), S(1))]}),
        ({"up.weight": "S(0)|S(1)"},
         {"up.weight": [(x, y) for x in (S(0), S(1)) for y in (S(0), S(1))]}),
        ({"up.weight": {"a": "B", "b": "B|S(0)"}}, {"up.weight": [(B, B), (B, S(0))]}),
        ({"*.weight": "S(0)"}, {key: [(S(0), S(0))] for key in ("up.weight", "down.weight")}),
        ({"*.bias": "B"}, {key: [(B, B)] for key in ("up.bias", "down.bias")}),
        ({"up": {"a": "S(1)"}}, {"up": [(S(1), e) for e in (B, BP, S(0), S(1))]}),
        ({"up": "S(-1)"}, {"up": [(S(1), S(1))]}),
        ({"x": {"b": "S(0)"}}, {"x": [(B, S(0)), (S(0), S(0)), (S(1), S(0))]}),
        ({"x": "S(-2)"}, {"x": [(S(0), S(0))]}),
        ({"up.weight": "(S(0), B)", "up": {"a": "S(1)"}, "x": "B"},
         {"up.weight": [(S(0), B)], "x": [(B, B)]}),
    ],
    ids=str,
)  # fmt: skip
def test_a_hinted_layout_is_the_plans(hints: Any, layouts: dict[str, Any], free: Plan) -> None:
    plan = plan_mlp(hints)
    for path, allowed in layouts.items():
        assert plan.layout(path) in allowed, path
    assert plan.step_time_s >= free.step_time_s * (1 - 1e-9)
    assert len(plan.hints) == len(hints)


def test_a_hint_that_agrees_costs_nothing(free: Plan) -> None:
    hints = {row.path: row.layout for row in free.tensors if row.kind == "parameter"}
    assert plan_mlp(hints).step_time_s == pytest.approx(free.step_time_s, rel=1e-9)


def test_hints_on_one_axis() -> None:
    plan = plan_mlp({"up.weight": "S(1)", "up": "S(0)"}, {"mesh": {"x": 4}})
    assert plan.layout("up.weight") == (S(1),)
    assert plan.layout("up") == (S(0),)


def test_hints_leave_a_mesh_search_the_meshes_that_they_fit() -> None:
    plan = plan_mlp({"up.weight": "(S(0), S(1))"}, None)
    assert plan.mesh.ndim == 2
    assert plan.layout("up.weight") == (S(0), S(1))


def test_a_tied_parameter_may_be_hinted_under_each_name() -> None:
    ids = token_ids(4, 16, 100)
    options = {"devices": 4, "cluster": "cpu", "parallel": {"mesh": {"x": 4}}}
    model = gpt2(vocab_size=100)
    for name in ("lm_head.weight", "transformer.wte.weight"):
        plan = autoplan.plan(model, (ids,), {"labels": ids}, hints={name: "S(0)"}, **options)
        for path in ("lm_head.weight", "transformer.wte.weight"):
            assert plan.layout(path) == (S(0),), (name, path)


def test_globs_reach_every_block() -> None:
    options = {"devices": 2, "cluster": "cpu", "parallel": {"mesh": {"x": 2}}}
    hints = {"layers.*.up.weight": "S(0)", "layers.[0-9]": "S(1)"}
    plan = autoplan.plan(Residual(3), (torch.randn(8, 16),), hints=hints, **options)
    for layer in range(3):
        assert plan.layout(f"layers.{layer}.up.weight") == (S(0),)
        assert plan.layout(f"layers.{layer}") == (S(1),)


def test_a_star_stands_for_one_part_of_a_path() -> None:
    """`layers.*` is every layer, not every parameter below one."""
    options = {"devices": 2, "cluster": "cpu", "parallel": {"mesh": {"x": 2}}}
    plan = autoplan.plan(Residual(3), (torch.randn(8, 16),), hints={"layers.*": "S(1)"}, **options)
    assert all(plan.layout(f"layers.{layer}") == (S(1),) for layer in range(3))


def test_one_device_ignores_entries_for_all_axes() -> None:
    assert plan_mlp({"up.weight": "S(0)"}, None, devices=1).layout("up.weight") == ()


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({"up.wieght": "B"}, r"matches 'up.wieght' \(did you mean 'up.weight'\? 1 matches\)"),
        ({"*.weigth": "B"}, r"no parameter, module or argument matches"),
        ({"up.weight": "S(2)"}, r"'up.weight': 'S\(2\)'.*2 dimensions.*S\(-2\) to S\(1\)"),
        ({"up.weight": "Q"}, r"cannot read layout 'Q'"),
        ({"up.weight": "(B, B, B)"}, r"has 3 entries, the mesh a 2 x b 2 has 2"),
        ({"up.weight": {"c": "B"}}, r"axis 'c'; the axes are \['a', 'b'\]"),
        ({"up.weight": "P"}, r"'up.weight': 'P' leaves 'up.weight' no layout on mesh a 2 x b 2"),
        ({3: "B"}, r"a hint's key is a path"),
        *(
            pytest.param(
                {"up.weight": value}, ".")
            for value in (None, 3, {"a": 3})
        ),
    ],
    ids=str,
)  # fmt: skip
def test_bad_hints_are_refused(hints: Any, message: str) -> None:
    with pytest.raises(HintError, match=message):
        plan_mlp(hints)


def test_a_split_that_leaves_most_ranks_without_rows_is_refused() -> None:
    model = MLP(3, 8)
    with pytest.raises(HintError, match=r"'up.weight': 'S\(1\)' leaves 'up.weight' no layout"):
        autoplan.plan(
            model, (torch.randn(4, 3),), devices=8, cluster="cpu",
            parallel={"mesh": {"x": 8}}, hints={"up.weight": "S(1)"},
        )  # fmt: skip


def test_a_batch_that_cannot_be_split_says_its_rows() -> None:
    with pytest.raises(HintError, match=r"'x' has 3 rows.*cannot be split over x 8.*multiple of 8"):
        autoplan.plan(
            MLP(), (torch.randn(3, 8),), devices=8, cluster="cpu",
            parallel={"mesh": {"x": 8}}, hints={"x": "S(0)"},
        )  # fmt: skip


def test_hints_that_contradict_each_other() -> None:
    with pytest.raises(HintError, match=r"'up\.weight': 'B' leaves 'up\.weight' no layout"):
        plan_mlp({"up.*": "S(0)", "up.weight": "B"})


def test_hints_that_no_op_joins() -> None:
    """Residual's stream is added up: its addends cannot lie in ways that no addition joins."""
    with pytest.raises((HintError, InfeasibleError), match="hint"):
        plan_mlp({"up.weight": "S(0)", "up": "P", "x": "S(0)", "*": "S(1)"})


@pytest.mark.parametrize(
    ("options", "hints"),
    [
        pytest.param(
            {"preset": "ddp", "parallel": None},
            {"x": "B"},
        ),
        ({}, {"x": "B/P"}),
    ],
    ids=["preset", "gradient"],
)
def test_an_argument_hint_that_conflicts_is_not_blamed_on_the_batch(
    options: Any, hints: Any
) -> None:
    with pytest.raises(HintError) as caught:
        plan_mlp(hints, **options)
    assert "most ranks would get none" not in str(caught.value)


class Pieces(torch.nn.Module):
    """A module whose result is a piece of a split tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).sin().chunk(2, -1)[0]


def test_results_that_are_pieces_can_be_planned_and_hinted() -> None:
    model = torch.nn.Sequential(Pieces(), torch.nn.Linear(4, 4))
    options = {"devices": 2, "cluster": "cpu", "parallel": {"mesh": {"x": 2}}}
    x = torch.randn(4, 8)
    autoplan.plan(model, (x,), **options)
    plan = autoplan.plan(model, (x,), hints={"0": "S(0)"}, **options)
    assert plan.layout("0") == (S(0),)
