"""The value law between real processes: bit for bit what the simulation gives, and sees."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from torch import Tensor

from autoplan.boxing import COLLECTIVES, Move, Router, layout_entries
from autoplan.layouts import BP, B, Entry, Layout, P, Partial, S
from autoplan.mesh import Mesh
from autoplan.runtime.simulation import Simulator
from tests.runtime.boxing_cases import (
    Case,
    Outcome,
    RankReport,
    bucket_in_simulation,
    check,
    in_simulation,
    make_case,
    run_cases,
)
from tests.runtime.launch import run_ranks
from tests.runtime.logical import meaning, random_price, single_moves

LINE, SQUARE = Mesh.of(x=4), Mesh.of(x=2, y=2)
GRADIENT_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.complex128)
VALUE_TYPES = (torch.int64, torch.bool)
RANKED = [torch.tensor([1.0, 5.0, 2.0, -3.0]).roll(rank) for rank in range(4)]


def line_cases() -> list[Case]:
    """Every single step, on even, uneven and empty shards, in every dtype."""
    cases = []
    for number, (move, dtype) in enumerate(
        product(single_moves(LINE, (B, BP, P, S(0), S(1))), GRADIENT_TYPES)
    ):
        shapes = [(8, 4), (5, 7), (3, 2), (0, 4)] if dtype == torch.float64 else [(5, 3)]
        ends = (move.source, move.target)
        cases += [
            make_case(LINE, [move], ends, shape, dtype, number, strided=number % 2 == 1)
            for shape in shapes
        ]
    for move, dtype in product(single_moves(LINE, (B, P, S(0), S(1))), VALUE_TYPES):
        ends = (move.source, move.target)
        cases.append(make_case(LINE, [move], ends, (5, 3), dtype, 0, gradient=False))
    targets: tuple[Entry, ...] = (B, S(0))
    for reduction, entry in product(("max", "min"), targets):
        ends = Layout((Partial(reduction),)), Layout((entry,))
        cases.append(
            make_case(LINE, [Move(0, *ends)], ends, (5, 3), torch.float32, 7, gradient=False)
        )
    return cases


def square_cases() -> list[Case]:
    """Random pairs of layouts on two axes, along the paths of random prices."""
    draw = random.Random(0)
    cases = []
    for number in range(160):
        dtype = ((torch.float64,) * 4 + GRADIENT_TYPES + VALUE_TYPES)[number % 10]
        gradient = dtype in GRADIENT_TYPES
        shape = draw.choice([(4, 6), (5, 7), (3, 5), (2, 3, 2), (7,)])
        entries = layout_entries(shape, gradient)
        source, target = (Layout(draw.choices(entries, k=2)) for _ in range(2))
        router = Router(SQUARE, random_price(number))
        moves = router.path(source, target, shape, dtype.itemsize, gradient)
        cases.append(
            make_case(
                SQUARE,
                moves,
                (source, target),
                shape,
                dtype,
                number,
                gradient=gradient,
                strided=draw.random() < 0.3,
            )
        )
    return cases


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return line_cases() + square_cases()


@pytest.fixture(scope="module")
def buckets(cases: list[Case]) -> dict[tuple[str, str, torch.dtype], list[Case]]:
    """The single steps that may share a collective."""
    result: dict[tuple[str, str, torch.dtype], list[Case]] = {}
    for case in cases:
        if case.mesh == LINE and case.grads:
            forward, backward = case.moves[0].actions(needs_gradient=True)
            result.setdefault((forward, backward, case.whole.dtype), []).append(case)
    return result


@pytest.fixture(scope="module")
def reports(
    cases: list[Case], buckets: dict[tuple[str, str, torch.dtype], list[Case]]
) -> list[RankReport]:
    return run_ranks(run_cases, 4, cases, list(buckets.values()), RANKED)


def outcomes_of(case: int, reports: list[RankReport]) -> list[Outcome]:
    return [report.outcomes[case] for report in reports]


def test_real_processes_keep_the_logical_value_and_gradient(
    cases: list[Case], reports: list[RankReport]
) -> None:
    for number, case in enumerate(cases):
        if not any(isinstance(e, Partial) and e.reduction != "sum" for e in case.source):
            check(case, outcomes_of(number, reports))


def same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_real_processes_agree_with_the_simulation_bit_for_bit(
    cases: list[Case], reports: list[RankReport]
) -> None:
    for number, case in enumerate(cases):
        for real, simulated in zip(outcomes_of(number, reports), in_simulation(case), strict=True):
            assert same(real.value, simulated.value), case
            assert same(real.grad, simulated.grad), case
            assert same(real.grad_grad, simulated.grad_grad), case
            assert real.observed == simulated.observed, case


def test_a_bucket_is_one_collective_that_does_what_its_steps_do(
    buckets: dict[tuple[str, str, torch.dtype], list[Case]], reports: list[RankReport]
) -> None:
    assert max(map(len, buckets.values())) > 4
    for number, ((forward, backward, _), bucket) in enumerate(buckets.items()):
        alone = [outcome for case in bucket for outcome in in_simulation(case)]
        simulated = bucket_in_simulation(bucket)
        real = [report.buckets[number][at] for at in range(len(bucket)) for report in reports]
        sizes = [
            case.moves[0].whole_bytes(tuple(case.whole.shape), case.whole.dtype.itemsize, LINE)
            for case in bucket
        ]
        seen = [(name, sum(sizes), "x") for name in (forward, backward) if name in COLLECTIVES]
        for one, ours, theirs in zip(alone, simulated, real, strict=True):
            assert same(one.value, ours.value)
            assert same(one.value, theirs.value)
            assert same(one.grad, ours.grad)
            assert same(one.grad, theirs.grad)
            assert ours.observed == theirs.observed == seen


def test_the_cases_meet_every_collective_both_ways(reports: list[RankReport]) -> None:
    seen = {(name, axis) for o in reports[0].outcomes for name, _, axis in o.observed}
    names = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")
    assert seen == set(product(names, ("x", "y")))


def test_partial_maxima(cases: list[Case], reports: list[RankReport]) -> None:
    found = 0
    for number, case in enumerate(cases):
        (entry, *others) = case.source
        if others or not isinstance(entry, Partial) or entry.reduction == "sum":
            continue
        whole = getattr(torch.stack(case.values), f"a{entry.reduction}")(0)
        values = [outcome.value for outcome in outcomes_of(number, reports)]
        assert torch.equal(meaning(values, case.target, LINE, tuple(whole.shape)), whole)
        found += 1
    assert found == 4


def test_torch_numbers_the_groups_as_the_mesh_does(reports: list[RankReport]) -> None:
    for rank, report in enumerate(reports):
        assert {mesh for mesh, _ in report.groups} == {LINE, SQUARE}
        for (mesh, axis), group in report.groups.items():
            assert group in mesh.groups(axis)
            assert rank in group


def test_all_reduce_max(reports: list[RankReport]) -> None:
    for mesh, axis in [(LINE, "x"), (SQUARE, "x"), (SQUARE, "y")]:
        simulator = Simulator(mesh)
        observed: list[tuple[str, int, str]] = []
        simulator.comms[0].observer = lambda *call, seen=observed: seen.append(call)
        simulated = simulator._all_reduce_max(list(RANKED), axis)
        for group in mesh.groups(axis):
            largest = torch.stack([RANKED[rank] for rank in group]).amax(0)
            for rank in group:
                value, seen = reports[rank].maxima[mesh, axis]
                assert torch.equal(value, largest)
                assert torch.equal(simulated[rank], largest)
                assert seen == observed == [("all_reduce", 16, axis)]
