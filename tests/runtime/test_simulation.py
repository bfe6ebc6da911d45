"""The value law in one process: boxing keeps the logical value, and the logical gradient."""

from __future__ import annotations

import random
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import fx

from autoplan.boxing import COLLECTIVES, Move, Router, layout_entries
from autoplan.layouts import BP, B, Entry, Layout, P, Partial, S
from autoplan.mesh import Mesh
from autoplan.runtime.simulation import (
    Simulator,
    gather,
    join,
    scatter,
    shard,
)
from tests.runtime.boxing_cases import Case, check, in_simulation, make_case
from tests.runtime.logical import chunks, meaning, random_price, single_moves, spread

MESHES = [
    Mesh.of(x=2),
    Mesh.of(x=4),
    Mesh.of(x=2, y=2),
    Mesh.of(x=2, y=3),
    Mesh.of(x=2, y=2, z=2),
]


@cache
def router(mesh: Mesh, seed: int) -> Router:
    return Router(mesh, random_price(seed))


@st.composite
def cases(draw: DrawFn) -> Case:
    """Two random layouts of a small tensor, and the path between them under random prices."""
    mesh = draw(st.sampled_from(MESHES))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4 - mesh.ndim)))
    gradient = draw(st.booleans())
    dtype = draw(st.sampled_from([torch.float64] if gradient else [torch.int64, torch.bool]))
    entries = layout_entries(shape, gradient)
    layouts = st.lists(st.sampled_from(entries), min_size=mesh.ndim, max_size=mesh.ndim)
    source, target = Layout(draw(layouts)), Layout(draw(layouts))
    seed = draw(st.integers(0, 5))
    moves = router(mesh, seed).path(source, target, shape, dtype.itemsize, gradient)
    return make_case(
        mesh,
        moves,
        (source, target),
        shape,
        dtype,
        draw(st.integers(0, 2**20)),
        gradient=gradient,
        strided=draw(st.booleans()),
    )


@settings(max_examples=250, deadline=None)
@given(cases())
def test_boxing_keeps_the_logical_value_and_gradient(case: Case) -> None:
    check(case, in_simulation(case))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8])
@pytest.mark.parametrize(
    "move", single_moves(Mesh.of(x=4), (B, BP, P, S(0), S(1))), ids=lambda m: str(m.target)
)
def test_every_step_on_even_uneven_and_empty_shards(move: Move, size: int) -> None:
    for shape in [(size, 3), (3, size)]:
        case = make_case(Mesh.of(x=4), [move], (move.source, move.target), shape, torch.float64, 1)
        check(case, in_simulation(case))


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_observer_sees_the_collectives_of_the_moves(case: Case) -> None:
    """Rank 0 holds the largest shards: it sees the bytes that the planner prices."""
    shape, itemsize = tuple(case.whole.shape), case.whole.dtype.itemsize
    expected = []
    for move in case.moves:
        name, *_ = move.actions(needs_gradient=False)
        size = move.whole_bytes(shape, itemsize, case.mesh)
        expected.append((name, size, case.mesh.axes[move.axis]))
    if case.grads:
        for move in reversed(case.moves):
            name = move.actions(needs_gradient=True)[1]
            size = move.whole_bytes(shape, itemsize, case.mesh)
            expected.append((name, size, case.mesh.axes[move.axis]))
        expected += expected[: len(case.moves)]  # the second derivative goes forward again
    expected = [each for each in expected if each[0] in COLLECTIVES]
    outcomes = in_simulation(case)
    assert outcomes[0].observed == expected
    assert all(len(o.observed) == len(expected) for o in outcomes)


@pytest.mark.parametrize("reduction", ["max", "min"])
@pytest.mark.parametrize("target", [B, S(0)])
def test_a_partial_maximum_is_reduced_as_one(reduction: str, target: Entry) -> None:
    mesh = Mesh.of(x=3)
    source, goal = Layout((Partial(reduction),)), Layout((target,))
    values = [torch.tensor([1.0, 5.0, 2.0, 0.0]).roll(rank) for rank in range(3)]
    moves = [Move(0, source, goal)]
    steps = [moves[0].bind((4,), mesh, mesh.coordinates(rank)) for rank in range(3)]
    whole = getattr(torch.stack(values), f"a{reduction}")(0)
    assert torch.equal(meaning(Simulator(mesh).box(values, steps), goal, mesh, (4,)), whole)


