"""Ring attention as a candidate: when it is offered, its balance, its memory, and 16-bit types."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoplan.annotate import annotate
from autoplan.mesh import Mesh
from autoplan.pricing import local_context, local_work
from autoplan.proof import observe, prove
from autoplan.runtime import block_attention
from autoplan.runtime.block_attention import Block, attend, attend_backward
from autoplan.runtime.blockwise import View, run, run_all
from autoplan.runtime.requests import Request, Shift
from autoplan.runtime.ring import RingAttention, contiguous, part, zigzag
from autoplan.runtime.simulation import Simulator
from autoplan.sites import Candidate, Site
from autoplan.strategies import RULES, ring_attention
from autoplan.strategies.rule import OpMemory
from tests.runtime.live_bytes import LiveBytes

TWO, FOUR, SQUARE = Mesh.of(d=2), Mesh.of(d=4), Mesh.of(a=2, b=2)


def attention(**options: Any) -> Callable[..., Tensor]:
    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **options)

    return fn


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def op_site(fn: Callable[..., Tensor], tensors: tuple[Tensor, ...], mesh: Mesh) -> Site:
    annotated = annotate(observe(fn, *tensors).captured, mesh, RULES)
    return next(each for each in annotated.sites if each.kind == "op")


def labels_of(mesh: Mesh, queries: int, keys: int, **options: Any) -> set[str]:
    tensors = (numbers(2, 4, queries, 3), numbers(2, 4, keys, 3), numbers(2, 4, keys, 3))
    site = op_site(attention(**options), tensors, mesh)
    return {label for each in site.candidates for label in each.labels}


# -- when it is offered ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "keys", "options", "offered"),
    [
        (8, 8, {}, True),
        (8, 12, {}, True),
        (8, 6, {}, False),
        (6, 8, {}, False),
        (8, 8, {"is_causal": True}, True),
        (12, 12, {"is_causal": True}, False),  # three for each rank are no two halves
        (4, 4, {"is_causal": True}, False),
        (9, 9, {"is_causal": True}, False),
        (8, 16, {"is_causal": True}, False),
        (8, 8, {"dropout_p": 0.1}, False),
    ],
)
def test_a_ring_is_offered_where_every_rank_gets_as_much(
    queries: int, keys: int, options: dict[str, Any], offered: bool
) -> None:
    assert ("ring" in labels_of(FOUR, queries, keys, **options)) == offered


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=["plain", "causal"])
def test_one_axis_is_the_ring_beside_batch_and_heads(options: dict[str, Any]) -> None:
    tensors = (numbers(2, 4, 16, 3),) * 3
    site = op_site(attention(**options), tensors, SQUARE)
    found = {each.labels for each in site.candidates if "ring" in each.labels}
    beside = ("B", "B/P", "b0", "h")
    assert found == {(one, "ring") for one in beside} | {("ring", one) for one in beside}


def test_a_ring_does_its_share_of_the_work() -> None:
    """Balanced: every rank has a quarter, with and without a causal flag."""
    for options in ({}, {"is_causal": True}):
        site = op_site(attention(**options), (numbers(1, 2, 16, 4),) * 3, FOUR)
        flops = {each.labels[0]: local_work(site, each, FOUR)[0].flops for each in site.candidates}
        assert flops["ring"] == flops["B"] / 4


# -- balance --------------------------------------------------------------------------------


@given(st.integers(2, 40))
@settings(database=None)
def test_zigzag_deals_every_half_part_once(ranks: int) -> None:
    for places in (contiguous, zigzag):
        dealt = [half for rank in range(ranks) for half in places(rank, ranks)]
        assert sorted(dealt) == list(range(2 * ranks))


def pairs_read(each: Any, half: int) -> int:
    """Query-key pairs of a part of shards of two halves that its block computes."""
    queries, keys = len(range(*each.queries.indices(2 * half))), len(range(2 * half)[each.keys])
    return queries * (queries + 1) // 2 if each.diagonal else queries * keys


@given(st.integers(2, 12), st.integers(1, 6))
@settings(database=None, deadline=None)
def test_blocks_cover_the_causal_triangle_once_and_alike(ranks: int, half: int) -> None:
    """Every pair that the flag shows, no other; and at each step as many for every rank."""
    counted = torch.zeros(2 * ranks * half, 2 * ranks * half, dtype=torch.int64)

    def rows_of(rank: int) -> Tensor:
        starts = (half * each for each in zigzag(rank, ranks))
        return torch.cat([torch.arange(start, start + half) for start in starts])

    for step in range(ranks):
        work = set()
        for rank in range(ranks):
            owner = (rank - step) % ranks
            each = part(True, rank, owner, 2 * half, 2 * half)
            queries, keys = rows_of(rank)[each.queries], rows_of(owner)[each.keys]
            block = torch.ones(len(queries), len(keys), dtype=torch.int64)
            counted[queries[:, None], keys] += block.tril() if each.diagonal else block
            work.add(pairs_read(each, half))
        assert len(work) == 1
    assert torch.equal(counted, torch.ones_like(counted).tril())


# -- blocks ---------------------------------------------------------------------------------


def block_of(kind: str) -> Block:
    q, k, v = numbers(2, 4, 6, 8), numbers(2, 2, 6, 8), numbers(2, 2, 6, 8)
    if kind == "causal":
        return Block(q, k, v, None, 0.5, causal=True)
    if kind == "mask":
        return Block(q, k, v, numbers(4, 6, 6), 0.5)
    if kind == "flags":
        return Block(q, k, v[..., :5], torch.ones(6, 6, dtype=torch.bool).tril(-2), 0.5)
    return Block(q, k, v, None, 0.5)


@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "flags"])
def test_tiles_are_parts_of_one_result(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel, one tile, and a tile for each query: the same attention and gradients."""
    results = []
    for tile_bytes, fused in ((1 << 26, True), (1 << 26, False), (1, False)):
        monkeypatch.setattr(block_attention, "TILE_BYTES", tile_bytes)
        if not fused:
            monkeypatch.setattr(Block, "is_fused", False)
        block = block_of(kind)
        found = attend(block)
        out, log_sum = found.out, found.peak + found.total.log()
        grads = attend_backward(block, found, numbers(*out.shape), mask_too=kind == "mask")
        results.append((out, log_sum, grads.q, grads.k, grads.v, grads.mask))
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            if one is None or same is None:
                assert one is same
            else:
                torch.testing.assert_close(one, same, rtol=1e-12, atol=1e-12)


