"""Hints inside forward: nothing in eager mode, a pin on the value at this place under a plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoplan
from autoplan import BP, B, P, S
from autoplan.capture import Captured, capture, in_double
from autoplan.errors import HintError
from autoplan.hints.inside import hint
from autoplan.hints.text import Prefer
from autoplan.layouts import Entry
from autoplan.planning import Planned, plan_captured
from autoplan.request import make_request
from tests.planner.models import Fn, captured_and_equal

ONE: dict[str, Any] = {"devices": 2, "cluster": "cpu", "parallel": {"mesh": {"x": 2}}}
TWO: dict[str, Any] = {"devices": 4, "cluster": "cpu", "parallel": {"mesh": {"a": 2, "b": 2}}}


def line_of(text: str) -> str:
    """Where this file says `text`, as errors and plans write it."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if text in line and "line_of" not in line)
    return f"{__file__}:{number}"


# -- eager ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    ["S(1)", "(B, S(-2))", "!S", "S(0)|B", {"tensor": "!P"}, S(0), (S(0), B), Prefer("S(1)", ms=1),
     "stage: 3", {"stage": -1}],
    ids=str,
)  # fmt: skip
def test_in_eager_mode_it_returns_its_argument(layout: Any) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = x * 2
    assert hint(x, layout) is x
    assert hint(y, layout) is y
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3, 4), 2.0))


@pytest.mark.parametrize(
    ("value", "layout", "message"),
    [
        (torch.zeros(2, 2), "Q", r"autoplan\.hint\(\.\.\., 'Q'\) at .*: cannot read layout 'Q'"),
        (torch.zeros(2, 2), "S(2)", r"S\(2\) splits a dimension.*2 dimensions"),
        (torch.zeros(2, 2), "a=!S(-3)", r"S\(-3\) splits a dimension.*2 dimensions"),
        (torch.zeros(()), "(B, S(0))", r"S\(0\) splits a scalar"),
        (torch.zeros(2, 2), "use: B", r"'use' is for the paths of parameters"),
        (torch.zeros(2, 2), {"op": "i"}, r"'op' is for the paths of parameters"),
        (torch.zeros(2, 2), "stage: first", r"a stage is a whole number"),
        (torch.zeros(2, 2), "stage: 1 ~ 1 ms", r"a stage has no price"),
        (torch.zeros(2, 2), None, r"cannot read None as a layout"),
        (3, "B", r"it pins a tensor, got int"),
    ],
)
def test_a_bad_layout_raises_at_the_call(value: Any, layout: Any, message: str) -> None:
    with pytest.raises(HintError, match=message) as caught:
        hint(value, layout)  # the bad call
    assert line_of("# the bad call") in str(caught.value)


def test_a_bad_layout_raises_at_planning_too() -> None:
    model = Fn(lambda self, x: hint(self.fc(x), "S(2)").sum(), fc=nn.Linear(4, 4))  # bad in forward
    with pytest.raises(HintError, match=re.escape(line_of("# bad in forward"))):
        autoplan.plan(model, (torch.randn(4, 4),), **ONE)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("(B, S(0), B)", r"has 3 entries, the mesh a 2 x b 2 has 2"),
        ("c=S(0)", r"names axis 'c'; the axes are \['a', 'b'\]"),
        ("!S & !B & !P", r"leaves '' no layout|leaves 'fc' no layout"),
        ("stage: 3", r"the plan has 1 stage, so that a stage is 0 or -1, got 3"),
    ],
)
def test_what_the_mesh_refuses_names_the_line(layout: str, message: str) -> None:
    model = Fn(lambda self, x: hint(self.fc(x), layout).sum(), fc=nn.Linear(4, 4))  # at this mesh
    with pytest.raises(HintError, match=message) as caught:
        autoplan.plan(model, (torch.randn(4, 4),), **TWO)
    assert line_of("# at this mesh") in str(caught.value)