# -- programs -----------------------------------------------------------------------------


class TwoSteps(torch.nn.Module):
    def forward(self, comm, x):  # type: ignore[no-untyped-def]
        whole = comm.box(x, "S(0) -> B/P", axis="x", sizes=(5, 0))
        peak = comm.all_reduce_max(whole.abs().sum(1) * (comm.coordinates[1] + 1), "y")
        return (whole * 2, peak)


def two_steps(mesh: Mesh) -> list[fx.GraphModule]:
    class Tracer(fx.Tracer):
        def getattr(self, attr, value, parameters):  # type: ignore[no-untyped-def]
            return value

    root = TwoSteps()
    return [fx.GraphModule(root, Tracer().trace(root)) for _ in range(mesh.num_devices)]


def test_a_program_runs_on_all_ranks_in_lockstep() -> None:
    mesh = Mesh.of(x=2, y=2)
    whole = torch.arange(10.0).reshape(5, 2).requires_grad_()
    seen: list[str] = []
    outputs, peaks = Simulator(mesh).run(
        two_steps(mesh),
        [scatter(whole, Layout((S(0), B)), mesh)],
        lambda node, values: seen.append(node.name),
    )
    assert seen[:3] == ["comm", "x", "box"]
    assert all(torch.equal(output, whole * 2) for output in outputs)
    assert all(torch.equal(peak, whole.abs().sum(1) * 2) for peak in peaks)
    # B/P: every rank along x has its addend of the gradient
    grads = spread(torch.ones(5, 2), Layout((P, B)), mesh, random.Random(3))
    (grad,) = torch.autograd.grad(outputs, whole, grads)
    assert torch.equal(grad, torch.full((5, 2), 2.0))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_causal_mask_of_a_shard_is_a_slice_of_the_whole(parts: int) -> None:
    comm = Simulator(Mesh.of(x=2)).comms[0]
    scores = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0))
    whole = scores.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), float("-inf"))
    shards = chunks(scores, parts, 1)
    starts = [sum(shard.shape[1] for shard in shards[:k]) for k in range(parts)]
    masked = [comm.causal_mask(s, start) for s, start in zip(shards, starts, strict=True)]
    assert torch.equal(torch.cat(masked, 1), whole)


def test_a_simulated_rank_cannot_run_alone() -> None:
    comm = Simulator(Mesh.of(x=2)).comms[0]
    with pytest.raises(RuntimeError, match="Simulator"):
        comm.box(torch.zeros(2), "S(0) -> B", axis="x", sizes=(4, 0))
    with pytest.raises(RuntimeError, match="Simulator"):
        comm.all_reduce_max(torch.zeros(2), "x")


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_scatter_and_join_are_inverse_and_pass_gradients(mesh: Mesh) -> None:
    whole = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    entries: tuple[Entry, ...] = (B, S(0), S(1))
    for layout in map(Layout, product(entries, repeat=mesh.ndim)):
        values = scatter(whole, layout, mesh)
        assert torch.equal(meaning(values, layout, mesh, (5, 7)), whole)
        assert torch.equal(join(values, layout, mesh, (5, 7)), whole)
        for rank, value in enumerate(values):
            assert torch.equal(shard(whole, layout, mesh, rank), value)
        (grad,) = torch.autograd.grad(values, whole, [3 * value.detach() for value in values])
        assert torch.equal(grad, 3 * whole)


def test_gather_gives_every_rank_the_whole_gradient() -> None:
    values = [torch.ones(3, requires_grad=True) for _ in range(4)]
    seed = torch.tensor([1.0, 2.0, 3.0])
    whole = gather(values)
    assert torch.equal(whole, torch.ones(3))
    assert all(torch.equal(grad, seed) for grad in torch.autograd.grad(whole, values, seed))
