"""The device mesh: ranks, coordinates and groups, numbered as torch numbers them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoplan.errors import ConfigError
from autoplan.mesh import Mesh

MESHES = st.lists(st.integers(1, 4), max_size=4).map(
    lambda sizes: Mesh(tuple("wxyz"[: len(sizes)]), tuple(sizes))
)


def test_the_groups_of_two_axes() -> None:
    mesh = Mesh.of(data=2, tensor=4)
    assert mesh.groups("tensor") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert mesh.groups("data") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert (mesh.stride("data"), mesh.stride("tensor")) == (4, 1)


@given(MESHES)
def test_ranks_are_row_major(mesh: Mesh) -> None:
    ranks = torch.arange(mesh.num_devices).reshape(mesh.sizes)
    for rank in range(mesh.num_devices):
        assert ranks[mesh.coordinates(rank)].item() == rank
        assert mesh.rank(mesh.coordinates(rank)) == rank


@given(MESHES)
def test_groups_are_the_lines_of_the_mesh(mesh: Mesh) -> None:
    ranks = torch.arange(mesh.num_devices).reshape(mesh.sizes)
    for at, axis in enumerate(mesh.axes):
        lines = ranks.movedim(at, -1).reshape(-1, mesh.size(axis)).tolist()
        assert mesh.groups(axis) == lines
        for group in lines:
            steps = {after - before for before, after in pairwise(group)}
            assert steps <= {mesh.stride(axis)}


@given(MESHES)
def test_axes_of_one_device_collapse(mesh: Mesh) -> None:
    collapsed = Mesh.of(**dict(zip(mesh.axes, mesh.sizes, strict=True)))
    assert collapsed.num_devices == mesh.num_devices
    assert 1 not in collapsed.sizes
    assert [axis for axis in mesh.axes if mesh.size(axis) > 1] == list(collapsed.axes)


@pytest.mark.parametrize("rank", [-1, 8])
def test_ranks_outside_are_named(rank: int) -> None:
    with pytest.raises(ConfigError, match=str(rank)):
        Mesh.of(data=2, tensor=4).coordinates(rank)


@pytest.mark.parametrize(
    ("axes", "sizes"), [(("a",), (2, 2)), (("a", "a"), (2, 2)), (("a",), (0,)), (("a",), (-1,))]
)
def test_impossible_meshes(axes: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="a"):
        Mesh(axes, sizes)


def test_unknown_axes_are_named_with_the_known_ones() -> None:
    mesh = Mesh.of(data=2, tensor=4)
    for question in (mesh.index, mesh.size, mesh.stride, mesh.groups):
        with pytest.raises(ConfigError, match=r"'model'.*'data', 'tensor'"):
            question("model")


def test_text() -> None:
    assert str(Mesh.of(data=2, tensor=4)) == "data 2 x tensor 4"
    assert str(Mesh.of(data=1)) == "1 device"