def test_torch_export_and_compile_see_nothing_of_it() -> None:
    model = Fn(lambda self, x: hint(self.fc(x), "S(1)").sum(), fc=nn.Linear(4, 4))
    x = torch.randn(4, 4)
    exported = torch.export.export(model, (x,), strict=False)
    assert "autoplan" not in exported.graph_module.code
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


# -- the captured graph -----------------------------------------------------------------------


def written(captured: Captured) -> list[str]:
    """The graph without the names of its nodes."""
    number = {node: i for i, node in enumerate(captured.graph.nodes)}
    lines = []
    for node in captured.graph.nodes:
        args = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{number[n]}")
        lines.append(f"{node.op} {node.target if node.op == 'call_function' else ''} {args}")
    return lines


Hinted = Callable[[Any, Tensor, Callable[[Tensor, Any], Tensor]], Tensor]


def pinned_forwards() -> dict[str, tuple[Hinted, list[str], dict[str, Any]]]:
    """Forwards that call `pin`: what they pin, as the ops that make the values, and members."""

    def result(m: Any, x: Tensor, pin: Any) -> Any:
        return pin(m.fc(x), "S(0)").sum()

    def unread(m: Any, x: Tensor, pin: Any) -> Any:
        y = m.fc(x)
        pin(y, "S(0)")
        return y.sum()

    def twice(m: Any, x: Tensor, pin: Any) -> Any:
        y = pin(pin(m.fc(x), "S(0)"), "!P")
        pin(y, "B|S(0)")
        return y.sum()

    def readers(m: Any, x: Tensor, pin: Any) -> Any:
        y = m.fc(x)
        z = pin(y, "S(1)")
        return (y.sin() + z.cos() + z).sum()

    def view(m: Any, x: Tensor, pin: Any) -> Any:
        return pin(m.fc(x).view(2, -1, 8), "S(-1)").sum()

    def pieces(m: Any, x: Tensor, pin: Any) -> Any:
        a, b = m.fc(x).sin().chunk(2, -1)
        return (pin(a, "S(0)") * pin(b, "B")).sum()

    def argument(m: Any, x: Tensor, pin: Any) -> Any:
        return m.fc(pin(x, "S(0)")).sum()

    def parameter(m: Any, x: Tensor, pin: Any) -> Any:
        return (x @ pin(m.fc.weight, "S(0)").t() + m.fc.bias).sum()

    def buffer(m: Any, x: Tensor, pin: Any) -> Any:
        return (m.fc(x) * pin(m.table, "S(0)")).sum()

    def constant(m: Any, x: Tensor, pin: Any) -> Any:
        return (m.fc(x) * pin(torch.arange(8.0), "B")).sum()

    def returned(m: Any, x: Tensor, pin: Any) -> Any:
        return pin(m.fc(x), "S(0)")

    def in_place(m: Any, x: Tensor, pin: Any) -> Any:
        y = pin(m.fc(x), "S(0)")
        y += 1
        return y.square().sum()

    def through_a_view(m: Any, x: Tensor, pin: Any) -> Any:
        y = m.fc(x)
        pin(y.view(-1, 4), "S(0)")[:, 1:3] += 1
        return y.square().sum()

    def without_gradient(m: Any, x: Tensor, pin: Any) -> Any:
        with torch.no_grad():
            scale = pin(m.fc(x).abs().mean(0), "B")
        return (m.fc(x) / scale).sum()

    def copied(m: Any, x: Tensor, pin: Any) -> Any:
        return pin(m.fc(x).contiguous(), "S(0)").contiguous().sum()

    def repeated(m: Any, x: Tensor, pin: Any) -> Any:
        for _ in range(3):
            x = pin(torch.relu(m.fc(x)), "S(0)")
        return x.sum()

    members = {"table": torch.randn(8, 8)}
    return {
        "result": (result, ["linear"], {}),
        "unread": (unread, ["linear"], {}),
        "twice": (twice, ["linear"] * 3, {}),
        "readers": (readers, ["linear"], {}),
        "view": (view, ["view"], {}),
        "pieces": (pieces, ["getitem", "getitem"], {}),
        "argument": (argument, ["placeholder"], {}),
        "parameter": (parameter, ["placeholder"], {}),
        "buffer": (buffer, ["placeholder"], members),
        "constant": (constant, ["placeholder"], {}),
        "returned": (returned, ["linear"], {}),
        "in_place": (in_place, ["linear"], {}),
        "through_a_view": (through_a_view, ["view"], {}),
        "without_gradient": (without_gradient, ["mean"], {}),
        "copied": (copied, ["linear"], {}),
        "repeated": (repeated, ["relu"] * 3, {}),
    }


