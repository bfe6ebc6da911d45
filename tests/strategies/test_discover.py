"""Discovery finds what our own rules say, and nothing that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import autoplan
from autoplan import registry
from autoplan.discover import Draft, draft_rule, form_of
from autoplan.errors import RuleError
from autoplan.mesh import Mesh
from autoplan.proof import Experiment, observe, prove_on
from autoplan.registry import ExampleCall, find_op
from autoplan.strategies import RULES
from autoplan.strategies.rule import Arg, OpCall, Rule, signatures
from tests.models import ideal_cluster
from tests.strategies.examples import EXAMPLES, positive, real, whole


@pytest.fixture(autouse=True)
def _registry_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- what our rules say ---------------------------------------------------------------------

OPS = (
    "add.Tensor sub.Tensor mul.Tensor div.Tensor pow.Tensor_Scalar where.self maximum.default "
    "gelu.default relu.default exp.default masked_fill.Scalar clamp.default neg.default "
    "linear.default matmul.default bmm.default mm.default mv.default addmm.default baddbmm.default "
    "einsum.default bilinear.default conv1d.default conv2d.default conv_transpose2d.input "
    "transpose.int permute.default t.default unsqueeze.default cat.default stack.default "
    "sum.default sum.dim_IntList cumsum.default softmax.int log_softmax.int topk.default "
    "sort.default layer_norm.default rms_norm.default group_norm.default embedding.default "
    "gather.default max_pool2d.default scaled_dot_product_attention.default"
)


def chosen() -> list[int]:
    """The first example of each op, in order."""
    names = [example.op.removeprefix("aten.") for example in EXAMPLES]
    return [names.index(op) for op in OPS.split() if op in names]


def call_of(experiment: Experiment, op: str) -> tuple[ExampleCall, OpCall]:
    """The experiment's op with its tensors."""
    form, operands = form_of(experiment), []
    captured = experiment.captured
    nodes = [n for n in captured.graph.nodes if str(n.target) == op]
    torch.fx.node.map_arg((nodes[0].args, nodes[0].kwargs), operands.append)
    held = {**experiment.parameters, **experiment.state}
    given = {
        each.node: experiment.arguments[each.position]
        if each.kind == "input"
        else held[each.path if each.kind != "constant" else each.node]
        for each in captured.inputs
    }
    buffers = {each.node for each in captured.inputs if each.kind != "parameter"}
    tensors = tuple(
        nn.Buffer(given[node.name])
        if node.name in buffers and given[node.name].is_floating_point()
        else given[node.name]
        for node in operands
    )
    leaves, spec = pytree.tree_flatten((form.args, dict(form.kwargs)))
    held_leaves = [tensors[x.position] if isinstance(x, Arg) else x for x in leaves]
    return ExampleCall(find_op(op), tuple(held_leaves), spec, tensors), form


def splits(rule: Rule, call: OpCall, all_of_them: bool = True) -> dict[Any, str]:
    """Signature -> label; on request only of those that need no program and no even cut."""
    bound = rule.bound(call)
    found = {}
    for each in signatures(rule, call):
        of_program = rule.program is not None
        special = {*bound.aligned, *rule.together, *rule.completes}
        if all_of_them or not (of_program or rule.sizes is not None or each.label in special):
            found[each.inputs, each.outputs] = each.label
    return found


@pytest.mark.parametrize("number", chosen(), ids=lambda number: str(EXAMPLES[number]))
def test_what_our_rule_says_is_found_and_the_rest_is_right(number: int) -> None:
    example = EXAMPLES[number]
    experiment = observe(example.fn, *example.tensors)
    call, form = call_of(experiment, example.op)
    rule = draft_rule(call).rule(form)
    found = splits(rule, form)
    missing = {k: v for k, v in splits(RULES[example.op], form, False).items() if k not in found}
    assert not missing
    proofs = prove_on(Mesh.of(d=2), experiment, {example.op: rule})
    assert not [str(proof) for proof in proofs if not proof.ok]


def test_most_ops_were_compared() -> None:
    assert len(chosen()) > 0.9 * len(OPS.split())


# -- what is found, word for word -----------------------------------------------------------


