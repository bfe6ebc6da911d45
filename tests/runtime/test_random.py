"""Random numbers that do not depend on the plan."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.layouts import B, Layout, S, local_ranges, local_shape
from autoplan.mesh import Mesh
from autoplan.runtime.random import dropout_mask, random_bits
from autoplan.runtime.simulation import Simulator
from tests.runtime.logical import meaning

CPU = torch.device("cpu")
MESHES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(
    lambda sizes: Mesh(tuple("xyz"[: len(sizes)]), tuple(sizes))
)


@settings(deadline=None)
@given(
    MESHES,
    st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_the_shards_of_a_mask_are_the_whole_mask(
    mesh: Mesh, shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    splits = st.integers(0, len(shape) - 1).map(S)
    layout = Layout(data.draw(st.just(B) | splits) for _ in mesh.axes)
    key, step = data.draw(st.integers(0, 999)), data.draw(st.integers(0, 999))
    start = [0] * len(shape)
    whole = dropout_mask(torch.empty(shape), 0.4, shape, start, seed, key, step)
    masks = []
    for rank in range(mesh.num_devices):
        at = mesh.coordinates(rank)
        starts = [low for low, _ in local_ranges(shape, layout, mesh, at)]
        x = torch.empty(local_shape(shape, layout, mesh, at))
        masks.append(dropout_mask(x, 0.4, shape, starts, seed, key, step))
    assert torch.equal(meaning(masks, layout, mesh, shape), whole)


def mask(p: float = 0.5, seed: int = 0, key: int = 0, step: int = 0) -> torch.Tensor:
    shape = (120, 200)
    return dropout_mask(torch.empty(shape), p, shape, (0, 0), seed, key, step)


def assert_rate(hits: torch.Tensor, rate: float) -> None:
    """Within five standard deviations of a binomial."""
    sigma = math.sqrt(rate * (1 - rate) / hits.numel())
    assert abs(hits.double().mean().item() - rate) < 5 * sigma


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("seed", "key", "step"), [(0, 0, 0), (1, 7, 3), (2**63, 2**31, 10**6)])
def test_the_keep_rate(p: float, seed: int, key: int, step: int) -> None:
    kept = mask(p, seed, key, step)
    assert_rate(kept, 1 - p)
    assert_rate(kept[0], 1 - p)
    assert_rate(kept[:, 0], 1 - p)


def test_nothing_and_everything() -> None:
    assert mask(0.0).all()
    assert not mask(1.0).any()


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (0, 2), (0, 16)])
def test_neighbours_are_independent(shift: tuple[int, int]) -> None:
    kept = mask(0.3)
    assert_rate(kept == kept.roll(shift, (0, 1)), 0.3**2 + 0.7**2)


NEAR = [{}, {"seed": 1}, {"key": 1}, {"step": 1}, {"seed": 1, "key": 1}, {"seed": 2**32}]
NEAR += [{"seed": -1}, {"key": 2}, {"step": 2}]


@pytest.mark.parametrize("first", range(len(NEAR)))
def test_seed_key_and_step_each_give_an_independent_mask(first: int) -> None:
    ours = mask(0.3, **NEAR[first])
    assert torch.equal(ours, mask(0.3, **NEAR[first]))
    for other in NEAR[first + 1 :]:
        assert_rate(ours == mask(0.3, **other), 0.3**2 + 0.7**2)


def test_seed_key_and_step_do_not_change_places() -> None:
    assert not torch.equal(mask(seed=1, key=2), mask(seed=2, key=1))
    assert not torch.equal(mask(key=1, step=2), mask(key=2, step=1))


def test_positions_beyond_32_bits_count() -> None:
    shape, key = (2**20, 2**20), (1, 2)
    far = random_bits((4, 4), shape, (2**20 - 4, 2**20 - 4), key, CPU)
    inner = random_bits((2, 3), shape, (2**20 - 3, 2**20 - 3), key, CPU)
    assert torch.equal(far[1:3, 1:4], inner)
    # 2**12 rows lie 2**32 elements apart
    assert not torch.equal(
        random_bits((1, 64), shape, (0, 0), key, CPU),
        random_bits((1, 64), shape, (2**12, 0), key, CPU),
    )


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_default_dtype_changes_nothing(default: torch.dtype) -> None:
    expected = mask(0.1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert torch.equal(mask(0.1), expected)
    finally:
        torch.set_default_dtype(before)


def test_every_bit_is_a_fair_coin() -> None:
    numbers = torch.cat([random_bits((2**13,), (2**13,), (0,), (key,), CPU) for key in range(4)])
    assert numbers.min() >= 0
    assert numbers.max() < 2**32
    bits = [(numbers >> at) & 1 for at in range(32)]
    for at, bit in enumerate(bits):
        assert_rate(bit, 0.5)
        for other in bits[:at]:
            assert_rate(bit == other, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_scales_what_it_keeps(dtype: torch.dtype) -> None:
    comm = Simulator(Mesh.of(x=2), seed=5).comms[1]
    x = torch.full((4, 50), 3.0, dtype=dtype, requires_grad=True)
    out = comm.dropout(x, 0.25, (8, 50), (4, 0), key=9)
    kept = dropout_mask(x, 0.25, (8, 50), (4, 0), 5, 9, 0)
    scale = torch.ones((), dtype=dtype) / 0.75
    assert out.dtype == dtype
    assert torch.equal(out, torch.where(kept, x * scale, torch.zeros_like(x)))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, kept.to(dtype) * scale)
    assert not comm.dropout(x, 1.0, (8, 50), (4, 0), key=9).any()
    comm.step += 1
    assert not torch.equal(comm.dropout(x, 0.25, (8, 50), (4, 0), key=9), out)


def test_the_first_element_depends_on_the_key_as_all_others_do() -> None:
    cpu = torch.device("cpu")
    first = {int(random_bits((1,), (1,), (0,), (0, op, 0), cpu)) for op in range(64)}
    assert len(first) == 64
