from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.annotate import annotate
from autoplan.errors import RuleError
from autoplan.mesh import Mesh
from autoplan.pricing import local_work
from autoplan.proof import Experiment, Proof, observe, prove, prove_on
from autoplan.request import make_request
from autoplan.space.bounds import WholeOp, compute_s
from autoplan.strategies import RULES
from autoplan.strategies.rule import Rule
from tests.strategies.examples import EXAMPLES, constant, flags, real, whole

TWO, FOUR, SQUARE = Mesh.of(d=2), Mesh.of(d=4), Mesh.of(a=2, b=2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The tensors are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def _experiment(number: int) -> Experiment:
    example = EXAMPLES[number]
    return observe(example.fn, *example.tensors, reference=example.reference)


def _name(number: int) -> str:
    return str(EXAMPLES[number])


def _looks_at_axes(number: int) -> bool:
    """The first example of a rule whose local op differs from rank to rank."""
    example = EXAMPLES[number]
    rule = RULES[example.op]
    first = next(i for i, each in enumerate(EXAMPLES) if RULES[each.op] is rule)
    return number == first and (rule.program is not None or rule.sizes is not None)


ON_TWO_AXES = [
    number
    for number, example in enumerate(EXAMPLES)
    if _looks_at_axes(number)
    or str(example)
    in (
        "add.Tensor-row",
        "cross_entropy_loss.default-ignored",
        "cross_entropy_loss.default-pixels",
        "cross_entropy_loss.default-weight",
        "embedding.default-padding",
        "linear.default-bias",
        "matmul.default-batch",
        "scaled_dot_product_attention.default-dropout_bias",
        "scaled_dot_product_attention.default-few_key_heads",
        "scaled_dot_product_attention.default-grouped",
        "scaled_dot_product_attention.default-ring_bias_of_groups",
        "scaled_dot_product_attention.default-ring_flags",
        "scaled_dot_product_attention.default-ring_of_groups",
        "transpose.int-heads",
    )
]
"""The others, whose local op sees nothing but its shards, wait for `make test-all`."""


def _wrong(proofs: tuple[Proof, ...]) -> dict[str, str]:
    return {" | ".join(each.labels): each.reason for each in proofs if not each.ok}


# -- every rule is right --------------------------------------------------------------------


def test_no_rule_is_unproven() -> None:
    assert {example.op for example in EXAMPLES} == set(RULES)


def _prove(number: int, mesh: Mesh) -> None:
    proofs = prove_on(mesh, _experiment(number))
    assert {proof.op for proof in proofs} == {EXAMPLES[number].op}
    assert not _wrong(proofs), mesh


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=_name)
def test_every_candidate_computes_what_the_whole_op_does(number: int) -> None:
    for mesh in (TWO, FOUR):
        _prove(number, mesh)


@pytest.mark.parametrize("cluster", ["h100", "cpu"])
@pytest.mark.parametrize("mesh", [TWO, SQUARE], ids=str)
def test_no_candidate_takes_less_than_an_even_share(mesh: Mesh, cluster: str) -> None:
    """Which bounds what no plan takes less than, whatever is communicated."""
    request = make_request(mesh.num_devices, cluster)
    pricer = request.pricer(mesh)
    for number in range(len(EXAMPLES)):
        graph = _experiment(number).captured
        alone = annotate(graph, Mesh.of(devices=1), RULES).sites
        for one, site in zip(alone, annotate(graph, mesh, RULES).sites, strict=True):
            if site.call is not None:
                whole_op = WholeOp(*local_work(one, one.candidates[0], Mesh.of(devices=1)))
                least = compute_s(Counter([whole_op]), request.cluster, mesh.num_devices)
                times = [sum(pricer.op_times_s(site, each)) for each in site.candidates]
                assert least <= min(times), (_name(number), site.name)


@pytest.mark.parametrize("number", ON_TWO_AXES, ids=_name)
def test_candidates_of_two_axes_compute_what_the_whole_op_does(number: int) -> None:
    _prove(number, SQUARE)


@pytest.mark.slow
@pytest.mark.parametrize("number", sorted(set(range(len(EXAMPLES))) - set(ON_TWO_AXES)), ids=_name)
def test_the_other_candidates_of_two_axes_do_too(number: int) -> None:
    _prove(number, SQUARE)