@torch.library.custom_op("autoplan_tests::attend", mutates_args=())
def attend(x: Tensor, table: Tensor, shift: Tensor, heat: float) -> tuple[Tensor, Tensor]:
    """Rows of `x` look up a softmax of `table`; the second result is how much they found."""
    weights = (x @ table.t() * heat).softmax(-1)
    return weights @ table + shift, weights.sum(-1)


@attend.register_fake
def _(x: Tensor, table: Tensor, shift: Tensor, heat: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[:-1])


@torch.library.custom_op("autoplan_tests::doubled_rows", mutates_args=())
def doubled_rows(x: Tensor) -> Tensor:
    """Fails without rows."""
    if not len(x):
        raise ValueError("no rows")
    return 2 * x


@doubled_rows.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


doubled_rows.register_autograd(lambda ctx, grad: 2 * grad)


def drafted(op: str, *arguments: Any) -> str:
    call = registry.example_call(find_op(op), arguments)
    return notation_of(draft_rule(call), call)


def notation_of(draft: Draft, call: ExampleCall) -> str:
    return draft.notation(form_of(observe(call, *call.tensors)))


_FOUND: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "linear": (
        "aten.linear.default",
        (real(3, 5, 8), real(7, 8), real(7)),
        "a b c, d c, +d -> a b d",
    ),
    "sizes that are accidentally equal": (
        "aten.linear.default",
        (real(4, 4, 4), real(4, 4), real(4)),
        "a b c, d c, +d -> a b d",
    ),
    "a square product": ("aten.mm.default", (real(4, 4), real(4, 4)), "a b, b c -> a c"),
    "a transposed square": ("aten.t.default", (real(4, 4),), "a b -> b a"),
    "an outer product": ("aten.outer.default", (real(4), real(4)), "a, b -> a b"),
    "a broadcast row": ("aten.mul.Tensor", (real(5, 4), real(1, 4)), "a b, 1 b -> a b"),
    "softmax": ("aten.softmax.int", (real(4, 4, 4), 1), "a [c] b -> a [d] b"),
    "a shape among the arguments": ("aten.view.default", (real(5, 4), [20]), "[a] [b] -> [c]"),
    "blocks of two rows": (
        "aten.avg_pool1d.default",
        (real(3, 4, 4), [2], [2]),
        "a b [c] -> a b [d]",
    ),
    "a look-up": ("aten.embedding.default", (real(9, 4), whole(0, 9, 5, 3)), "[d] a, b c -> b c a"),
}


@pytest.mark.parametrize("name", _FOUND)
def test_the_notation_that_is_found_is_this(name: str) -> None:
    op, arguments, text = _FOUND[name]
    assert drafted(op, *arguments) == text


@pytest.mark.parametrize(
    ("op", "arguments", "carriers"),
    [
        ("aten.linear.default", (real(5, 4), real(7, 4), real(7)), [{0, 2}, {1, 2}]),
        ("aten.sub.Tensor", (real(5, 4), real(4)), [{0, 1}]),
        ("aten.mul.Tensor", (real(5, 4), real(4)), [{0}, {1}]),
        ("aten.relu.default", (positive(5, 4),), []),
        ("aten.hardtanh.default", (real(5, 4), -50.0, 50.0), []),
        ("aten.square.default", (real(5, 4),), []),
        ("aten.where.self", (real(5, 4) > 0, real(5, 4), real(5, 4)), [{1, 2}]),
    ],
)
def test_p_passes_where_the_op_is_linear(
    op: str, arguments: tuple[Any, ...], carriers: list[set[int]]
) -> None:
    draft = draft_rule(registry.example_call(find_op(op), arguments))
    assert [each | draft.addends for each in draft.partial] == carriers


# -- proofs ---------------------------------------------------------------------------------


