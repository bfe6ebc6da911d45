"""The report's model: the tree keeps every op, the wiring every collective, memory its peaks."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from autoplan.errors import InfeasibleError
from autoplan.html.advice import advice
from autoplan.html.alternatives import alternatives_of
from autoplan.html.memory import bars_of, courses_of
from autoplan.html.spending import Spending, spending_of
from autoplan.html.tree import Node, Tree, tree_of
from autoplan.html.wiring import asked_of, in_order_of_the_graph, wire
from autoplan.html.words import layout_words, percent
from autoplan.pipelining.joined import sends_of
from autoplan.plan import Plan, load_plan
from autoplan.trace.predicted import predicted
from autoplan.why.traffic import caused
from tests.html.plans import piped, residual, small

PLANS = {"small": small, "residual": residual, "piped": piped}
plans = pytest.mark.parametrize("name", PLANS)


def occurrences(tree: Tree) -> dict[Node, int]:
    """How many places of the model every node stands for."""
    found: dict[Node, int] = {}

    def visit(node: Node, times: int) -> None:
        found[node] = times * node.count
        for child in node.children:
            visit(child, found[node])

    visit(tree.root, 1)
    return found


@plans
def test_the_tree_holds_every_op_and_its_seconds(name: str) -> None:
    plan = PLANS[name]()
    tree = tree_of(plan)
    counts = Counter(tree.places.values())
    times = occurrences(tree)
    for node, count in counts.items():
        assert times[node] == (1 if node.kind == "input" else count), node.path
    total = sum(row.forward_s + row.backward_s for row in plan.operations)
    assert tree.root.seconds() == pytest.approx(total, rel=1e-9)


def test_equal_blocks_are_one_node_and_another_stands_alone() -> None:
    tree = tree_of(small())
    blocks = next(node for node in tree.root.walk() if node.path == "transformer.h").children
    spelled = [node.members or (node.name,) for node in blocks]
    assert [name for names in spelled for name in names] == ["0", "1", "2", "3", "4"]
    assert ("2",) in spelled
    assert max(map(len, spelled)) > 1


@plans
def test_no_collective_is_lost(name: str) -> None:
    plan = PLANS[name]()
    asked = asked_of(plan)
    wiring = wire(tree_of(plan), asked)
    kept = [
        each
        for found in (wiring.edges, wiring.at, wiring.between)
        for moved in found.values()  # type: ignore[attr-defined]
        for each in moved
    ]
    sends = [each for each in kept if each.kind == "send"]
    known = sends_of(plan) if plan.pipeline is not None else ()
    for way in ("forward", "backward"):
        sent, planned = (
            [e.time_s for e in found if e.direction == way] for found in (sends, known)
        )
        assert sum(sent) == pytest.approx(sum(planned), rel=1e-9)
    kept = [each for each in kept if each.kind != "send"]
    every = [
        each
        for one in asked
        for each in caused(
            one.question, one.given.choices, range(len(one.question.annotated.sites))
        )
    ]
    assert len(kept) == len(every)
    assert sum(e.time_s for e in kept) == pytest.approx(sum(e.time_s for e in every), rel=1e-9)


def test_edges_follow_the_graph() -> None:
    wiring = wire(tree_of(residual()), asked_of(residual()))
    pairs = {(a.path, b.path) for a, b in wiring.edges}
    assert ("layers.0.up/linear#1", "layers.0/relu#1") in pairs
    assert ("layers.0/relu#1", "layers.0.down/linear#1") in pairs


@plans
def test_memory_of_the_charts_is_the_plan_s(name: str) -> None:
    plan = PLANS[name]()
    asked = asked_of(plan)
    bars, note = bars_of(plan, asked)
    assert note == ""
    if plan.pipeline is None:
        assert [sum(bar.amounts) for bar in bars] == [plan.peak_memory_bytes]
    else:
        peaks = {row.rank: row.rank_peak_memory_bytes for row in plan.pipeline.stages}
        assert [sum(bar.amounts) for bar in bars] == [peaks[rank] for rank in sorted(peaks)]
    for one, course in zip(asked, courses_of(plan, asked), strict=True):
        most = one.question.timeline.totals(one.given.choices).max()
        assert max(map(sum, course.amounts)) == pytest.approx(most, abs=len(course.amounts[0]))
        assert len(course.amounts) == len(course.moments) <= 320


@plans
def test_shares_add_up_to_the_step(name: str) -> None:
    plan = PLANS[name]()
    spending = spending_of(plan, asked_of(plan))
    assert spending.is_known
    whole = sum(each.time_s for each in spending.shares)
    assert whole == pytest.approx(plan.step_time_s, rel=1e-9)
    assert sum(spending.moved.values()) == pytest.approx(spending.seconds("communicating"))


@plans
def test_shares_are_those_of_the_trace(name: str) -> None:
    """Of the average rank: what its tracks of computing and communicating hold."""
    plan = PLANS[name]()
    spending = spending_of(plan, asked_of(plan))
    found = dict.fromkeys(("compute", "communication"), 0.0)
    for span in predicted(plan).spans:
        is_event = span.category in ("bubble", "once") or (
            plan.pipeline is not None and span.name.startswith(("forward ", "backward "))
        )
        kind = span.track.rpartition(" ")[2]
        if kind in found and not is_event:
            found[kind] += span.time_s / plan.mesh.num_devices
    assert spending.seconds("computing") == pytest.approx(found["compute"], rel=1e-6)
    assert spending.seconds("communicating") == pytest.approx(found["communication"], rel=1e-6)


def test_an_alternative_is_a_plan_that_can_be_had() -> None:
    """Forced and all solved again costs no more, and the plan itself is the first of its rows."""
    plan = residual()
    tree, asked = tree_of(plan), asked_of(plan)
    found = alternatives_of(tree, asked, budget_s=60.0)
    assert found.left_out == 0
    question, given = asked[0].question, asked[0].given
    compared = 0
    for at, (key, site) in enumerate(zip(question.keys, question.annotated.sites, strict=True)):
        node = tree.places.get((0, site.path if site.kind == "parameter" else key))
        if node not in found.found or node in found.like or compared > 12:
            continue
        rows = found.found[node]
        assert [row.time_s for row in rows if row.is_plan] == [0.0]
        for row in rows:
            kept = np.array([str(each) == row.choice for each in site.candidates])
            try:
                best = question.solve({at: kept}, start=given.choices, time_limit_s=10.0)
            except InfeasibleError:
                continue
            if row.time_s is not None and row.fits:
                assert best.objective - given.objective <= row.time_s + 1e-12
                assert row.time_s >= -1e-12, "the plan is proven best"
                compared += 1
    assert compared > 8


def test_no_time_leaves_all_out() -> None:
    plan = residual()
    found = alternatives_of(tree_of(plan), asked_of(plan), budget_s=0.0)
    assert not found.found
    assert found.left_out > 3


def test_a_plan_from_a_file_has_no_model(tmp_path: Path) -> None:
    plan = _loaded(small(), tmp_path)
    assert asked_of(plan) == ()
    tree = tree_of(plan)
    wiring = in_order_of_the_graph(tree)
    assert wiring.edges
    assert courses_of(plan, ()) == []
    bars, _ = bars_of(plan, ())
    assert [sum(bar.amounts) for bar in bars] == [small().peak_memory_bytes]
    _, note = bars_of(_loaded(piped(), tmp_path), ())
    assert "read from a file" in note


def _loaded(plan: Plan, folder: Path) -> Plan:
    plan.save(folder / "plan.toml")
    return load_plan(folder / "plan.toml")


def test_advice_says_what_a_hint_costs() -> None:
    plan = small()
    costly = [pin for pin in plan.pins if (pin.time_s or 0.0) > 0.005 * plan.step_time_s]
    lines = advice(plan, (), Spending((), {}))
    assert sum(line.startswith("Give up") for line in lines) == min(3, len(costly)) > 0
    assert all(re.search(r"\d", line) for line in lines)


def test_advice_simulates_more_microbatches() -> None:
    lines = advice(piped(), (), Spending((), {}))
    found = [line for line in lines if "microbatches=8" in line or "twice the microbatches" in line]
    assert len(found) == 1


def test_words() -> None:
    assert layout_words("(S(0), B)", ("data", "tensor")) == (
        "cut along dimension 0 over data; whole on tensor"
    )
    assert layout_words("(B, B)", ("data", "tensor")) == "whole on every rank"
    assert layout_words("(B, B/P)", ("data", "tensor")) == (
        "whole on data; whole, with addends of its gradient, on tensor"
    )
    assert layout_words("(B/P)", ("x",)) == "whole, with addends of its gradient, on every rank"
    assert layout_words("(P, S(1))", ("a", "b")) == "addends over a; cut along dimension 1 over b"
    assert layout_words("()", ()) == "whole"
    assert [percent(*pair) for pair in ((0, 5), (1, 1000), (1, 4))] == ["0 %", "<1 %", "25 %"]
