"""Products that stream a factor: which there are, what they hold at a time, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autoplan.annotate import annotate
from autoplan.cost_models import Roofline, load_cluster
from autoplan.mesh import Mesh
from autoplan.pricing import Pricer, Setting, local_context
from autoplan.proof import Proof, observe, prove, prove_on
from autoplan.runtime.algorithms import ALGORITHMS
from autoplan.runtime.blockwise import View, run
from autoplan.runtime.requests import perform_on_group
from autoplan.runtime.simulation import Simulator, shard
from autoplan.sites import Candidate, Site
from autoplan.strategies import RULES
from autoplan.strategies.rule import OpMemory, is_streaming
from tests.end_to_end.grids import Sizes
from tests.runtime.live_bytes import LiveBytes
from tests.strategies.examples import real

TWO, FOUR = Mesh.of(d=2), Mesh.of(d=4)
GRID = Mesh.of(row=2, column=2)

SUMMA = ("b0~", "o~")


def _site(mesh: Mesh, fn: Callable[..., Any], *tensors: Tensor, lean: bool = True) -> Site:
    """The one op that `fn` calls."""
    annotated = annotate(observe(fn, *tensors).captured, mesh, RULES, lean=lean)
    return next(each for each in annotated.sites if each.kind == "op")


def _streaming(site: Site) -> list[Candidate]:
    return [each for each in site.candidates if any(map(is_streaming, each.labels))]


def _wrong(proofs: tuple[Proof, ...]) -> dict[str, str]:
    return {" | ".join(each.labels): each.reason for each in proofs if not each.ok}


# -- which there are ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "tensors", "expected"),
    [
        (
            F.linear,
            (real(2, 5, 4), real(7, 4), real(7)),
            {
                "b0~": "S(0) S(1) B/P -> S(0)",
                "b1~": "S(1) S(1) B/P -> S(1)",
                "o~": "S(2) S(0) S(0) -> S(2)",
            },
        ),
        (
            torch.mm,
            (real(5, 4), real(4, 7)),
            {"i~": "S(0) S(0) -> S(0)", "j~": "S(1) S(1) -> S(1)"},
        ),
        (
            torch.addmm,
            (real(5, 7), real(5, 4), real(4, 7)),
            {"n~": "S(0) S(0) S(0) -> S(0)", "o~": "S(1) S(1) S(1) -> S(1)"},
        ),
        (
            torch.matmul,
            (real(3, 5, 4), real(4, 7)),
            {
                "b0~": "S(0) S(0) -> S(0)",
                "i~": "S(1) S(0) -> S(1)",
                "j~": "S(2) S(1) -> S(2)",
            },
        ),
        (torch.matmul, (real(3, 5, 4), real(3, 4, 7)), {}),
        (torch.mv, (real(5, 4), real(4)), {}),
    ],
    ids=["linear", "mm", "addmm", "matmul", "batched", "vector"],
)
def test_the_streaming_signatures_of_a_product_are_exactly_these(
    fn: Callable[..., Any], tensors: tuple[Tensor, ...], expected: dict[str, str]
) -> None:
    found = {
        each.labels[0]: " ".join(str(layout[0]) for layout in each.inputs)
        + f" -> {each.outputs[0][0]}"
        for each in _streaming(_site(TWO, fn, *tensors))
    }
    assert found == expected


def test_they_are_offered_where_lean_candidates_are() -> None:
    tensors = real(4, 6), real(5, 6)
    plain, lean = (_site(GRID, F.linear, *tensors, lean=lean) for lean in (False, True))
    assert not _streaming(plain)
    assert [each for each in lean.candidates if each not in _streaming(lean)] == [*plain.candidates]


def test_one_axis_streams_a_factor_and_lies_inside_of_those_that_split_what_it_contracts() -> None:
    labels = {each.labels for each in _streaming(_site(GRID, F.linear, real(8, 8), real(8, 8)))}
    assert {("b0~", "o~"), ("o~", "b0~"), ("i", "b0~"), ("i", "o~"), ("b0~", "b0")} <= labels
    assert labels.isdisjoint({("b0~", "b0~"), ("o~", "o~"), ("b0~", "i"), ("o~", "i")})


def test_what_is_cut_leaves_most_ranks_a_block() -> None:
    """Four ranks would share three rows of the weight, or one."""
    for rows, offered in ((3, True), (1, False)):
        labels = {e.labels for e in _streaming(_site(FOUR, F.linear, real(8, rows), real(8, rows)))}
        assert (("b0~",) in labels) == offered


# -- that they are right --------------------------------------------------------------------

_sizes = st.integers(2, 7)


@settings(max_examples=5, deadline=None, database=None)
@given(_sizes, _sizes, _sizes, st.sampled_from([(2, 3), (3, 2), (4, 2), (3, 3)]), st.booleans())
def test_any_shape_on_any_grid(b: int, i: int, o: int, sizes: tuple[int, int], bias: bool) -> None:
    """Cuts that do not match: what travels is what one rank of either axis owns."""
    mesh = Mesh.of(row=sizes[0], column=sizes[1])
    tensors = real(b, i), real(o, i), *([real(o)] if bias else [])
    assert not _wrong(prove(F.linear, *tensors, mesh=mesh))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(5, 4), (3, 7)], ids=str)
def test_every_candidate_on_three_axes(sizes: tuple[int, int]) -> None:
    b, i = sizes
    mesh = Mesh.of(depth=2, row=2, column=2)
    assert not _wrong(prove_on(mesh, observe(F.linear, real(b, i), real(6, i), real(6))))


# -- one candidate by itself ----------------------------------------------------------------


class _Recorder:
    """Stands for the communicator while a program is emitted."""

    def blockwise(self, name: str, *tensors: Tensor, **options: Any) -> Any:
        return name, tensors, options


@dataclass(frozen=True)
class _Alone:
    """A streaming candidate of a linear layer: its shards, calls and memory, by rank."""

    mesh: Mesh
    candidate: Candidate
    tensors: tuple[Tensor, ...]
    shards: list[list[Tensor]]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    said: list[OpMemory]


def _alone(mesh: Mesh, labels: tuple[str, ...], sizes: tuple[int, int, int]) -> _Alone:
    b, i, o = sizes
    tensors = real(b, i), real(o, i)
    site = _site(mesh, F.linear, *tensors)
    candidate = next(each for each in site.candidates if each.labels == labels)
    assert site.rule is not None
    assert site.call is not None
    program = site.rule.program_of(labels)
    assert program is not None
    ranks = range(mesh.num_devices)
    shards = [
        [
            shard(each, layout, mesh, rank).clone().requires_grad_()
            for each, layout in zip(tensors, candidate.inputs, strict=True)
        ]
        for rank in ranks
    ]
    calls, said = [], []
    for rank in ranks:
        at = mesh.coordinates(rank)
        context = local_context(site, candidate, mesh, at, comm=_Recorder())
        name, given, options = program(context, *shards[rank])
        calls.append(((None, name, *given), options))
        said.append(site.rule.memory_of(site.call, context))
    return _Alone(mesh, candidate, tensors, shards, calls, said)


_DEEP = Mesh.of(depth=2, row=2, column=2)
_CASES = [
    (FOUR, ("b0~",), (4, 24, 20)),
    (FOUR, ("o~",), (40, 24, 8)),
    (GRID, SUMMA, (8, 16, 12)),
    (GRID, ("o~", "b0~"), (8, 16, 12)),
    (Mesh.of(row=2, column=4), SUMMA, (8, 16, 12)),
    (Mesh.of(row=3, column=2), SUMMA, (9, 25, 12)),
    (_DEEP, ("i", *SUMMA), (6, 48, 8)),
    (_DEEP, ("b0", *SUMMA), (16, 16, 12)),
]


@pytest.mark.parametrize(("mesh", "labels", "sizes"), _CASES, ids=str)
def test_no_tensor_is_larger_than_a_shard(
    mesh: Mesh, labels: tuple[str, ...], sizes: tuple[int, int, int]
) -> None:
    """Forward and backward. A factor whole along the contracted index would be larger."""
    alone = _alone(mesh, labels, sizes)
    x, w = alone.tensors
    largest = max(each.nbytes for held in alone.shards for each in held)
    for label, size in zip(labels, mesh.sizes, strict=True):
        if is_streaming(label):
            streamed = 0 if label == "o~" else 1
            assert alone.shards[0][streamed].nbytes * size > largest
    simulator, whole = Simulator(mesh), F.linear(x, w)
    with Sizes() as sizes_seen:
        outputs = simulator.blockwise(alone.calls)
        torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])
    assert sizes_seen.largest <= max(largest, *(each.nbytes for each in outputs))
    if "i" not in labels:
        for rank, output in enumerate(outputs):
            expected = shard(whole, alone.candidate.outputs[0], mesh, rank)
            assert torch.allclose(output.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("mesh", "labels", "sizes"), _CASES, ids=str)
def test_memory_is_what_the_rule_says(
    mesh: Mesh, labels: tuple[str, ...], sizes: tuple[int, int, int], monkeypatch: Any
) -> None:
    """Of a rank by itself, with what real process groups make; the others only have no say."""
    monkeypatch.setattr(dist, "broadcast", lambda *_, **__: None)
    monkeypatch.setattr(dist, "reduce", lambda *_, **__: None)
    alone = _alone(mesh, labels, sizes)
    found: list[tuple[int, int]] = []
    for rank, ((_, name, *held), options) in enumerate(alone.calls):
        at, said = mesh.coordinates(rank), alone.said[rank]
        assert said.kept == 0
        assert set(said.saves) == {0, 1}

        def perform(request: Any, at: tuple[int, ...] = at) -> Any:
            index = at[mesh.index(request.axis)]
            return perform_on_group(request, None, index, torch.device("cpu"))  # type: ignore[arg-type]

        with LiveBytes(held) as meter:
            meter.mark("forward")
            output = run(ALGORITHMS[name](**options), View(mesh, at), held, perform)
            made = meter.live_bytes - meter.start_bytes
            assert made == output.nbytes  # nothing but own shards is kept
            forward = meter.peak("forward").num_bytes - meter.live_bytes
            cotangent = torch.ones_like(output)
            before = meter.live_bytes
            meter.mark("backward")
            grads = torch.autograd.grad(output, held, cotangent)
            made = sum(each.nbytes for each in grads)
            backward = meter.peak("backward").num_bytes - before - made
        assert forward <= said.forward
        assert backward <= said.backward
        found.append((forward, backward))
    # Who owns both blocks of one step receives both of another.
    if len({mesh.size(axis) for axis in mesh.axes}) == 1:
        assert max(forward for forward, _ in found) == alone.said[0].forward
        assert max(backward for _, backward in found) >= 0.75 * alone.said[0].backward


# -- that they never save time --------------------------------------------------------------


@pytest.mark.parametrize("cluster", ["cpu", "h100"])
@pytest.mark.parametrize("sizes", [(8, 16, 12), (512, 4096, 4096), (8, 8192, 8192)], ids=str)
def test_streaming_a_factor_is_never_faster_than_gathering_it(
    cluster: str, sizes: tuple[int, int, int]
) -> None:
    """So that lean candidates need to be looked at only where memory binds."""
    b, i, o = sizes
    mesh = Mesh.of(row=2, column=4)
    pricer = Pricer(mesh, Roofline(load_cluster(cluster, mesh.num_devices, "cpu"), mesh), Setting())
    x, w = (torch.empty(shape, dtype=torch.float32) for shape in ((b, i), (o, i)))
    site = _site_of_shapes(mesh, x, w)
    plain = {each.labels: each for each in site.candidates}
    compared = 0
    for lean in _streaming(site):
        other = plain[tuple(label.removesuffix("~") for label in lean.labels)]
        gathers_s = sum(
            sum(pricer.conversion_times_s(one, two, meta))
            for one, two, meta in zip(lean.inputs, other.inputs, _metas(site), strict=True)
        )
        assert sum(pricer.op_times_s(site, lean)) >= (
            sum(pricer.op_times_s(site, other)) + gathers_s
        ) * (1 - 1e-9), lean.labels
        compared += 1
    assert compared > 10


def _metas(site: Site) -> Any:
    assert site.call is not None
    return site.call.inputs


def _site_of_shapes(mesh: Mesh, x: Tensor, w: Tensor) -> Site:
    """A linear layer's, without computing it."""
    from autoplan.capture import capture

    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta")
    with torch.device("meta"):
        captured = capture(layer, (x.to("meta").requires_grad_(),))
    annotated = annotate(captured, mesh, RULES, lean=True)
    return next(each for each in annotated.sites if each.kind == "op")