def test_a_rule_is_found_proven_and_used() -> None:
    arguments = (nn.Buffer(real(5, 6)), nn.Buffer(real(7, 6)), nn.Buffer(real(6)), 0.5)
    found = autoplan.discover_rule(attend, *arguments)
    assert found.notation == "a [b], [c] [d], [e] -> a [f], a"
    assert str(found).startswith(f'autoplan_tests.attend.default: "{found.notation}"')
    assert found.notation == autoplan.discover_rule(attend, *arguments).notation
    assert all(proof.ok for proof in found.proofs)
    assert not found.dropped
    autoplan.register_rule(attend, found.rule, examples=[arguments])

    class Model(nn.Module):
        def forward(self, x: Tensor, table: Tensor, shift: Tensor) -> Tensor:
            return attend(x, table, shift, 0.5)[0]

    batch = (torch.randn(8, 6), torch.randn(7, 6), torch.randn(6))
    options: dict[str, Any] = {"cluster": ideal_cluster(2), "training": False}
    module = autoplan.parallelize(Model(), batch, devices=2, outputs="whole", **options)
    [row] = [row for row in module.plan.operations if row.op.startswith("autoplan_tests")]
    assert row.has_rule
    assert module.verify(batch, {}).ok


def test_a_found_rule_is_of_calls_like_the_example_alone() -> None:
    found = autoplan.discover_rule("aten.softmax.int", real(5, 4), 1)
    assert found.notation == "a [b] -> a [c]"

    def indices(fn: Any, x: Tensor) -> tuple[str, ...]:
        return found.rule.bound(form_of(observe(fn, x))).indices

    assert indices(lambda x: x.softmax(1), real(9, 3)) == ("a",)
    assert indices(lambda x: x.softmax(0), real(9, 3)) == ()
    assert indices(lambda x: x.softmax(1), real(9, 3, 2)) == ()
    assert indices(lambda x: x.softmax(1), real(1, 3)) == ()


def test_p_passes_through_calls_like_the_example_alone() -> None:
    found = autoplan.discover_rule("aten.pow.Tensor_Scalar", real(5, 4), 1.0)
    assert found.partial == (frozenset({0}),)
    for exponent, labels in ((1.0, {"a", "b", "P"}), (2.0, set())):
        form = form_of(observe(lambda x, n=exponent: x**n, real(5, 4)))
        assert {s.label for s in signatures(found.rule, form)} - {"B", "B/P"} == labels


def test_what_autograd_keeps_is_found() -> None:
    found = autoplan.discover_rule("aten.mm.default", real(5, 4), real(4, 3))
    assert found.rule.saves == (0, 1)
    assert found.rule.kind == "matmul"
    assert found.sums == ("b",)
    assert found.partial == (frozenset({0}), frozenset({1}))
    assert autoplan.discover_rule("aten.exp.default", real(5)).rule.saves == ("output",)


def test_a_rule_says_where_the_op_needs_rows() -> None:
    found = autoplan.discover_rule(doubled_rows, real(6, 5))
    assert found.notation == "a b -> a b"
    assert found.rule.needs_rows == {"a"}
    assert "needs rows of a" in str(found)


def test_what_only_the_gradient_shows_is_dropped() -> None:
    """Rows are looked up alike anywhere, but their gradient is scaled by how often they occur."""
    ids = whole(0, 9, 12)
    found = autoplan.discover_rule("aten.embedding.default", real(9, 4), ids, -1, True)
    assert found.notation == "[b] a, [c] -> [d] a"
    assert any("gradient" in each for each in found.dropped)
    assert "not proven: aten.embedding.default b on d 2" in str(found)


# -- examples that show nothing -------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "arguments", "text"),
    [
        ("aten.relu.default", (torch.zeros(5, 4),), "equal numbers"),
        ("aten.bernoulli.p", (real(5, 4), 0.5), "another result each time"),
        ("aten.mm.default", (real(5, 4), real(5, 4)), "cannot be run on its example"),
        ("aten.arange.default", (5,), "takes or returns no tensor"),
        ("aten.nothing.default", (), "no op that torch knows"),
        ("aten.relu_.default", (real(5),), "writes its arguments"),
        ("aten.contiguous.default", (real(5),), "show this call as nothing"),
    ],
)
def test_an_example_that_shows_nothing_is_refused(
    op: str, arguments: tuple[Any, ...], text: str
) -> None:
    with pytest.raises(RuleError, match=text):
        autoplan.discover_rule(op, *arguments)