@pytest.mark.parametrize("op", sorted(RULES))
def test_every_rule_splits_something(op: str) -> None:
    """Or a proof of it would say nothing."""
    labels = set()
    for number, example in enumerate(EXAMPLES):
        if example.op == op:
            labels |= set(_signatures(_experiment(number)))
    assert labels - {"B", "B/P", "P"}


def _check(fn: Callable[..., Any], *tensors: torch.Tensor) -> None:
    experiment = observe(fn, *tensors)
    for mesh in (TWO, FOUR):
        assert not _wrong(prove_on(mesh, experiment)), mesh


_sizes = st.integers(1, 7)
_some = settings(max_examples=10, deadline=None, database=None)


@_some
@given(st.data())
def test_pointwise_rules_hold_for_any_broadcast(data: st.DataObject) -> None:
    shape = data.draw(st.lists(_sizes, min_size=1, max_size=3))
    cut = data.draw(st.integers(0, len(shape)))
    other = [data.draw(st.sampled_from([1, size])) for size in shape[cut:]]
    name = data.draw(st.sampled_from(["add", "mul", "div", "maximum"]))
    _check(getattr(torch, name), real(*shape), real(*other))


@_some
@given(st.lists(_sizes, max_size=2), _sizes, _sizes, _sizes, st.booleans())
def test_contractions_hold_for_any_shape(
    batch: list[int], rows: int, inner: int, columns: int, shared: bool
) -> None:
    right = [] if shared else batch
    _check(torch.matmul, real(*batch, rows, inner), real(*right, inner, columns))


@_some
@given(st.data())
def test_reductions_hold_for_any_dimensions(data: st.DataObject) -> None:
    shape = data.draw(st.lists(_sizes, min_size=1, max_size=3))
    dims = data.draw(st.sets(st.integers(-len(shape), -1), min_size=1))
    keep = data.draw(st.booleans())
    name = data.draw(st.sampled_from(["sum", "mean"]))
    _check(lambda x: getattr(x, name)(tuple(dims), keep), real(*shape))


@_some
@given(st.data())
def test_cross_entropy_holds_for_any_call(data: st.DataObject) -> None:
    rows, classes = data.draw(st.integers(1, 7)), data.draw(st.integers(2, 9))
    extra = data.draw(st.lists(st.integers(1, 3), max_size=1))
    ignore = data.draw(st.sampled_from([-100, 0, 1]))
    target = whole(0, classes, rows, *extra)
    tensors = [real(rows, classes, *extra), torch.where(flags(*target.shape), target, ignore)]
    if data.draw(st.booleans()):
        tensors.append(constant(real(classes).abs()))
    given_arguments: dict[str, Any] = {
        "reduction": data.draw(st.sampled_from(["none", "mean", "sum"])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.2])),
        "ignore_index": ignore,
    }

    def fn(logits: Any, target: Any, weight: Any = None) -> Any:
        return F.cross_entropy(logits, target, weight, **given_arguments)

    _check(fn, *tensors)


@_some
@given(st.data())
def test_statistics_of_all_ranks_hold_for_any_dimensions(data: st.DataObject) -> None:
    shape = data.draw(st.lists(_sizes, min_size=1, max_size=3))
    dims = tuple(data.draw(st.sets(st.integers(-len(shape), -1), min_size=1)))
    last = data.draw(st.integers(-len(shape), -1))
    keep, number = data.draw(st.booleans()), data.draw(st.integers(1, 2))
    fns: dict[str, Callable[..., Any]] = {
        "amax": lambda x: x.amax(dims, keep),
        "logsumexp": lambda x: x.logsumexp(dims, keep),
        "any": lambda x: x.any(dims, keep),
        "std": lambda x: x.std(dims, correction=number - 1, keepdim=keep),
        "var_mean": lambda x: torch.var_mean(x, dims),
        "norm": lambda x: torch.linalg.vector_norm(x, number, dims, keep),
        "softmax": lambda x: x.softmax(last),
        "log_softmax": lambda x: x.log_softmax(last),
        # Of one or two numbers a norm is constant but for epsilon: its gradient would be rounding.
        "layer_norm": lambda x: F.layer_norm(x, shape[last:], eps=0.1),
        "rms_norm": lambda x: F.rms_norm(x, shape[last:], eps=0.1),
    }
    _check(fns[data.draw(st.sampled_from(sorted(fns)))], real(*shape))