def test_without_keys_there_is_nothing_to_read() -> None:
    block = Block(numbers(2, 4, 6, 8), numbers(2, 4, 0, 8), numbers(2, 4, 0, 5), None, 0.5)
    found = attend(block)
    grads = attend_backward(block, found, torch.ones_like(found.out))
    assert found.out.shape == (2, 4, 6, 5)
    assert not any(each.any() for each in (found.out, found.total, grads.q))
    found.add(attend(replace(block, k=numbers(2, 4, 3, 8), v=numbers(2, 4, 3, 5))))
    weights = (block.q @ numbers(2, 4, 3, 8).mT * 0.5).softmax(-1)
    torch.testing.assert_close(found.out, weights @ numbers(2, 4, 3, 5), rtol=1e-12, atol=1e-12)


# -- masks of large numbers -----------------------------------------------------------------

_EXACT = {torch.float64: 1e-9, torch.float32: 2.0**-19}
_LEAST = "least"
_HIDING = (-1e4, -1e9, _LEAST, float("-inf"))


def hiding(number: float | str, dtype: torch.dtype) -> float:
    """A number of a mask; `_LEAST` is the least of its type."""
    return torch.finfo(dtype).min if isinstance(number, str) else number


def beside_whole_softmax(mask: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Output and gradients of q, k, v and a float mask: of a ring of four, and of torch's plain
    operations, whose other kernels keep a log-sum-exp for backward and are off by it.

    Scores are quarters of integers, exact in either, so that a large number rounds them alike.
    """
    generator = torch.Generator().manual_seed(5)
    shape = (2, 2, 8, 16)
    q, k = (torch.randint(-3, 4, shape, generator=generator).to(dtype) for _ in range(2))
    v = numbers(*shape, dtype=dtype)
    tensors = [q, k, v, mask]
    cotangent = numbers(*shape, dtype=dtype)
    wanted = [each.requires_grad_() for each in tensors if each.is_floating_point()]

    def ring() -> Tensor:
        views = [View(FOUR, (rank,)) for rank in range(4)]
        shards = list(zip(*(each.chunk(4, -2) for each in tensors), strict=True))
        algorithms = [RingAttention("d", 0.25)] * 4
        return torch.cat(run_all(algorithms, views, shards, Simulator(FOUR)._perform), -2)

    def whole() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, mask, scale=0.25)

    outs = ring(), whole()
    grads = (torch.autograd.grad(out, wanted, cotangent) for out in outs)
    return [(outs[0], outs[1]), *zip(*grads, strict=True)]


def assert_same(pairs: list[tuple[Tensor, Tensor]], tolerance: float) -> None:
    for ours, theirs in pairs:
        assert torch.isfinite(ours).all()
        scale = max(1.0, theirs.abs().max().item())
        assert (ours - theirs).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("dtype", _EXACT, ids=str)
@pytest.mark.parametrize("number", [*_HIDING, "flags"], ids=str)
@pytest.mark.parametrize("where", ["rows", "all"])
def test_rows_that_a_mask_hides_everywhere(
    number: float | str, dtype: torch.dtype, where: str
) -> None:
    """Means of values, as a softmax has them, and not sums; zeros where nothing is left to read.
    Beside rows that read some keys, of every part or not."""
    hidden = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    if where == "rows":
        hidden[0] = False
        hidden[0, :, 3] = True
        hidden[1, :, :4] = torch.ones(4, 8, dtype=torch.bool).triu(1)
        hidden[1, :, 4, :5] = False
    if number == "flags":
        mask = ~hidden
    else:
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, hiding(number, dtype))
    pairs = beside_whole_softmax(mask, dtype)
    assert_same(pairs, _EXACT[dtype])
    row, values = pairs[0][0][0, 0, 3], numbers(2, 2, 8, 16, dtype=dtype)[0, 0]
    if number in ("flags", float("-inf")):
        assert not row.any()
    elif number != -1e4 and not (number == -1e9 and dtype == torch.float64):  # scores are lost
        torch.testing.assert_close(row, values.mean(0))


@given(
    st.lists(st.sampled_from([0.0, 1.5, *_HIDING]), min_size=32, max_size=32),
    st.sampled_from(list(_EXACT)),
)
@settings(database=None, deadline=None, max_examples=40)
def test_a_ring_is_the_softmax_whatever_hides_keys(
    drawn: list[float | str], dtype: torch.dtype
) -> None:
    """One number for each query and each rank's keys."""
    chosen = torch.tensor([hiding(each, dtype) for each in drawn], dtype=dtype)
    mask = chosen.view(1, 1, 8, 4).repeat_interleave(2, -1).expand(2, 1, 8, 8).contiguous()
    assert_same(beside_whole_softmax(mask, dtype), _EXACT[dtype])


# -- types ----------------------------------------------------------------------------------

_ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9, torch.float32: 2.0**-19}
"""A few roundings, relative to the largest element: slopes are less than the outputs, kept rounded
to 16 bits, of which they are differences, and a float32 is summed in itself."""


