"""The doctor: it names a smallest conflicting set, which brute force knows, and the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autoplan import B, Layout, S
from autoplan.capture import Captured, capture
from autoplan.errors import HintError, InfeasibleError
from autoplan.hints.conflicts import explain_conflict
from autoplan.hints.demands import Demand
from autoplan.hints.inside import hint
from tests.planner.demanded import Demanded, Failure, demanded
from tests.planner.models import MLP, gpt2, llama, token_ids

ONE: dict[str, Any] = {"devices": 2, "parallel": {"mesh": {"x": 2}}}
TWO: dict[str, Any] = {"devices": 4, "parallel": {"mesh": {"a": 2, "b": 2}}}
FREE: dict[str, Any] = {"devices": 4, "parallel": None}


class Nested(nn.Module):
    """A module whose result is its child's, and the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Sequential(nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.outer(x)
        return result


class Pinned(nn.Module):
    """An MLP with two hints inside forward, on one value."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = hint(self.up(x), "S(1)")
        return self.down(hint(torch.relu(y), {"x": "!S(0)"})).square().mean()


class PinnedTwice(Pinned):
    def forward(self, x: Tensor) -> Tensor:
        y = hint(hint(self.up(x), "S(1)"), "!S")
        return self.down(torch.relu(y)).square().mean()


@dataclass(frozen=True)
class Case:
    """Hints that conflict: `named` are the keys of those which the error must name.

    A key that is no path is part of another demand's text. None: any smallest conflict will do.
    """

    hints: dict[str, Any]
    named: tuple[str, ...] | None
    options: dict[str, Any]
    model: str = "mlp"


BOTH_MODES = {"devices": 4, "parallel": {"data": 2, "tensor": {"size": 2, "mode": "1d"}}}
FREE_TENSOR = {"devices": 4, "parallel": {"data": 2, "tensor": {"size": 2, "mode": "free"}}}

CASES = {
    "globs overlap": Case({"up.*": "S(0)", "up.weight": "B"}, ("up.*", "up.weight"), TWO),
    "two globs": Case({"*.weight": "S(0)", "down.w*": "S(1)"}, ("*.weight", "down.w*"), ONE),
    "never split": Case({"up.weight": "S(0)", "*.weight": "!S"}, ("up.weight", "*.weight"), TWO),
    "neither whole nor split": Case(
        {"up.weight": "!S", "up.w*": "!B"}, ("up.weight", "up.w*"), ONE),
    "one axis": Case(
        {"up.weight": {"a": "S(0)"}, "*.weight": {"a": "!S(0)"}}, ("up.weight", "*.weight"), TWO),
    "tuple and dict": Case(
        {"up.weight": "(S(0), B)", "up.w*": {"b": "S(1)"}}, ("up.weight", "up.w*"), TWO),
    "texts by axis": Case(
        {"up.weight": "a=S(0), b=!S", "up.w*": "(*, S(1))"}, ("up.weight", "up.w*"), TWO),
    "objects": Case(
        {"up.weight": Layout((S(0), B)), "up.w*": [B, B]}, ("up.weight", "up.w*"), TWO),
    "three by alternatives": Case(
        {"up.weight": "S(0)|S(1)", "*.weight": "S(1)|B", "up.w*": "B|S(0)"},
        ("up.weight", "*.weight", "up.w*"), TWO),
    "three by refusals": Case(
        {"up.weight": "S", "*.weight": "!S(0)", "up.w*": "!S(1)"},
        ("up.weight", "*.weight", "up.w*"), ONE),
    "four": Case(
        {"up.weight": "S(0)|S(1)|B", "*.weight": "!S(0)", "up.w*": "!S(1)", "?p.weight": "!B"},
        ("*.weight", "up.w*", "?p.weight"), ONE),
    "storage by name": Case(
        {"up.weight": "S(0)", "up.w*": {"storage": "B"}}, ("up.weight", "up.w*"), ONE),
    "how a step reads it": Case(
        {"up.weight": "use: S(0)", "*.weight": {"use": "!S"}}, ("up.weight", "*.weight"), ONE),
    "results of modules": Case({"up": "S(0)", "u?": "S(1)"}, ("up", "u?"), ONE),
    "a result never split": Case({"up": "!S", "u*p": "S(1)"}, ("up", "u*p"), TWO),
    "an argument": Case({"x": "S(0)", "?": "B"}, ("x", "?"), ONE),
    "an output": Case({"output": "B", "out*": "P"}, ("output", "out*"), ONE),
    "a child's result": Case(
        {"outer": "S(0)", "outer.0": "S(1)"}, ("outer", "outer.0"), ONE, "nested"),
    "a module's result is the output": Case(
        {"outer.0": "!B & !P", "output": "!S"}, ("outer.0", "output"), ONE, "nested"),
    "indices of ops": Case({"up": "op: o", "u*": "op: !o"}, ("up", "u*"), ONE),
    "a preset and a weight": Case(
        {"up.weight": "S(1)"}, ("up.weight", "preset='ddp'"),
        {**FREE, "devices": 2, "preset": "ddp"}),
    "a preset and a whole weight": Case(
        {"up.weight": "B", "down.weight": "S(0)"}, ("up.weight", "preset='fsdp'"),
        {**FREE, "devices": 2, "preset": "fsdp"}),
    "a preset and an argument": Case(
        {"x": "B"}, ("x", "preset='ddp'"), {**FREE, "devices": 2, "preset": "ddp"}),
    "a tensor mode and an argument": Case(
        {"x": {"tensor": "S(0)"}}, ("x", "parallel tensor mode='1d'"), BOTH_MODES),
    "a data axis and an argument": Case(
        {"x": {"data": "B"}, "up": {"tensor": "S(1)"}}, ("x", "parallel data=2"), FREE_TENSOR),
    "a preset for transformers": Case(
        {"model.layers.0": "S(0)"}, ("model.layers.0", "preset='megatron'"),
        {**FREE, "devices": 2, "preset": "megatron"}, "llama"),
    "sequence parallelism": Case(
        {"model.layers.*": "!S(1)", "lm_head.weight": "S(0)"},
        ("model.layers.*", "preset='megatron-sp'"),
        {**FREE, "devices": 2, "preset": "megatron-sp"}, "llama"),
    "tied weights": Case(
        {"lm_head.weight": "S(0)", "transformer.wte.weight": "!S", "transformer.h.0": "S(1)"},
        ("lm_head.weight", "transformer.wte.weight"), ONE, "gpt2"),
    "one block of several": Case(
        {"transformer.h.*.mlp.c_fc.weight": "S(1)", "transformer.h.1.mlp*": "!S"},
        ("transformer.h.*.mlp.c_fc.weight", "transformer.h.1.mlp*"), ONE, "gpt2"),
    "meshes": Case(
        {"up.weight": {"devices": "S(0)"}, "down.weight": {"outer": "S(0)"}},
        ("up.weight", "down.weight"), FREE),
    "numbers of axes": Case(
        {"up.weight": "(S(0), S(1))", "down.weight": {"devices": "B"}, "x": "S(0)"},
        ("up.weight", "down.weight"), FREE),
    "inside forward": Case({"up": "S(0)"}, ("up", "autoplan.hint(..., 'S(1)')"), ONE, "pinned"),
    "inside forward, by axis": Case(
        {"up": "S(1)", "down.weight": "B", "*.weight": "S(0)"}, ("down.weight", "*.weight"), ONE,
        "pinned"),
    "inside forward, twice": Case(
        {"up.weight": "B"}, ("autoplan.hint(..., 'S(1)')", "autoplan.hint(..., '!S')"), ONE,
        "pinned twice"),
    "among many": Case(
        {"up.weight": "S(0)", "down.weight": "S(1)", "x": "S(0)", "up.bias": "B", "up.w*": "B"},
        ("up.weight", "up.w*"), ONE),
    "two conflicts": Case(
        {"up.weight": "S(0)", "up.w*": "B", "down.weight": "S(0)", "down.w*": "B"}, None, ONE),
    "a smaller conflict beside a larger": Case(
        {"up.weight": "S(0)|S(1)", "*.weight": "S(1)|B", "up.w*": "B|S(0)", "x": "S(0)", "?": "B"},
        ("x", "?"), ONE),
    "wishes are none": Case(
        {"*.weight": "S(1) ~ 1 ms", "up.weight": "S(0)", "up.w*": "B"}, ("up.weight", "up.w*"),
        ONE),
}  # fmt: skip


@pytest.fixture(scope="module")
def graphs() -> dict[str, Captured]:
    ids = token_ids(4, 16, 100)
    x = torch.randn(32, 16)
    return {
        "mlp": capture(MLP(64, 256), (torch.randn(32, 64),)),
        "nested": capture(Nested(), (x,)),
        "pinned": capture(Pinned(), (x,)),
        "pinned twice": capture(PinnedTwice(), (x,)),
        "gpt2": capture(gpt2(vocab_size=100, n_layer=2), (ids,), {"labels": ids}),
        "llama": capture(llama(vocab_size=100, num_key_value_heads=4), (ids,), {"labels": ids}),
    }


def listed(failure: Failure) -> list[str]:
    """The demands that an error lists."""
    head, *lines = str(failure).splitlines()
    assert head == "these cannot hold together, though all but any one of them can:"
    return [line.strip() for line in lines[: lines.index(next(filter(is_reason, lines)))]]


def is_reason(line: str) -> bool:
    return line.startswith("why: ")


@pytest.mark.parametrize("name", CASES)
def test_conflicting_hints_are_named(graphs: dict[str, Captured], name: str) -> None:
    case = CASES[name]
    problem = demanded(graphs[case.model], hints=case.hints, **case.options)
    failure = problem.explained()
    found = listed(failure)
    smallest = [{str(each) for each in conflict} for conflict in problem.conflicts()]
    assert set(found) in smallest, f"{failure}\nbut the smallest conflicts are {smallest}"
    assert len(found) > 1
    if case.named is not None:
        assert smallest == [set(found)]
        wanted = [f"hint {key!r}: {case.hints[key]!r}" if key in case.hints else key
                  for key in case.named]  # fmt: skip
        assert len(found) == len(wanted)
        assert all(any(text.startswith(w) for text in found) for w in wanted), found
    assert isinstance(failure, HintError)
    check_way_out(problem, failure, found)


@pytest.mark.parametrize(
    "hints",
    [
        pytest.param({"*.weight": "B", "x": "S(0)"}, id="one"),
        pytest.param({"up.weight": "B", "down.weight": "B", "up": "S(0)"}, id="two"),
    ],
)
def test_memory_conflicts_with_what_needs_it(
    graphs: dict[str, Captured], hints: dict[str, Any]
) -> None:
    """A limit under which all whole weights do not fit, and all but any one of them do."""
    heavy = {key: value for key, value in hints.items() if "weight" in key}

    def least(kept: dict[str, Any]) -> int:
        """Bytes at which there is a plan, to a few percent."""
        low, high = 10_000, 2_000_000
        while high > 1.03 * low:
            middle = int((low * high) ** 0.5)
            fails = demanded(graphs["mlp"], hints=kept, **ONE, memory=middle)
            low, high = (middle, high) if fails.fails(fails.demands) else (low, middle)
        return high

    light = max(least({k: v for k, v in heavy.items() if k != key}) for key in heavy)
    both = least(heavy)
    assert both > 1.1 * light
    limit = int((light * both) ** 0.5)
    problem = demanded(graphs["mlp"], hints=hints, **ONE, memory=limit)
    failure = problem.explained()
    assert isinstance(failure, InfeasibleError)
    found = listed(failure)
    assert len(found) == len(heavy) + 1
    assert [{str(e) for e in each} for each in problem.conflicts()] == [set(found)]
    assert any(text.startswith("the memory limit of") for text in found)
    assert re.search(r"the memory limit of .* a device; with .*B a step takes", str(failure))
    check_way_out(problem, failure, found)


def check_way_out(problem: Demanded, failure: Failure, found: list[str]) -> None:
    """Every member is offered, the one with the fastest plan first, with this plan's numbers."""
    lines = str(failure).splitlines()
    offers = [line for line in lines if line.startswith(("cheapest to drop: ", "or: "))]
    assert offers[0].startswith("cheapest")
    assert len(offers) == len(found)
    times = {}
    for each in problem.demands:
        if str(each) in found:
            others = [other for other in problem.demands if other != each]
            if problem.fails(others) is not None:
                assert "the other hints conflict, too" in offers[0]
                others = [o for o in others if str(o) in found]
            times[str(each)] = problem.plan(others).step_time_s
    order = [re.sub(r"^(cheapest to drop|or): ", "", line) for line in offers]
    named = [next(text for text in found if line.startswith(f"{text};")) for line in order]
    assert sorted(named) == sorted(found)
    assert [times[text] for text in named] == sorted(times.values())


