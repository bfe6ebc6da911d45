"""Rules of a user's own ops: registered, proven, and used by plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoplan
from autoplan import registry
from autoplan.errors import RuleError
from autoplan.layouts import Layout, Split
from autoplan.strategies import RULES
from autoplan.strategies.rule import Rule
from tests.models import ideal_cluster


@torch.library.custom_op("autoplan_tests::project", mutates_args=())
def project(x: Tensor, weight: Tensor, bias: Tensor, scale: float = 1.0) -> Tensor:
    """`scale` times a linear layer: an op that says nothing of what it computes."""
    return scale * (x @ weight.t()) + bias


@project.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, scale: float = 1.0) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.scale = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    rows, columns = grad.flatten(0, -2), x.flatten(0, -2)
    return ctx.scale * grad @ weight, ctx.scale * rows.t() @ columns, rows.sum(0), None


project.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("autoplan_tests::fill", mutates_args=("x",))
def fill(x: Tensor) -> None:
    x.fill_(1.0)


@torch.library.custom_op("autoplan_tests::without_gradient", mutates_args=())
def without_gradient(x: Tensor) -> Tensor:
    return 2 * x


@without_gradient.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


NAME = "autoplan_tests.project.default"
NOTATION = "*b i, o i, +o -> *b o"
FACTS: dict[str, Any] = {"sums": True, "partial": ({0}, {1}), "saves": (0, 1), "kind": "matmul"}


def example(*rows: int) -> tuple[Any, ...]:
    return torch.randn(*rows, 8), torch.randn(6, 8), torch.randn(6)


@pytest.fixture(autouse=True)
def _registry_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(24, 8) / 8)
        self.up_bias = nn.Parameter(torch.randn(24))
        self.down = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(project(x, self.up, self.up_bias, 0.5).relu()).square().mean()


# -- the plan -------------------------------------------------------------------------------


def parallel(devices: int, **options: Any) -> autoplan.ParallelModule:
    torch.manual_seed(0)
    cluster = ideal_cluster(devices)
    return autoplan.parallelize(Projected(), (BATCH,), devices=devices, cluster=cluster, **options)


BATCH = torch.randn(8, 4, 8)


def test_a_plan_splits_the_op_once_it_has_a_rule() -> None:
    before = parallel(4)
    assert [row.op for row in before.plan.operations_without_rule] == [NAME]
    assert NAME in before.report()
    autoplan.register_rule(project, NOTATION, **FACTS)
    after = parallel(4)
    assert not after.plan.operations_without_rule
    assert "without a rule" not in after.report()
    [row] = [row for row in after.plan.operations if row.op == NAME]
    assert row.has_rule
    assert after.plan.step_time_s < before.plan.step_time_s
    assert after.verify((BATCH,), {}).ok


@pytest.mark.parametrize("entry", ["S(0)", "S(1)"])
def test_the_split_that_a_hint_asks_for_is_right(entry: str) -> None:
    """Columns are split by o, rows by i, which leaves the result P."""
    autoplan.register_rule(NAME, NOTATION, **FACTS)
    module = parallel(2, hints={"up": {"devices": entry}}, parallel={"mesh": {"devices": 2}})
    assert module.plan.layout("up") == Layout((Split(int(entry[2])),))
    assert module.verify((BATCH,), {}).ok


def test_a_saved_plan_is_followed_by_the_same_rules(tmp_path: Any) -> None:
    autoplan.register_rule(project, NOTATION, **FACTS)
    module = parallel(4)
    module.plan.save(tmp_path / "plan.json")
    again = parallel(4, plan=autoplan.load_plan(tmp_path / "plan.json"))
    assert again.plan.step_time_s == module.plan.step_time_s
    registry.unregister_rule(project)
    with pytest.raises(autoplan.PlanFileError):
        parallel(4, plan=autoplan.load_plan(tmp_path / "plan.json"))


# -- the proof ------------------------------------------------------------------------------


def test_the_rule_is_proven_on_every_mesh() -> None:
    proofs = autoplan.register_rule(project, NOTATION, examples=[example(5, 2)], **FACTS)
    assert all(proof.ok for proof in proofs)
    assert {proof.mesh for proof in proofs} == set(registry.MESHES)
    assert {label for proof in proofs for label in proof.labels} >= {"b0", "b1", "i", "o", "P"}


def test_literal_and_keyword_arguments_stay_what_they_are() -> None:
    examples = [(*example(1), 0.5), (*example(1), {"scale": 3.0})]
    proofs = autoplan.register_rule(project, NOTATION, examples=examples, **FACTS)
    assert len(proofs) % 2 == 0


_WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a bias added once a rank": ("*b i, o i, o -> *b o", {"sums": True}, r"i on d 2.*\[i\]"),
    "a bias that is linear": (NOTATION, {"partial": ({2},)}, "P on d 2: wrong.*partial"),
    "rows taken for columns": ("*b i, i o, o -> *b o", {}, "RuleError"),
}


@pytest.mark.parametrize("name", _WRONG)
def test_a_wrong_rule_is_refused_with_its_first_wrong_candidate(name: str) -> None:
    notation, facts, text = _WRONG[name]
    square = (torch.randn(5, 7), torch.randn(7, 7), torch.randn(7))
    with pytest.raises(RuleError, match=text if text != "RuleError" else NAME):
        autoplan.register_rule(project, notation, examples=[square], **facts)
    assert NAME not in registry.rules_in_force()


def test_an_example_that_splits_nothing_proves_nothing() -> None:
    tiny = (torch.randn(1, 1), torch.randn(1, 1), torch.randn(1))
    with pytest.raises(RuleError, match="proves nothing"):
        autoplan.register_rule(project, NOTATION, examples=[tiny])


def test_an_op_without_a_gradient_is_proven_on_buffers() -> None:
    x = torch.randn(5, 4)
    with pytest.raises(RuleError, match=r"nn\.Buffer"):
        autoplan.register_rule(without_gradient, "*b -> *b", examples=[(x,)])
    proofs = autoplan.register_rule(without_gradient, "*b -> *b", examples=[(nn.Buffer(x),)])
    assert all(proof.ok for proof in proofs)


# -- what may be registered -----------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        project,
        torch.ops.autoplan_tests.project,
        torch.ops.autoplan_tests.project.default,
        NAME,
        "autoplan_tests::project",
    ],
    ids=["custom_op", "packet", "overload", "name", "qualified"],
)
def test_an_op_is_found_however_it_is_named(op: Any) -> None:
    autoplan.register_rule(op, NOTATION, **FACTS)
    assert registry.rules_in_force()[NAME].notation == NOTATION
    assert set(registry.rules_in_force()) == {*RULES, NAME}


_REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no op": (lambda: ("autoplan_tests.projekt.default", "*b -> *b"), "no op that torch knows"),
    "several overloads": (lambda: (torch.ops.aten.add, "*b -> *b"), "name one of them"),
    "a function": (lambda: (torch.relu, "*b -> *b"), "no op that torch knows"),
    "an op that writes": (lambda: (fill, "*b -> "), "writes its arguments"),
    "no arrow": (lambda: (project, "*b i, o i, o"), "needs exactly one '->'"),
    "what cannot be read": (lambda: (project, "*b i, o ?, o -> *b o"), r"cannot read '\?'"),
    "too few inputs": (lambda: (project, "*b i, o i -> *b o"), "has 2 inputs"),
    "too many outputs": (lambda: (project, "*b i, o i, o -> *b o, o"), "has 2 outputs"),
    "a rule of ours": (lambda: ("aten.relu.default", "*b -> *b"), "replace=True"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_cannot_be_registered_is_said_at_once(name: str) -> None:
    given, text = _REFUSED[name]
    before = dict(registry.rules_in_force())
    with pytest.raises(RuleError, match=text):
        autoplan.register_rule(*given())
    assert registry.rules_in_force() == before


def test_an_unknown_fact_has_a_suggestion() -> None:
    with pytest.raises(RuleError, match="did you mean 'sums'"):
        autoplan.register_rule(project, NOTATION, sum=True)


@pytest.mark.parametrize("facts", [{"partial": {0}}, {"partial": 0}, {"flops": 2.0}], ids=str)
def test_a_fact_of_another_kind_is_named(facts: dict[str, Any]) -> None:
    with pytest.raises(RuleError, match=f"{next(iter(facts))} must be"):
        autoplan.register_rule(project, NOTATION, **facts)


def test_examples_are_calls() -> None:
    with pytest.raises(RuleError, match="each a tuple"):
        autoplan.register_rule(project, NOTATION, examples=list(example(5)))


def test_a_rule_is_replaced_only_on_request() -> None:
    autoplan.register_rule(project, NOTATION)
    with pytest.raises(RuleError, match="replace=True"):
        autoplan.register_rule(project, NOTATION)
    whole = Rule("*b [i], [o] [i], [o] -> *b [o]")
    autoplan.register_rule(project, whole, replace=True)
    assert registry.rules_in_force()[NAME] is whole
    ours = replace(RULES["aten.relu.default"], partial=(frozenset({0}),))
    with pytest.raises(RuleError, match="P on d 2: wrong"):
        autoplan.register_rule(
            "aten.relu.default", ours, examples=[(torch.randn(5, 4),)], replace=True
        )
    registry.unregister_rule(project)
    with pytest.raises(RuleError, match="no rule was registered"):
        registry.unregister_rule(project)


def test_a_whole_rule_brings_its_own_facts() -> None:
    with pytest.raises(RuleError, match="either a Rule or notation"):
        autoplan.register_rule(project, Rule(NOTATION), sums=True)