def forwards(name: str) -> tuple[nn.Module, nn.Module, list[str]]:
    """The model with its hints, the same without, and what is pinned."""
    forward, pinned, members = pinned_forwards()[name]

    def build(pin: Any) -> nn.Module:
        torch.manual_seed(0)
        model = Fn(lambda self, x: forward(self, x, pin), fc=nn.Linear(8, 8))
        for path, value in members.items():
            model.register_buffer(path, value)
        return model

    return build(hint), build(lambda x, layout: x), pinned


@pytest.mark.parametrize("name", pinned_forwards())
def test_the_graph_is_that_of_the_model_without_hints(name: str) -> None:
    model, plain, pinned = forwards(name)
    x = torch.randn(8, 8)
    captured, bare = captured_and_equal(model, x), capture(plain, (x,))
    assert written(captured) == written(bare)
    nodes = {node.name: node for node in captured.graph.nodes}
    made = [nodes[pin.node] for pin in captured.pins]
    ops = [n.op if n.op == "placeholder" else re.sub(r"aten\.|\..*|<.* |>", "", str(n.target))
           for n in made]  # fmt: skip
    assert ops == pinned
    assert not bare.pins
    assert in_double(captured).pins == captured.pins


def layout_of(planned: Planned, node: str) -> tuple[Entry, ...]:
    """The layout of a pinned value, in which every reader finds it."""
    nodes = {each.name: each for each in planned.annotated.captured.graph.nodes}
    from autoplan.sites import tensor_of

    source = planned.annotated.values[tensor_of(nodes[node])]
    site = planned.annotated.sites[source.site]
    return site.candidates[planned.choices[source.site]].outputs[source.output]


@pytest.mark.parametrize("name", pinned_forwards())
def test_the_value_lies_as_asked_on_both_axes(name: str) -> None:
    model, _, _ = forwards(name)
    captured = capture(model, (torch.randn(8, 8),))
    planned = plan_captured(captured, make_request(**TWO), "model")
    allowed = {
        "S(0)": {S(0)}, "S(1)": {S(1)}, "S(-1)": {S(2)}, "B": {B}, "!P": {S(0)}, "B|S(0)": {S(0)},
    }  # fmt: skip
    assert captured.pins
    for pin in captured.pins:
        assert set(layout_of(planned, pin.node)) <= allowed[pin.layout], pin
    origins = {f"autoplan.hint(..., {pin.layout!r}) at {pin.place}" for pin in captured.pins}
    assert origins == set(planned.plan.hints)


@pytest.mark.parametrize("name", pinned_forwards())
def test_a_pinned_model_runs_and_verifies(name: str) -> None:
    model, plain, _ = forwards(name)
    x = torch.randn(8, 8)
    module = autoplan.parallelize(model, (x,), **TWO)
    torch.testing.assert_close(module(x), plain(x))
    check = module.verify((x,))
    assert check.ok, check