def test_there_are_thirty_conflicts_and_more() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize(
    ("hints", "options", "message"),
    [
        ({"up.wieght": "B", "x": "S(0)"}, ONE, r"matches 'up.wieght' \(did you mean 'up.weight'"),
        ({"x": "S(0)", "up.weight": "S(5)"}, ONE, r"'up.weight': 'S\(5\)'.*2 dimensions"),
        ({"up.bias": "!S & !B", "x": "S(0)"}, ONE, r"'up.bias': '!S & !B' leaves 'up.bias' no"),
        ({"up": "op: zz", "x": "S(0)"}, ONE, r"'up': 'op: zz' names an index that no op"),
        ({"up": {"stage": 1}, "x": "S(0)"}, ONE, r"'up': {'stage': 1}: the plan has 1 stage"),
        ({"x": "S(0)"}, {**ONE, "memory": 10}, r"memory of 10 B a device is too small"),
    ],
)  # fmt: skip
def test_one_demand_alone_keeps_its_own_error(
    graphs: dict[str, Captured], hints: Any, options: Any, message: str
) -> None:
    failure = demanded(graphs["mlp"], hints=hints, **options).explained()
    assert re.search(message, str(failure)), failure
    assert "cannot hold together" not in str(failure)


def test_a_wrong_path_is_found_without_planning(graphs: dict[str, Captured]) -> None:
    """The error names one hint, which is tried first and fails before anything is solved."""
    hints = {"up.weight": "S(0)", "x": "S(0)", "down.wieght": "B", "up.bias": "B"}
    problem = demanded(graphs["mlp"], hints=hints, **ONE)
    tried: list[Any] = []

    def plan(demands: Any) -> Any:
        tried.append(demands)
        return problem.plan(demands)

    failure = problem.fails(problem.demands)
    assert failure is not None
    bad = Demand("hint", "'down.wieght': 'B'", "'down.wieght'")
    assert str(explain_conflict(problem.demands, plan, failure)) == str(failure)
    assert (bad,) in tried
    assert all(bad in each for each in tried)