@pytest.mark.parametrize("scale", [1, 2**14])
@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm])
def test_norms_of_half_precision_are_taken_in_float32(
    norm: Callable[..., Any], scale: float
) -> None:
    """As torch takes them, so that what is split differs by the last bit at most."""
    x = (torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) / scale).bfloat16()
    proofs = prove_on(FOUR, observe(lambda x: norm(x, (64,)), x))
    [error] = [proof.error for proof in proofs if proof.labels == ("k0",)]
    assert error < 2**-7


# -- a wrong rule is caught -----------------------------------------------------------------


def _text(notation: str, **more: Any) -> Rule:
    return Rule(notation, **more)


_P = (frozenset({0}),)
_WRONG: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str, Rule, set[str]]] = {
    "softmax split where it sums": (
        lambda x: x.softmax(-1),
        (real(5, 4),),
        "aten.softmax.int",
        _text("*b k -> *b k"),
        {"k"},
    ),
    "relu of an addend": (
        F.relu,
        (real(5, 4),),
        "aten.relu.default",
        replace(RULES["aten.relu.default"], partial=_P),
        {"P"},
    ),
    "an integer square of an addend": (
        torch.square,
        (whole(1, 9, 5),),
        "aten.square.default",
        replace(RULES["aten.square.default"], partial=_P),
        {"P"},
    ),
    "a bias added once a rank": (
        F.linear,
        (real(5, 4), real(6, 4), real(6)),
        "aten.linear.default",
        _text("*b i, o i, o -> *b o", sums=True, partial=_P),
        {"i", "P"},
    ),
    "a sum said to be whole": (
        F.linear,
        (real(5, 4), real(6, 4)),
        "aten.linear.default",
        replace(RULES["aten.linear.default"], completes=frozenset({"i"})),
        {"i"},
    ),
    "a mean of means": (
        lambda x: x.mean(0),
        (real(5, 4),),
        "aten.mean.dim",
        replace(RULES["aten.mean.dim"], program=None),
        {"d0"},
    ),
    "cross-entropy of a part of the classes": (
        F.cross_entropy,
        (real(5, 4), whole(0, 2, 5)),
        "aten.cross_entropy_loss.default",
        replace(RULES["aten.cross_entropy_loss.default"], program=None),
        {"n", "c"},
    ),
    "a table without its other rows": (
        lambda w, ids: F.embedding(ids, w),
        (real(8, 3), whole(0, 4, 5)),
        "aten.embedding.default",
        replace(RULES["aten.embedding.default"], program=None),
        {"v"},
    ),
    "a norm over a part of its dimension": (
        lambda x: F.layer_norm(x, (4,)),
        (real(5, 4),),
        "aten.layer_norm.default",
        _text("*b k -> *b k"),
        {"k"},
    ),
    "the largest of each rank's own": (
        lambda x: x.amax(0),
        (real(5, 4),),
        "aten.amax.default",
        replace(RULES["aten.amax.default"], program=None),
        {"d0"},
    ),
    "a variance around each rank's own mean": (
        lambda x: x.var(0),
        (real(5, 4),),
        "aten.var.dim",
        replace(RULES["aten.var.dim"], program=None),
        {"d0"},
    ),
    "flags of one rank": (
        lambda x: x.any(0),
        (torch.eye(5, 4, dtype=torch.bool),),
        "aten.any.dim",
        replace(RULES["aten.any.dim"], program=None),
        {"d0"},
    ),
    "a filling added once a rank": (
        lambda x, m: x.masked_fill(m, 1.0),
        (real(5, 4), flags(5, 4)),
        "aten.masked_fill.Scalar",
        replace(RULES["aten.masked_fill.Scalar"], partial=_P),
        {"P"},
    ),
    "a causal flag that starts anew": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (real(1, 3, 4, 2), real(1, 3, 4, 2), real(1, 3, 4, 2)),
        "aten.scaled_dot_product_attention.default",
        _text("*b h q [d], *b h [k] [d], *b h [k] [e] -> *b h q [e]"),
        {"q"},
    ),
    "a number added once a rank": (
        lambda x: x + 1.0,
        (real(5, 4),),
        "aten.add.Tensor",
        _text("*b -> *b", partial=_P),
        {"P"},
    ),
    "an expansion to the whole size": (
        lambda x: x.expand(4, 3),
        (real(1, 3),),
        "aten.expand.default",
        replace(RULES["aten.expand.default"], sizes=None),
        {"b0", "b1"},
    ),
    "a transposition that forgets to": (
        lambda x: x.transpose(0, 1),
        (real(4, 4),),
        "aten.transpose.int",
        _text("a b -> a b"),
        {"a", "b"},
    ),
}