@pytest.mark.parametrize("dtype", _ROUNDING, ids=lambda each: str(each).removeprefix("torch."))
@pytest.mark.parametrize("kind", ["causal", "flags", "widths"])
def test_rings_of_short_types_are_right_but_for_rounding(dtype: torch.dtype, kind: str) -> None:
    options: dict[str, Any] = {"is_causal": True} if kind == "causal" else {}
    width = 4 if kind == "widths" else 8
    tensors = [numbers(1, 4, 64, 8, dtype=dtype), numbers(1, 4, 64, 8, dtype=dtype) / 2]
    tensors.append(numbers(1, 4, 64, width, dtype=dtype))
    if kind == "flags":
        tensors.append(torch.ones(64, 64, dtype=torch.bool).tril(-1))

    def exact(*given: Tensor) -> Tensor:
        far = [each.double() if each.is_floating_point() else each for each in given]
        return attention(**options)(*far).to(dtype)

    proofs = prove(attention(**options), *tensors, mesh=FOUR, reference=exact)
    error = {proof.labels[0]: proof.error for proof in proofs}
    assert error["ring"] <= max(_ROUNDING[dtype], 2 * error["B"]), error


# -- memory ---------------------------------------------------------------------------------

Case = tuple[dict[str, Any], tuple[int, int, int], int, str]