def test_without_anything_to_give_up_the_error_stays() -> None:
    """Where there is no plan even without all demands, none of them is to blame."""
    wall = InfeasibleError("no plan at all")

    def plan(demands: Any) -> Any:
        raise wall

    demands = [Demand("hint", f"'{i}': 'B'") for i in range(4)]
    assert explain_conflict(demands, plan, wall) is wall


@given(st.integers(2, 6), st.data())
def test_the_conflict_found_is_a_smallest_one(count: int, data: st.DataObject) -> None:
    """Any demands of which some sets conflict: one of the least size is named, by brute force."""
    demands = [Demand("hint", f"'{i}': 'B'") for i in range(count)]
    sets = st.sets(st.sampled_from(demands), min_size=2)
    walls = data.draw(st.lists(sets, min_size=1, max_size=4))
    least = min(map(len, walls))
    named = data.draw(st.booleans())  # whether errors name what they are about

    class Plan:
        step_time_s, peak_memory_bytes = 1.0, 1

    def plan(kept: Any) -> Any:
        for wall in walls:
            if wall <= set(kept):
                raise HintError(" and ".join(sorted(e.text for e in wall)) if named else "conflict")
        return Plan()

    with pytest.raises(HintError) as failure:
        plan(demands)
    found = listed(explain_conflict(demands, plan, failure.value))
    assert set(found) in [{str(e) for e in wall} for wall in walls if len(wall) == least]


def test_a_search_that_is_cut_short_says_so() -> None:
    """Two conflicts, of three and of two demands: with no plan to spare, the first one found."""
    a, b, c, d, e = demands = [Demand("hint", f"'{name}': 'B'") for name in "abcde"]

    class Plan:
        step_time_s, peak_memory_bytes = 1.0, 1

    def plan(kept: Any) -> Any:
        if {a, b, c} <= set(kept) or {d, e} <= set(kept):
            raise HintError("conflict")
        return Plan()

    whole = explain_conflict(demands, plan, HintError("conflict"))
    assert set(listed(whole)) == {str(d), str(e)}
    cut = str(explain_conflict(demands, plan, HintError("conflict"), max_plans=1))
    assert set(cut.splitlines()[1:4]) == {f"  {each}" for each in (a, b, c)}
    assert "the search for one was cut short" in cut
