"""Links on real gloo ranks: what travels, and autograd through a pipeline without a schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoplan.layouts import Layout
from autoplan.pipelining.schedules import read_schedule
from autoplan.runtime.links import (
    Place,
    check_sent,
    share,
    start_receive,
    start_send,
    sum_over,
    wait,
)
from autoplan.runtime.program import TensorSpec
from autoplan.runtime.simulation import shard
from tests.runtime.launch import run_ranks
from tests.runtime.pipeline_steps import FIRST_STEP, Case, Outcome, naive_on_ranks, places
from tests.runtime.stage_programs import ALONE, PAIR, SENT, STORAGE, program, reference

NAIVE = [
    (Case(schedule, 4, 1, ALONE), root)
    for schedule in ("naive", "interleaved-1f1b", "zbv")
    for root in ("loss", "h", "nothing")
]
NAIVE_PAIRS = [(Case("zbv", 2, 1, PAIR), "loss"), (Case("zero-bubble", 2, 1, PAIR), "h")]


def tensors() -> list[Tensor]:
    """Of every kind that travels, on every rank the same."""
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    half, pair = real.to(torch.bfloat16), torch.complex(real, real.flip(0))
    whole = (real * 10).to(torch.int64)
    return [
        *(real, half, whole, whole > 0, pair, pair.conj(), pair.conj().imag, real.t()),
        *(real[:, 1:3], (whole > 0)[::2], real[0, 0], (whole > 0)[0, 0], whole[:0], pair[0, 0]),
    ]


def travel(place: Place) -> list[list[Tensor]]:
    """Everything once round the ring, and from rank 1 to all; and a sum over ranks 0, 2 and 3."""
    mine = tensors()
    room = [torch.empty(each.shape, dtype=each.dtype) for each in mine]
    works = start_send(mine, (place.rank + 1) % place.size, place)
    works += start_receive(room, (place.rank - 1) % place.size, place)
    wait(works)
    specs = [TensorSpec("", tuple(each.shape), each.dtype, Layout()) for each in mine]
    own = [each.clone().contiguous() if place.rank == 1 else None for each in mine]
    shared = [share(value, 1, place, spec) for value, spec in zip(own, specs, strict=True)]
    total = torch.full((3,), 0.1 * (place.rank + 1))
    if place.rank != 1:
        sum_over(total, [0, 2, 3], place)
    return [room, shared, [total]]


def run(rank: int) -> tuple[list[list[Tensor]], list[Outcome], list[Outcome]]:
    torch.manual_seed(rank)
    place, _, _ = places(rank, NAIVE[0][0])
    alone = naive_on_ranks(rank, *zip(*NAIVE, strict=True))
    return travel(place), alone, naive_on_ranks(rank, *zip(*NAIVE_PAIRS, strict=True))


def same(ours: Tensor | None, theirs: Tensor | None, what: str) -> None:
    assert (ours is None) == (theirs is None), what
    if ours is not None:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=what)


def check_naive(case: Case, root: str, outcomes: list[Outcome]) -> None:
    """All ranks have the outputs and the gradient of x; None where the unsplit model has None."""
    total = read_schedule(case.schedule).num_stages(case.ranks)
    expected = reference(total, 1, FIRST_STEP, "loss" if root == "nothing" else root)
    width, compared = case.mesh.num_devices, 0
    for rank, one in enumerate(outcomes):
        assert one.loss is not None
        torch.testing.assert_close(one.loss, expected["loss"], rtol=1e-9, atol=0.0)
        torch.testing.assert_close(one.outputs[0], expected["outputs"][0], rtol=1e-9, atol=1e-12)
        same(one.seen, None if root == "nothing" else expected["x"], f"{case}: x")
        for number, grads in one.grads.items():
            for name, (ours,) in grads.items():
                theirs = None if root == "nothing" else expected["grads"][number][name]
                if theirs is not None:
                    layout = Layout((STORAGE[name],) * case.mesh.ndim)
                    theirs = shard(theirs, layout, case.mesh, rank % width)
                same(ours, theirs, f"{case}, {root}: {name} of stage {number} on rank {rank}")
                compared += 1
    assert compared == total * len(STORAGE) * width


def test_links() -> None:
    per_rank = run_ranks(run, 4, timeout_s=100.0)
    for (room, shared, _), _, _ in per_rank:
        for here, everywhere, sent in zip(room, shared, tensors(), strict=True):
            torch.testing.assert_close(here, sent.resolve_conj(), rtol=0.0, atol=0.0)
            torch.testing.assert_close(everywhere, sent.resolve_conj(), rtol=0.0, atol=0.0)
    totals = [found[0] for (_, _, found), _, _ in per_rank]
    exact = torch.full((3,), 0.1) + torch.full((3,), 0.1 * 3) + torch.full((3,), 0.1 * 4)
    for rank in (0, 2, 3):
        assert torch.equal(totals[rank], exact)
    assert torch.equal(totals[1], torch.full((3,), 0.1 * 2))
    for number, (case, root) in enumerate(NAIVE):
        check_naive(case, root, [alone[number] for _, alone, _ in per_rank])
    for number, (case, root) in enumerate(NAIVE_PAIRS):
        check_naive(case, root, [pairs[number] for _, _, pairs in per_rank])


def test_what_is_sent_must_fit() -> None:
    first = program(0, 2)
    values = [torch.zeros(shape, dtype=dtype) for shape, dtype, _ in SENT.values()]
    check_sent(values, first)
    with pytest.raises(
        RuntimeError, match=r"'z' as torch.float64 \[1, 3\], but the next one expects"
    ):
        check_sent([values[0], values[1][None], *values[2:]], first)
    with pytest.raises(RuntimeError, match=r"'m' as torch\.uint8"):
        check_sent([*values[:3], values[3].to(torch.uint8), values[4]], first)
