"""Exchanges of unequal numbers of rows: what arrives, its gradients, and real processes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from autoplan.mesh import Mesh
from tests.runtime.exchange_cases import Arrived, Exchange, in_simulation, on_this_rank
from tests.runtime.launch import run_ranks

LINE, SQUARE = Mesh.of(x=4), Mesh.of(x=2, y=2)
KINDS = ("some", "equal", "none", "to one rank", "to itself")


def _counts(kind: str, parts: int, generator: torch.Generator) -> Tensor:
    if kind == "some":
        return torch.randint(0, 4, (parts, parts), generator=generator)
    if kind == "to one rank":
        return torch.eye(parts, dtype=torch.int64)[1].expand(parts, parts) * 2
    if kind == "to itself":
        return torch.eye(parts, dtype=torch.int64) * 3
    return torch.full((parts, parts), 2 if kind == "equal" else 0)


def _case(mesh: Mesh, axis: str, kind: str, dtype: torch.dtype, spare: int) -> Exchange:
    """`spare` rows stay where they are, and as many zeros stand behind those that arrive."""
    generator = torch.Generator().manual_seed(spare)
    at, ranks = mesh.index(axis), range(mesh.num_devices)
    counts: list[Tensor] = [torch.empty(0)] * mesh.num_devices
    for group in mesh.groups(axis):
        table = _counts(kind, mesh.size(axis), generator).to(torch.int32)
        for rank in group:
            counts[rank] = table
    sent = [int(counts[rank][mesh.coordinates(rank)[at]].sum()) + spare for rank in ranks]
    arriving = [int(counts[rank][:, mesh.coordinates(rank)[at]].sum()) + spare for rank in ranks]

    def draw(rows: list[int]) -> tuple[Tensor, ...]:
        return tuple(
            torch.randint(-9, 9, (n, 3), generator=generator).to(dtype).T.contiguous().T
            for n in rows
        )

    lengths = tuple(arriving) if spare else (None,) * mesh.num_devices
    values, grads, again = draw(sent), draw(arriving), draw(sent)
    return Exchange(mesh, axis, tuple(counts), values, grads, again, lengths, rows=17)


CASES = [
    _case(mesh, axis, kind, dtype, spare)
    for (mesh, axis), kind, dtype, spare in product(
        [(LINE, "x"), (SQUARE, "x"), (SQUARE, "y")], KINDS, [torch.float64, torch.bfloat16], [0, 2]
    )
]


def _expected(case: Exchange, values: tuple[Tensor, ...], back: bool) -> list[Tensor]:
    """Who gets which rows, sender by sender. `back`: the way that gradients take."""
    at = case.mesh.index(case.axis)
    results = []
    for rank in range(case.mesh.num_devices):
        group = next(each for each in case.mesh.groups(case.axis) if rank in each)
        counts = case.counts[rank].T if back else case.counts[rank]
        me = case.mesh.coordinates(rank)[at]
        rows = [
            values[peer][int(counts[p, :me].sum()) :][: int(counts[p, me])]
            for p, peer in enumerate(group)
        ]
        length = case.values[rank].shape[0] if back else case.lengths[rank]
        arrived = torch.cat(rows)
        spare = arrived.new_zeros(0 if length is None else length - arrived.shape[0], 3)
        results.append(torch.cat([arrived, spare]))
    return results


@pytest.fixture(scope="module")
def simulated() -> list[list[Arrived]]:
    return [in_simulation(case) for case in CASES]


def test_each_rank_gets_the_rows_meant_for_it(simulated: list[list[Arrived]]) -> None:
    for case, outcomes in zip(CASES, simulated, strict=True):
        wanted = [
            _expected(case, case.values, back=False),
            _expected(case, case.grads, back=True),
            _expected(case, case.again, back=False),
        ]
        found = [[o.value, o.grad, o.grad_grad] for o in outcomes]
        for ours, theirs in zip(found, zip(*wanted, strict=True), strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert torch.equal(one, other)


def test_an_exchange_is_counted_as_an_all_to_all_of_all_rows(
    simulated: list[list[Arrived]],
) -> None:
    for case, outcomes in zip(CASES, simulated, strict=True):
        size = case.rows * 3 * case.values[0].element_size()
        for outcome in outcomes:
            assert outcome.observed == [("all_to_all", size, case.axis)] * 3


def test_real_processes_agree_with_the_simulation(simulated: list[list[Arrived]]) -> None:
    ranks = run_ranks(on_this_rank, 4, CASES)
    for number, outcomes in enumerate(simulated):
        for rank, ours in enumerate(outcomes):
            theirs = ranks[rank][number]
            for name in ("value", "grad", "grad_grad"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name)), CASES[number]
            assert ours.observed == theirs.observed
