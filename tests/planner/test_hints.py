"""Hints through `plan`: what is asked for is what is planned, never for less time than free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import autoplan
from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.errors import HintError, InfeasibleError
from autoplan.hints import Hint
from autoplan.hints.text import Prefer
from autoplan.layouts import BP, B, Layout, P, S
from autoplan.mesh import Mesh
from autoplan.plan import Plan
from autoplan.registry import rules_in_force
from tests.planner.models import MLP, Residual, gpt2, token_ids

TWO = {"mesh": {"a": 2, "b": 2}}
ONE = {"mesh": {"x": 4}}
SPLITS = (S(0), S(1))


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
        ({"up.weight": "!S"}, {"up.weight": [(B, B)]}),
        ({"up.weight": "!B"}, {"up.weight": [(x, y) for x in SPLITS for y in SPLITS]}),
        ({"up.weight": "!S(1) & !B"}, {"up.weight": [(S(0), S(0))]}),
        ({"up.weight": "(!S, S & !S(0))"}, {"up.weight": [(B, S(1))]}),
        ({"up.weight": "a=!S, b=S(-1)"}, {"up.weight": [(B, S(1))]}),
        ({"up.weight": "(*, S(1))"}, {"up.weight": [(e, S(1)) for e in (B, *SPLITS)]}),
        ({"up": "!S & !P"}, {"up": [(x, y) for x in (B, BP) for y in (B, BP)]}),
        ({"up": {"a": "!B", "b": "!B"}},
         {"up": [(x, y) for x in (P, *SPLITS) for y in (P, *SPLITS)]}),
        ({"x": "!S(1)"}, {"x": [(x, y) for x in (B, S(0)) for y in (B, S(0))]}),
        ({"output": "!P"}, {"output": [(x, y) for x in (B, BP) for y in (B, BP)]}),
        ({"*": {"stage": 0}}, {}),
        ({"up": "S(1); stage: -1"}, {"up": [(S(1), S(1))]}),
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
        ({"up": "S(2)"}, r"hint 'up': 'S\(2\)'.*2 dimensions.*S\(-2\) to S\(1\)"),
        ({"x": "!S(2)"}, r"hint 'x': '!S\(2\)'.*2 dimensions"),
        ({"up.weight": "!S & !B"}, r"'!S & !B' leaves 'up.weight' no layout.*Drop or widen it"),
        ({"up.weight": "S(0) & S(1)"}, r"'&' joins one list of alternatives"),
        ({"up": "use: B"}, r"'use' is for parameters"),
        ({"x": {"storage": "B"}}, r"'storage' is for parameters"),
        ({"x": "op: i"}, r"'op' speaks of the ops of modules"),
        ({"up": "op: k"}, r"'up': 'op: k' names an index that no op there.*there are .*\bi, o\b"),
        ({"up": {"stage": 1}}, r"the plan has 1 stage, so that a stage is 0 or -1, got 1"),
        ({"up.weight": "stage: -2"}, r"the plan has 1 stage"),
        ({"up.weight": "S(0) ~ much"}, r"cannot read the price in 'S\(0\) ~ much'"),
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


def test_a_result_of_several_that_lacks_a_dimension_is_not_meant() -> None:
    """`S(1)` of a module that returns a matrix and a vector speaks of the matrix."""

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.linear(x)
            return y.sin(), y.sum(-1)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            matrix, vector = self.two(x)
            return (matrix + vector[:, None]).square().mean()

    options = {"devices": 2, "cluster": "cpu", "parallel": {"mesh": {"x": 2}}}
    plan = autoplan.plan(Outer(), (torch.randn(4, 8),), hints={"two": "S(1)"}, **options)
    assert plan.hints == ("'two': 'S(1)'",)
    with pytest.raises(HintError, match=r"'two': 'S\(2\)'.*dimension"):
        autoplan.plan(Outer(), (torch.randn(4, 8),), hints={"two": "S(2)"}, **options)


@pytest.mark.parametrize("use", ["B/P", "S(1)", "!S & !B/P"])
def test_how_a_step_reads_a_parameter(use: str) -> None:
    hints = {"up.weight": {"storage": "S(0)", "use": use}}
    row = plan_mlp(hints, ONE).tensor("up.weight")
    assert row.layout == "(S(0))"
    assert row.use == {"!S & !B/P": "(B)"}.get(use, f"({use})")


@pytest.mark.parametrize("index", ["i", "o", "B", "i|o"])
def test_the_index_over_which_an_op_is_split(index: str) -> None:
    """`op` pins the ops of a module by the index that they are split over; plan.explain shows it.

    Ops of the module that have no such index stay free.
    """
    plan = plan_mlp({"up": {"op": index}, "down": {"op": f"!{index.split('|')[0]}"}}, ONE)
    choices = {row.path: row.choice for row in plan.operations if "linear" in row.op}
    assert choices["up"] in index.split("|")
    assert choices["down"] != index.split("|")[0]
    free = {row.path: row.choice for row in plan_mlp({"up": "B", "*": "op: o"}, ONE).operations}
    assert free["up"] == free["down"] == "o"


def test_a_wish_holds_as_long_as_it_costs_less_than_its_price() -> None:
    """One wish, on one tensor: the plan is the pinned one or the free one, by what is worth it."""
    free = plan_mlp(parallel=ONE)
    pinned = plan_mlp({"down.weight": {"use": "S(0)"}}, ONE)
    cost_ms = (pinned.step_time_s - free.step_time_s) * 1e3
    assert cost_ms > 0, "the pin is to cost something"
    wish = {"use": "S(0)"}
    cheap = plan_mlp({"down.weight": Prefer(wish, ms=0.5 * cost_ms)}, ONE)
    assert cheap.step_time_s == pytest.approx(free.step_time_s, rel=1e-9)
    assert cheap.tensor("down.weight").use != "(S(0))"
    assert any("is not met at 1 of 1 places" in note for note in cheap.notes)
    dear = plan_mlp({"down.weight": f"use: S(0) ~ {2 * cost_ms:.9f} ms"}, ONE)
    assert dear.tensor("down.weight").use == "(S(0))"
    assert dear.step_time_s == pytest.approx(pinned.step_time_s, rel=1e-9)


def test_a_wish_that_nothing_meets_is_noted() -> None:
    plan = plan_mlp({"up.bias": Prefer("!S & !B", ms=1)}, ONE)
    assert any("cannot be met at 'up.bias'" in note for note in plan.notes)
    assert plan.step_time_s == pytest.approx(plan_mlp(parallel=ONE).step_time_s, rel=1e-9)


def test_wishes_of_one_place_add_up() -> None:
    """A wish each way: the dearer one is met, and what they cost is no part of the step time."""
    prices = {"up.weight": "S(0) ~ 400 ms", "up.w*": "S(1) ~ 300 ms", "*p.weight": "S(1) ~ 200 ms"}
    plan = plan_mlp(prices, ONE)
    assert plan.layout("up.weight") == (S(1),)
    assert plan.step_time_s < 0.1


def test_a_hint_that_pins_nothing_is_refused() -> None:
    """A module that hands on what it is given computes no value, and a container has no ops."""

    class Idle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if x.sin().ndim > 1 else x  # an op that no one reads

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Idle())
    options = {"devices": 2, "cluster": "cpu", "parallel": {"mesh": {"x": 2}}}
    with pytest.raises(
        HintError, match=r"'1': 'op: i' speaks of ops, and the modules .* have none"
    ):
        autoplan.plan(model, (torch.randn(4, 8),), hints={"1": "op: i"}, **options)
    plan = autoplan.plan(model, (torch.randn(4, 8),), hints={"1.inner": "op: i"}, **options)
    choices = {row.path: row.choice for row in plan.operations}
    assert choices["1.inner"] == "i"


def test_wishes_for_one_block_set_it_apart() -> None:
    """Repeated blocks share their choice; one with a wish of its own is another kind of block."""
    captured = capture(Residual(3), (torch.randn(8, 16),))
    wished = frozenset({S(0)})
    wish = Hint("layers.1.up.weight", "use", {"x": wished}, "a wish", price_s=1e-3)
    annotated = annotate(captured, Mesh.of(x=2), rules_in_force(), (wish,))
    sites = {site.path: site for site in annotated.sites if site.kind == "parameter"}
    first, second, third = (sites[f"layers.{i}.up.weight"].candidates for i in range(3))
    assert first == second
    assert first is third
    assert first is not second
    (preference,) = annotated.preferences
    assert annotated.sites[preference.site].path == "layers.1.up.weight"
    for candidate, penalty_s in zip(second, preference.penalty_s, strict=True):
        assert penalty_s == (0.0 if candidate.outputs[0] == (S(0),) else 1e-3)
    every = replace(wish, pattern="layers.*.up.weight")
    annotated = annotate(captured, Mesh.of(x=2), rules_in_force(), (every,))
    sites = {site.path: site for site in annotated.sites if site.kind == "parameter"}
    assert len({id(sites[f"layers.{i}.up.weight"].candidates) for i in range(3)}) == 1
    assert len(annotated.preferences) == 3


def test_a_hint_on_a_module_without_a_result_is_refused() -> None:
    """It counts, and hands on what it is given."""

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x.detach().mean(0))
            return x

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Counting(), torch.nn.Linear(8, 8))
    options = {"devices": 2, "cluster": "cpu", "parallel": {"mesh": {"x": 2}}}
    with pytest.raises(HintError, match=r"'1': 'B' names modules, none of which computes a tensor"):
        autoplan.plan(model, (torch.randn(4, 8),), hints={"1": "B"}, **options)