@pytest.mark.parametrize("name", _WRONG)
def test_a_wrong_rule_is_not_proven(name: str) -> None:
    fn, tensors, op, rule, labels = _WRONG[name]
    wrong = _wrong(prove(fn, *tensors, mesh=TWO, rules={op: rule}))
    assert set(wrong) == labels
    assert all(wrong.values())


def test_a_mask_of_its_own_on_every_rank_is_not_proven() -> None:
    rule = replace(RULES["aten.dropout.default"], program=None)
    example = next(each for each in EXAMPLES if each.op == "aten.dropout.default")
    proofs = prove(
        example.fn,
        *example.tensors,
        mesh=TWO,
        rules={example.op: rule},
        reference=example.reference,
    )
    assert not any(proof.ok for proof in proofs)


def test_an_op_without_a_rule_is_right_on_every_rank() -> None:
    proofs = prove(lambda x: torch.cumprod(x, 0), real(5, 4), mesh=SQUARE, rules={})
    assert [proof.labels for proof in proofs] == [
        ("B", "B"),
        ("B", "B/P"),
        ("B/P", "B"),
        ("B/P", "B/P"),
    ]
    assert not _wrong(proofs)


def test_a_proof_is_of_one_op() -> None:
    with pytest.raises(RuleError, match="one op"):
        prove(lambda x: x.exp().sin(), real(4), mesh=TWO)
    with pytest.raises(RuleError, match="none"):
        prove(lambda x: x, real(4), mesh=TWO)


def test_a_proof_says_what_is_wrong() -> None:
    rule = replace(RULES["aten.relu.default"], partial=_P)
    proofs = prove(F.relu, real(4), mesh=TWO, rules={"aten.relu.default": rule})
    texts = [str(proof) for proof in proofs]
    assert "aten.relu.default b0 on d 2: proven" in texts
    assert any(text.startswith("aten.relu.default P on d 2: wrong: ") for text in texts)


# -- the signatures of the ops that matter most ---------------------------------------------


def _signatures(experiment: Experiment) -> Mapping[str, str]:
    """Label -> `inputs -> outputs` of every signature on one axis of two devices."""
    annotated = annotate(experiment.captured, TWO, RULES)
    site = next(each for each in annotated.sites if each.kind == "op")
    return {
        candidate.labels[0]: " ".join(str(layout[0]) for layout in candidate.inputs)
        + " -> "
        + " ".join(str(layout[0]) for layout in candidate.outputs)
        for candidate in site.candidates
    }


def _named(op: str, variant: str) -> Experiment:
    wanted = f"aten.{op}.default" if "." not in op else f"aten.{op}"
    return _experiment(
        next(i for i, e in enumerate(EXAMPLES) if (e.op, e.variant) == (wanted, variant))
    )