CASES: dict[str, Case] = {
    # options, (query heads, key heads, width of values), bytes of a number, mask
    "plain": ({}, (4, 4, 32), 8, ""),
    "causal": ({"is_causal": True}, (4, 4, 32), 4, ""),
    "groups": ({"is_causal": True, "enable_gqa": True}, (8, 2, 32), 8, ""),
    "widths": ({}, (4, 4, 16), 4, ""),
    "widths causal": ({"is_causal": True}, (4, 4, 16), 8, ""),
    "flags": ({}, (4, 4, 32), 8, "flags"),
    "learned": ({}, (4, 4, 32), 4, "learned"),
    "plain 16": ({}, (4, 4, 32), 2, ""),
    "causal 16": ({"is_causal": True}, (4, 4, 32), 2, ""),
    "groups 16": ({"is_causal": True, "enable_gqa": True}, (8, 2, 32), 2, ""),
    "widths 16": ({}, (4, 4, 16), 2, ""),
    "learned 16": ({}, (4, 4, 32), 2, "learned"),
}
_TYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def said_and_shards(name: str, mesh: Mesh) -> tuple[OpMemory, list[list[Tensor]]]:
    """What the rule says of a ring, and what each rank is given."""
    options, (query_heads, key_heads, width), size, mask = CASES[name]
    make = functools.partial(numbers, dtype=_TYPES[size])
    tensors = [make(2, query_heads, 64, 32), make(2, key_heads, 64, 32)]
    tensors.append(make(2, key_heads, 64, width))
    if mask:
        tensors.append(make(2, 1, 64, 64) if mask == "learned" else numbers(2, 1, 64, 64) > -1)
    site = op_site(attention(**options), tuple(tensors), mesh)
    candidate: Candidate = next(each for each in site.candidates if each.labels == ("ring",))
    assert site.rule is not None
    assert site.call is not None
    context = local_context(site, candidate, mesh, (0,))
    shards = [
        [part.clone().requires_grad_(part.is_floating_point()) for part in parts]
        for parts in zip(*(each.chunk(mesh.num_devices, 2) for each in tensors), strict=True)
    ]
    return site.rule.memory_of(site.call, context), shards


def alone(request: Request) -> Any:
    """Something of the right shapes: a rank's memory does not depend on what the others send."""
    if isinstance(request, Shift):
        return tuple(each.clone() for each in request.values)
    assert not isinstance(request, tuple)
    parts, shapes = request.parts, request.shapes  # type: ignore[union-attr]
    return tuple(parts[0].new_zeros(shape) for shape in shapes)


def held(algorithm: RingAttention, view: View, given: list[Tensor]) -> tuple[int, int, int]:
    """Bytes that a rank keeps, and needs forward and backward, as `OpMemory` counts them."""
    with LiveBytes(given) as meter:
        meter.mark("forward")
        out = run(algorithm, view, given, alone)
        gc.collect()
        live = meter.live_bytes
        kept = live - meter.start_bytes - out.untyped_storage().nbytes()
        forward = meter.peak("forward").num_bytes - live
        cotangent = torch.ones_like(out)
        before = meter.live_bytes
        meter.mark("backward")
        grads = torch.autograd.grad(out, [each for each in given if each.requires_grad], cotangent)
        found = sum(each.untyped_storage().nbytes() for each in grads)
        backward = meter.peak("backward").num_bytes - before - found
    return kept, forward, backward


@pytest.mark.parametrize("mesh", [TWO, FOUR], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_rank_holds_what_the_rule_says(name: str, mesh: Mesh) -> None:
    """The rank that holds most; the mask's own gradient is beside."""
    said, shards = said_and_shards(name, mesh)
    algorithm = RingAttention("d", 0.2, causal=bool(CASES[name][0].get("is_causal")))
    ranks = range(mesh.num_devices)
    found = [held(algorithm, View(mesh, (rank,)), shards[rank]) for rank in ranks]
    kept, forward, backward = (max(each) for each in zip(*found, strict=True))
    assert said.kept == pytest.approx(kept, rel=0.01)
    assert said.forward == pytest.approx(forward, rel=0.2)
    assert said.backward == pytest.approx(backward, rel=0.2)
    saved = () if CASES[name][0].get("is_causal") else (0, 1, 2, "output")
    assert said.saves[:4] == saved


def test_rules_know_how_large_a_tile_is() -> None:
    assert ring_attention.TILE_BYTES == block_attention.TILE_BYTES