@pytest.mark.parametrize(
    ("layout", "allowed"),
    [
        ("!S", {B, BP, P}),
        ("!S(0) & !P", {B, BP, S(1)}),
        ("!B", {P, S(0), S(1)}),
        ("P", {P}),
        ({"a": "S(1)", "b": "S(1)"}, {S(1)}),
        ((S(1), S(1)), {S(1)}),
        (Prefer("S(1)", ms=1e6), {S(1)}),
        ("S(1) ~ 1e6 ms", {S(1)}),
    ],
    ids=lambda each: "" if isinstance(each, set) else str(each),
)
def test_all_of_the_language_holds_inside_forward(layout: Any, allowed: set[Entry]) -> None:
    model = Fn(lambda self, x: hint(self.fc(x), layout).square().sum(), fc=nn.Linear(8, 8))
    captured = capture(model, (torch.randn(8, 8),))
    planned = plan_captured(captured, make_request(**TWO), "model")
    (pin,) = captured.pins
    assert set(layout_of(planned, pin.node)) <= allowed


class Stack(nn.Module):
    """Blocks that pin their own result, so that every block has the same pin."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return hint(x + torch.relu(self.fc(x)), "S(1)")  # in a block

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Stack.Block() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()  # type: ignore[no-any-return]


def test_in_repeated_blocks_each_is_pinned_by_one_line() -> None:
    plan = autoplan.plan(Stack(), (torch.randn(8, 8),), **ONE)
    assert all(plan.layout(f"layers.{layer}") == (S(1),) for layer in range(3))
    assert plan.hints == (f"autoplan.hint(..., 'S(1)') at {line_of('# in a block')}",)


def test_a_pin_that_agrees_changes_no_line_of_the_program() -> None:
    """The plan of the model without hints, asked for by hints: the emitted program is the same."""

    def model(pin: Any) -> nn.Module:
        torch.manual_seed(0)
        forward = lambda self, x: self.down(pin(torch.relu(self.up(x)))).square().mean()  # noqa: E731
        return Fn(forward, up=nn.Linear(64, 256), down=nn.Linear(256, 64))

    x = torch.randn(64, 64)
    plain = autoplan.parallelize(model(lambda y: y), (x,), **ONE)
    (at,) = [i for i, row in enumerate(plain.plan.operations) if "relu" in row.op]
    layout = plain.plan.operations[at].layout
    pinned = autoplan.parallelize(model(lambda y: hint(y, layout)), (x,), **ONE)
    assert pinned.plan.step_time_s == pytest.approx(plain.plan.step_time_s, rel=1e-9)

    def program(module: autoplan.ParallelModule) -> str:
        return re.sub(r"#.*", "", module.code)

    assert program(pinned) == program(plain)


def test_a_value_that_no_one_reads_is_noted() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        hint(x.sin(), "S(0)")  # read by no one
        return self.fc(x).sum()  # type: ignore[no-any-return]

    captured = capture(Fn(forward, fc=nn.Linear(8, 8)), (torch.randn(8, 8),))
    assert not captured.pins
    (note,) = [each for each in captured.notes if "autoplan.hint" in each]
    assert line_of("# read by no one") in note


def test_the_saved_plan_of_a_pinned_model_loads(tmp_path: Path) -> None:
    x = torch.randn(8, 8)
    model = Stack()
    plan = autoplan.plan(model, (x,), **ONE)
    plan.save(tmp_path / "plan")
    module = autoplan.parallelize(model, (x,), plan=tmp_path / "plan", **ONE)
    assert module.plan.layout("layers.1") == (S(1),)
    torch.testing.assert_close(module(x), model(x))


def test_a_parameter_that_cannot_be_split_is_not_blamed_on_a_batch() -> None:
    model = Fn(lambda self, x: (x @ hint(self.fc.weight, "S(0)").t()).sum(), fc=nn.Linear(8, 3))
    options = {**ONE, "devices": 8, "parallel": {"mesh": {"x": 8}}}
    with pytest.raises(HintError, match=r"leaves 'fc\.weight' no layout") as caught:
        autoplan.plan(model, (torch.randn(8, 8),), **options)
    assert "batch" not in str(caught.value)
