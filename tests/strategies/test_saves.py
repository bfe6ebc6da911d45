"""What rules say that autograd keeps of an op, and that the op needs beside, is what it takes."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.annotate import annotate
from autoplan.boxing import Router
from autoplan.buckets import Routers
from autoplan.emit import emit
from autoplan.layouts import B, Layout
from autoplan.mesh import Mesh
from autoplan.pricing import local_context
from autoplan.proof import Experiment, observe
from autoplan.runtime import random as runtime_random
from autoplan.runtime.simulation import Simulator
from autoplan.sites import Annotated
from autoplan.strategies import RULES
from autoplan.strategies.random import DRAWN_TOGETHER, RANDOM_OPS
from autoplan.strategies.rule import Arg, OpCall, OpMemory
from tests.runtime.live_bytes import LiveBytes
from tests.strategies.examples import EXAMPLES

ONE, TWO = Mesh.of(), Mesh.of(d=2)

NUMBERS = 16
"""Numbers of eight bytes that a law may be off: counters, a loss, a total weight."""


@dataclass(frozen=True)
class Kept:
    """One call of an op as it ran, in bytes; the names are those of `OpMemory`."""

    saves: frozenset[int | str]
    kept: int
    forward: int
    backward: int
    passes: frozenset[int]


@functools.cache
def _experiment(number: int) -> Experiment:
    example = EXAMPLES[number]
    return observe(example.fn, *example.tensors, reference=example.reference)


def _op(annotated: Annotated) -> int:
    return next(at for at, site in enumerate(annotated.sites) if site.kind == "op")


def _said(number: int) -> OpMemory:
    """What the rule says of the whole op."""
    annotated = annotate(_experiment(number).captured, ONE, RULES)
    site = annotated.sites[_op(annotated)]
    assert site.call is not None
    assert site.rule is not None
    context = local_context(site, site.candidates[0], ONE, ())
    found = site.rule.memory_of(site.call, context)
    trains = any(meta.requires_grad for meta in site.call.outputs)
    return found if trains else OpMemory(forward=found.forward)


def _operands(number: int) -> tuple[Any, OpCall, list[Tensor]]:
    """The op, its call, and the tensors of the call, with gradients where the example has them."""
    experiment = _experiment(number)
    annotated = annotate(experiment.captured, ONE, RULES)
    site = annotated.sites[_op(annotated)]
    given = {each.node: each for each in experiment.captured.inputs}
    tensors = []
    assert site.call is not None
    for source, meta in zip(site.inputs, site.call.inputs, strict=True):
        origin = annotated.sites[source.site]
        if origin.kind == "box":
            origin = annotated.sites[origin.inputs[0].site]
        held = given[origin.name]
        values = {**experiment.parameters, **experiment.state}
        value = experiment.arguments[held.position] if held.kind == "input" else values[held.path]
        tensors.append(value.detach().clone().requires_grad_(meta.requires_grad))
    nodes = experiment.captured.graph.nodes
    target = next(node.target for node in nodes if node.name == site.name)
    return target, site.call, tensors


def _filled(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, Arg):
        return tensors[tree.position]
    if isinstance(tree, (list, tuple)):
        return type(tree)(_filled(each, tensors) for each in tree)
    return tree


def _storages(tensors: Any) -> list[int]:
    """The identity of each tensor's memory; views share their base's."""
    leaves = (each for each in pytree.tree_leaves(tensors) if isinstance(each, Tensor))
    return [each.untyped_storage()._cdata for each in leaves]


def _sizes(tensors: Any) -> dict[int, int]:
    leaves = [each for each in pytree.tree_leaves(tensors) if isinstance(each, Tensor)]
    return dict(zip(_storages(leaves), (t.untyped_storage().nbytes() for t in leaves), strict=True))


def _found(number: int) -> Kept:
    """The whole op, run."""
    target, call, inputs = _operands(number)
    args = _filled(call.args, inputs)
    kwargs = {name: _filled(value, inputs) for name, value in call.kwargs.items()}
    given = _storages(inputs)
    packed: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.extend(_storages(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = target(*args, **kwargs)
    saves: set[int | str] = {at for at, each in enumerate(given) if each in packed}
    if any(each in packed and each not in given for each in _storages(outputs)):
        saves.add("output")
    del outputs
    with LiveBytes(inputs) as meter:
        meter.mark("forward")
        outputs = target(*args, **kwargs)
        gc.collect()
        live = meter.live_bytes
        made = {each: n for each, n in _sizes(outputs).items() if each not in given}
        kept = live - meter.start_bytes - sum(made.values())
        forward = max(0, meter.peak("forward").num_bytes - live)
        leaves = [each for each in pytree.tree_leaves(outputs) if isinstance(each, Tensor)]
        carried = [each for each in leaves if each.requires_grad]
        wanted = [at for at, each in enumerate(inputs) if each.requires_grad]
        if not carried:
            return Kept(frozenset(), 0, forward, 0, frozenset())
        cotangents = [torch.ones_like(e, memory_format=torch.contiguous_format) for e in carried]
        before = meter.live_bytes
        meter.mark("backward")
        leaves = [inputs[at] for at in wanted]
        grads = torch.autograd.grad(carried, leaves, cotangents, allow_unused=True)
        peak = meter.peak("backward").num_bytes - before
    of_outputs = _storages(cotangents)
    new = {each: n for each, n in _sizes(grads).items() if each not in of_outputs}
    pairs = zip(wanted, grads, strict=True)
    passes = {at for at, grad in pairs if grad is not None and _storages(grad)[0] in of_outputs}
    backward = max(0, peak - sum(new.values()))
    return Kept(frozenset(saves), kept, forward, backward, frozenset(passes))


def _near(said: float, found: float, share: float = 0.1) -> bool:
    return abs(said - found) <= 8 * NUMBERS + share * found


FIRST = [
    "linear",
    "matmul",
    "addmm",
    "bmm",
    "layer_norm",
    "gelu",
    "silu",
    "tanh",
    "softmax",
    "embedding",
    "cross_entropy_loss",
    "scaled_dot_product_attention",
    "mul",
    "add",
    "sub",
    "pow",
    "rsqrt",
    "mean",
    "conv2d",
    "relu",
    "cat",
    "where",
    "masked_fill",
]
"""Of these the first example is checked in `make test`, all others in `make test-all`."""

APPROXIMATE = (
    # Operands and signals that are laid out anew are kept as copies.
    "einsum tensordot matrix_power "
    "fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_rfft stft "
    # One call a step.
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell "
    # Several ops, which keep differences and products.
    "l1_loss kl_div poisson_nll_loss hinge_embedding_loss margin_ranking_loss "
    "cosine_embedding_loss triplet_margin_loss multilabel_margin_loss ctc_loss "
    "cosine_similarity pairwise_distance "
    # Factors that no output shows.
    "linalg_eigvalsh linalg_svdvals linalg_solve linalg_norm "
    # Some calls keep more than others.
    "embedding_bag instance_norm complex ldexp msort scatter_add"
)
"""Ops whose rule says what the planner needs most, and not all that is kept."""


def _is_exact(number: int) -> bool:
    return _packet(number) not in APPROXIMATE.split()


def _drops(number: int) -> bool:
    """Whether a program of ours stands for the op, on one device too."""
    return EXAMPLES[number].op in RANDOM_OPS and EXAMPLES[number].reference is not None


def _packet(number: int) -> str:
    return EXAMPLES[number].op.split(".")[1]


def _is_first(number: int) -> bool:
    alike = (n for n, example in enumerate(EXAMPLES) if example.op == EXAMPLES[number].op)
    return _packet(number) in FIRST and number == next(alike)


def _parameters(numbers: Iterable[int]) -> list[Any]:
    return [
        pytest.param(
            number, marks=() if _is_first(number) else pytest.mark.slow, id=str(EXAMPLES[number])
        )
        for number in numbers
    ]


WHOLE = [n for n in range(len(EXAMPLES)) if not _drops(n) and _is_exact(n)]


@pytest.mark.parametrize("number", _parameters(WHOLE))
def test_autograd_keeps_what_the_rule_says(number: int) -> None:
    said, found = _said(number), _found(number)
    assert frozenset(said.saves) == found.saves, (said, found)
    assert _near(said.kept, found.kept), (said, found)


EXACT = [
    "layer_norm",
    "gelu",
    "silu",
    "tanh",
    "softmax",
    "embedding",
    "mul",
    "add",
    "sub",
    "pow",
    "rsqrt",
    "relu",
    "where",
    "cat",
]
"""Ops whose temporaries, and gradients that pass, are checked; `linear` says more, its copy."""


NEEDS = [
    number
    for number, example in enumerate(EXAMPLES)
    if _packet(number) in EXACT and all(each.numel() > 1 for each in example.tensors)
]


@pytest.mark.parametrize("number", _parameters(NEEDS))
def test_an_op_needs_what_the_rule_says(number: int) -> None:
    said, found = _said(number), _found(number)
    assert _near(said.forward, found.forward, 0.25), (said, found)
    assert _near(said.backward, found.backward, 0.25), (said, found)
    assert frozenset(said.passes) == found.passes, (said, found)


# -- programs of candidates -----------------------------------------------------------------


def _kept_by_program(number: int, candidate: int) -> tuple[int, int]:
    """Bytes kept by the programs of two ranks beside inputs and outputs: as said, and as found."""
    experiment = _experiment(number)
    annotated = annotate(experiment.captured, TWO, RULES)
    at = _op(annotated)
    site = annotated.sites[at]
    assert site.call is not None
    assert site.rule is not None
    whole = Layout((B,))
    choices = [
        next(
            n
            for n, each in enumerate(other.candidates)
            if each.outputs[0] == whole and each.storage in (None, whole)
        )
        for other in annotated.sites
    ]
    choices[at] = candidate
    router = Router(TWO, lambda *_: 1.0)
    programs = [emit(annotated, choices, Routers(router, router), rank) for rank in (0, 1)]
    first = programs[0]
    leaves = [
        [experiment.parameters[spec.name].clone().requires_grad_() for _ in programs]
        for spec in first.parameters
    ]
    state = [[experiment.state[spec.name]] * 2 for spec in first.state]
    inputs = [[experiment.arguments[position]] * 2 for position, _ in first.inputs]
    simulator = Simulator(TWO)
    # An op on parameters alone runs in the prologue; slices of what is given are views of it.
    with LiveBytes(leaves, state, inputs) as meter:
        values = simulator.run([each.prologue for each in programs], [*leaves, *state])
        outputs = simulator.run([each.body for each in programs], [*values, *inputs])
        gc.collect()
        made = _sizes((values, outputs))
        given = _storages((leaves, state, inputs))
        new = sum(size for each, size in made.items() if each not in given)
        found = meter.live_bytes - meter.start_bytes - new
    said = 0
    for rank in (0, 1):
        context = local_context(site, site.candidates[candidate], TWO, (rank,))
        said += site.rule.memory_of(site.call, context).kept
    return said, found


PROGRAMS = [
    "dropout.default-rows",
    "softmax.int-last",
    "layer_norm.default-affine",
    "rms_norm.default-weight",
    "embedding.default-even",
    "embedding.default-padding",
    "cross_entropy_loss.default-mean",
    "cross_entropy_loss.default-none",
    "batch_norm.default-batch",
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_keep_what_the_rule_says(name: str) -> None:
    """Each candidate's on two ranks; not those of addends, which only boxing makes."""
    number = next(n for n, example in enumerate(EXAMPLES) if str(example) == name)
    annotated = annotate(_experiment(number).captured, TWO, RULES)
    candidates = annotated.sites[_op(annotated)].candidates
    wrong = {}
    for candidate, each in enumerate(candidates):
        if each.labels[0].startswith("P"):
            continue
        said, found = _kept_by_program(number, candidate)
        if not _near(said, found, 0.25):
            wrong[each.labels] = said, found
    assert not wrong


def test_rules_know_how_many_flags_are_drawn_together() -> None:
    assert DRAWN_TOGETHER == runtime_random.BLOCK