_SIGNATURES: dict[tuple[str, str], dict[str, str]] = {
    ("linear", "plain"): {
        "B": "B B -> B",
        "B/P": "B/P B/P -> B/P",
        "b0": "S(0) B/P -> S(0)",
        "b1": "S(1) B/P -> S(1)",
        "o": "B/P S(0) -> S(2)",
        "i": "S(2) S(1) -> P",
        "P": "P B/P -> P",
    },
    ("linear", "bias"): {
        "B": "B B B -> B",
        "B/P": "B/P B/P B/P -> B/P",
        "b0": "S(0) B/P B/P -> S(0)",
        "o": "B/P S(0) S(0) -> S(1)",
        "i": "S(1) S(1) P -> P",
        "P": "P B/P P -> P",
    },
    ("embedding", "matrix"): {
        "B": "B B -> B",
        "B/P": "B/P B -> B/P",
        "b0": "B/P S(0) -> S(0)",
        "b1": "B/P S(1) -> S(1)",
        "h": "S(1) B -> S(2)",
        "v": "S(0) B -> P",
        "P": "P B -> P",
    },
    ("cross_entropy_loss", "mean"): {
        "B": "B B -> B",
        "B/P": "B/P B -> B/P",
        "n": "S(0) S(0) -> P",
        "c": "S(1) B -> B",
    },
    ("cross_entropy_loss", "none"): {
        "B": "B B -> B",
        "B/P": "B/P B -> B/P",
        "n": "S(0) S(0) -> S(0)",
        "c": "S(1) B -> B",
    },
    ("cross_entropy_loss", "weight"): {
        "B": "B B B -> B",
        "B/P": "B/P B B -> B/P",
        "n": "S(0) S(0) B -> P",
        "c": "S(1) B B -> B",
    },
    ("scaled_dot_product_attention", "plain"): {
        "B": "B B B -> B",
        "B/P": "B/P B/P B/P -> B/P",
        "b0": "S(0) S(0) S(0) -> S(0)",
        "h": "S(1) S(1) S(1) -> S(1)",
        "q": "S(2) B/P B/P -> S(2)",
    },
    ("scaled_dot_product_attention", "causal"): {
        "B": "B B B -> B",
        "B/P": "B/P B/P B/P -> B/P",
        "b0": "S(0) S(0) S(0) -> S(0)",
        "h": "S(1) S(1) S(1) -> S(1)",
        "ring": "S(2) S(2) S(2) -> S(2)",
    },
    ("scaled_dot_product_attention", "ring_bias_of_groups"): {
        "B": "B B B B -> B",
        "B/P": "B/P B/P B/P B/P -> B/P",
        "g": "S(1) B/P B/P S(0) -> S(1)",
        "h": "S(1) S(1) S(1) S(0) -> S(1)",
        "q": "S(2) B/P B/P S(1) -> S(2)",
        "ring": "S(2) S(2) S(2) S(1) -> S(2)",
    },
    ("scaled_dot_product_attention", "ring_bias_of_keys"): {
        "B": "B B B B -> B",
        "B/P": "B/P B/P B/P B/P -> B/P",
        "h": "S(1) S(1) S(1) B/P -> S(1)",
        "q": "S(2) B/P B/P B/P -> S(2)",
        "ring": "S(2) S(2) S(2) B/P -> S(2)",
    },
    ("scaled_dot_product_attention", "grouped"): {
        "B": "B B B -> B",
        "B/P": "B/P B/P B/P -> B/P",
        "g": "S(1) B/P B/P -> S(1)",
        "h": "S(1) S(1) S(1) -> S(1)",
        "q": "S(2) B/P B/P -> S(2)",
    },
    ("scaled_dot_product_attention", "grouped_bias"): {
        "B": "B B B B -> B",
        "B/P": "B/P B/P B/P B/P -> B/P",
        "g": "S(1) B/P B/P S(1) -> S(1)",
        "h": "S(1) S(1) S(1) S(1) -> S(1)",
        "q": "S(2) B/P B/P S(2) -> S(2)",
    },
    ("scaled_dot_product_attention", "bias_of_heads"): {
        "B": "B B B B -> B",
        "B/P": "B/P B/P B/P B/P -> B/P",
        "b0": "S(0) S(0) S(0) B/P -> S(0)",
        "h": "S(1) S(1) S(1) S(0) -> S(1)",
        "q": "S(2) B/P B/P S(1) -> S(2)",
    },
    ("add.Tensor", "row"): {
        "B": "B B -> B",
        "B/P": "B/P B/P -> B/P",
        "b0": "S(0) B/P -> S(0)",
        "b1": "S(1) S(0) -> S(1)",
        "P": "P P -> P",
    },
    ("add.Tensor", "number"): {
        "B": "B -> B",
        "B/P": "B/P -> B/P",
        "b0": "S(0) -> S(0)",
        "b1": "S(1) -> S(1)",
    },
}


@pytest.mark.parametrize("call", _SIGNATURES, ids="-".join)
def test_the_signatures_of_an_op_are_exactly_these(call: tuple[str, str]) -> None:
    assert _signatures(_named(*call)) == _SIGNATURES[call]
