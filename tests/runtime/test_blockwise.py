"""Blockwise algorithms: what their requests bring, their gradients, and real ranks beside one
process."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from autoplan.mesh import Mesh
from autoplan.runtime.blockwise import Backward, Forward, View, run_all
from autoplan.runtime.requests import Broadcast, Exchange, Reduce, Request, Shift
from autoplan.runtime.simulation import Simulator
from tests.runtime.blockwise_cases import (
    Asked,
    Turned,
    exchange,
    in_simulation,
    observed,
    on_this_rank,
    one_dies,
    one_stays_away,
    shift,
)
from tests.runtime.launch import RankError, run_ranks

LINE, SQUARE = Mesh.of(x=4), Mesh.of(x=2, y=2)
PLACES = [(LINE, "x"), (SQUARE, "x"), (SQUARE, "y")]
TYPES = (torch.float64, torch.bfloat16, torch.complex128, torch.int64, torch.bool)


def values_of(mesh: Mesh, dtype: torch.dtype, rows: int = 3) -> list[Tensor]:
    """One tensor a rank, laid out by columns."""
    generator = torch.Generator().manual_seed(rows)
    low, high = (0, 2) if dtype == torch.bool else (-9, 9)
    return [
        torch.randint(low, high, (2, rows), generator=generator).to(dtype).T
        for _ in range(mesh.num_devices)
    ]


def places_of(mesh: Mesh, axis: str) -> dict[int, tuple[int, list[int]]]:
    """Rank -> its index on the axis, and its group."""
    return {rank: (i, group) for group in mesh.groups(axis) for i, rank in enumerate(group)}


def shifts() -> list[Asked]:
    """By one, back, by more than the axis has; empty tensors, two of them, unequal ones."""
    cases = []
    for (mesh, axis), dtype, by in product(PLACES, TYPES, (1, -1, 7)):
        values, empty = values_of(mesh, dtype), torch.empty(0, 3, dtype=dtype)
        sent = tuple(Shift((value, empty, value[:1]), axis, by) for value in values)
        cases.append(Asked(mesh, sent))
    for mesh, axis in PLACES:  # rank i of the axis sends i rows
        unequal: list[Request] = []
        for rank, (index, group) in sorted(places_of(mesh, axis).items()):
            rows = (index - 1) % len(group)
            value = values_of(mesh, torch.float64, rows=index)[rank]
            unequal.append(Shift((value,), axis, shapes=((rows, 2),)))
        cases.append(Asked(mesh, tuple(unequal)))
    return cases


def broadcasts() -> list[Asked]:
    cases = []
    for (mesh, axis), dtype, rows in product(PLACES, TYPES, (3, 0)):
        values, root = values_of(mesh, dtype, rows), mesh.size(axis) - 1
        asked = [
            Broadcast(values[rank] if index == root else None, axis, root, (rows, 2), dtype)
            for rank, (index, _) in sorted(places_of(mesh, axis).items())
        ]
        cases.append(Asked(mesh, tuple(asked)))
    return cases


def reductions() -> list[Asked]:
    cases = []
    for (mesh, axis), dtype, rows in product(PLACES, TYPES[:4], (3, 0)):
        root = mesh.size(axis) - 1
        asked = [Reduce(value, axis, root) for value in values_of(mesh, dtype, rows)]
        cases.append(Asked(mesh, tuple(asked)))
    return cases


def exchanges() -> list[Asked]:
    """Rank p of the axis sends rank q as many rows as p + 2 q, some of them none."""
    cases = []
    for (mesh, axis), dtype in product(PLACES, TYPES):
        asked = []
        for rank, (index, group) in sorted(places_of(mesh, axis).items()):
            sent = [values_of(mesh, dtype, index + 2 * q)[rank] for q in range(len(group))]
            shapes = tuple((p + 2 * index, 2) for p in range(len(group)))
            asked.append(Exchange(tuple(sent), shapes, axis))
        cases.append(Asked(mesh, tuple(asked)))
    return cases


ASKED = [*shifts(), *broadcasts(), *reductions(), *exchanges()]
TURNED = [
    (mesh, Turned(axis, again), values_of(mesh, torch.float64), wanted)
    for (mesh, axis), again, wanted in product(PLACES, (False, True), (False, True))
]


@pytest.fixture(scope="module")
def reports() -> list[Any]:
    return run_ranks(on_this_rank, 4, ASKED, TURNED)


def expected(case: Asked) -> list[Any]:
    """What each rank is due, written from what the requests mean."""
    asked: Any = case.requests
    results: list[Any] = []
    for rank, (index, group) in sorted(places_of(case.mesh, asked[0].axis).items()):
        mine, theirs = asked[rank], [asked[other] for other in group]
        if isinstance(mine, Shift):
            results.append(theirs[(index - mine.by) % len(group)].values)
        elif isinstance(mine, Broadcast):
            results.append(theirs[mine.root].value)
        elif isinstance(mine, Reduce):
            total = torch.stack([each.value for each in theirs]).sum(0)
            results.append(total if index == mine.root else None)
        else:
            results.append(tuple(each.parts[index] for each in theirs))
    return results


def same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def name(case: Asked) -> str:
    first = case.requests[0]
    return f"{first.kind} on {first.axis} of {case.mesh}"


@pytest.mark.parametrize("number", range(len(ASKED)), ids=lambda n: f"{n} {name(ASKED[n])}")
def test_every_rank_gets_what_it_is_due(reports: list[Any], number: int) -> None:
    case = ASKED[number]
    simulator, seen = observed(case.mesh)
    simulated = simulator._perform(case.requests)
    for rank, due in enumerate(expected(case)):
        assert same(simulated[rank], due)
        assert same(reports[rank][0][number], due)
        request = case.requests[rank]
        assert seen[rank] == [(request.kind, request.num_bytes, request.axis)]


def test_bytes_are_those_that_a_rank_sends() -> None:
    """An exchange counts as the whole tensor, of which each of n ranks holds an n-th."""
    x = torch.ones(3, 2)
    assert Shift((x, x[:1]), "x").num_bytes == 32
    assert Broadcast(None, "x", 0, (3, 2), torch.float64).num_bytes == 48
    assert Reduce(x, "x", 0).num_bytes == 24
    assert Exchange((x, x[:1]), ((1, 2), (1, 2)), "x").num_bytes == 64


@pytest.mark.parametrize("number", range(len(TURNED)))
def test_gradients_are_the_algorithms_own(reports: list[Any], number: int) -> None:
    mesh, algorithm, values, wanted = TURNED[number]
    outcomes = in_simulation(mesh, algorithm, values, wanted)
    kind, size = ("all_to_all", mesh.size(algorithm.axis)) if algorithm.again else ("send", 1)
    for rank, (index, group) in places_of(mesh, algorithm.axis).items():
        ours, theirs = outcomes[rank], reports[rank][1][number]
        moved = values[group[index - 1]]
        assert torch.equal(ours.value, 3 * moved)
        x, weight = ours.grads
        assert torch.equal(x, torch.full_like(moved, 3))
        assert weight is None if not wanted else torch.equal(weight, moved.sum())
        assert ours.observed == [(kind, size * 48, algorithm.axis)] * 2
        assert same(ours.value, theirs.value)
        assert same(ours.grads, theirs.grads)
        assert ours.observed == theirs.observed


def test_a_gradient_of_a_gradient_is_refused() -> None:
    """Of what was kept as well as of the gradient that came."""
    values = [x.requires_grad_() for x in values_of(LINE, torch.float64)]
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    views = [View(LINE, LINE.coordinates(rank)) for rank in range(4)]
    given = [(x, weight) for x in values]
    found = run_all([Turned("x")] * 4, views, given, Simulator(LINE)._perform)
    for total in (sum(each.sum() for each in found), sum(each.square().sum() for each in found)):
        assert isinstance(total, Tensor)
        grads = torch.autograd.grad(total, values, create_graph=True, retain_graph=True)
        assert all(grad.requires_grad for grad in grads)
        with pytest.raises(RuntimeError, match=r"^Turned is differentiable once only"):
            torch.autograd.grad(grads[0].sum(), weight)


# -- ranks that do not meet -----------------------------------------------------------------


class _Odd:
    """Asks what it is told to."""

    def __init__(self, *requests: Request) -> None:
        self.requests = requests

    def forward(self, view: View, *tensors: Tensor) -> Forward:
        yield from self.requests
        return tensors[0], ()

    def backward(self, view: View, kept: tuple[Tensor, ...], grad: Tensor) -> Backward:
        yield from ()
        return (grad,)


_X = torch.ones(2)
_TWO = Mesh.of(x=2)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (([Shift((_X,), "x")], [Reduce(_X, "x", 0)]), r"different things.*reduce.*send"),
        (([], [Shift((_X,), "x")]), r"1 ranks are done while 1 wait in send"),
        (([Shift((_X,), "x")], [Shift((_X[:1],), "x")]), r"sends tensors of \[\(1,\)\] where"),
    ],
)
def test_ranks_that_do_not_meet_are_told(requests: Any, message: str) -> None:
    views = [View(_TWO, (rank,)) for rank in range(2)]
    algorithms = [_Odd(*each) for each in requests]
    with pytest.raises(RuntimeError, match=message):
        run_all(algorithms, views, [(_X,), (_X,)], Simulator(_TWO)._perform)


@pytest.mark.parametrize("make", [shift, exchange])
def test_a_rank_that_stays_away_is_not_waited_for_forever(make: Any) -> None:
    waited = run_ranks(one_stays_away, 2, make, 2.0, timeout_s=60)
    assert 1.5 < waited[0] < 10


@pytest.mark.parametrize("make", [shift, exchange])
def test_a_rank_that_fails_fails_the_others(make: Any) -> None:
    start = time.monotonic()
    with pytest.raises(RankError, match="had enough"):
        run_ranks(one_dies, 2, make, timeout_s=50)
    assert time.monotonic() - start < 40
