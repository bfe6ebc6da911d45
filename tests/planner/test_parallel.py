"""The `parallel` argument: which meshes it means, and what it says about impossible ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import autoplan
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh
from autoplan.parallel import mesh_choices
from autoplan.request import read_bytes
from tests.planner.models import MLP

ONE_D = {"size": 2, "mode": "1d"}


@pytest.mark.parametrize(
    ("parallel", "preset", "devices", "mesh", "schemes"),
    [
        ({"data": 4}, None, 4, Mesh.of(data=4), {"data": "data"}),
        ({"data": {"size": 4}}, None, 4, Mesh.of(data=4), {"data": "data"}),
        ({"tensor": ONE_D}, None, 2, Mesh.of(tensor=2), {"tensor": "1d"}),
        ({"tensor": ONE_D}, None, 8, Mesh.of(data=4, tensor=2), {"data": "data", "tensor": "1d"}),
        ({"data": 2, "tensor": ONE_D}, None, 4, Mesh.of(data=2, tensor=2),
         {"data": "data", "tensor": "1d"}),
        ({"tensor": {"size": 2, "mode": "free"}}, None, 4, Mesh.of(data=2, tensor=2),
         {"data": "data"}),
        ({"tensor": 1}, None, 4, Mesh.of(data=4), {"data": "data"}),
        ({"data": 4, "pipeline": 1}, None, 4, Mesh.of(data=4), {"data": "data"}),
        ({"data": 4, "pipeline": {"size": 1}}, None, 4, Mesh.of(data=4), {"data": "data"}),
        ({"data": 2, "pipeline": 2}, None, 4, Mesh.of(data=2), {"data": "data"}),
        ({"data": 1}, None, 1, Mesh.of(), {}),
        ({"data": 4}, "fsdp", 4, Mesh.of(data=4), {"data": "fsdp"}),
        ({"data": 2, "tensor": ONE_D}, "fsdp", 4, Mesh.of(data=2, tensor=2),
         {"data": "fsdp", "tensor": "1d"}),
        ({"data": 2, "tensor": ONE_D}, "megatron", 4, Mesh.of(data=2, tensor=2),
         {"data": "data", "tensor": "megatron"}),
        ({"mesh": {"x": 2, "y": 4}}, None, 8, Mesh.of(x=2, y=4), {}),
        ({"mesh": {"x": 1, "y": 4}}, None, 4, Mesh.of(y=4), {}),
        ({"mesh": {"x": 2, "y": 2}}, "ddp", 4, Mesh.of(x=2, y=2), {"x": "ddp", "y": "ddp"}),
        (None, "ddp", 4, Mesh.of(devices=4), {"devices": "ddp"}),
        (None, None, 1, Mesh.of(), {}),
        (None, None, 3, Mesh.of(devices=3), {}),
    ],
)  # fmt: skip
def test_meshes(
    parallel: Any, preset: Any, devices: int, mesh: Mesh, schemes: dict[str, str]
) -> None:
    (choice,) = mesh_choices(parallel, preset, devices)
    assert choice.mesh == mesh
    assert dict(choice.schemes) == schemes


@pytest.mark.parametrize("devices", [1, 2, 4, 6, 8, 12, 16])
def test_free_meshes_are_one_axis_and_every_pair(devices: int) -> None:
    meshes = [choice.mesh for choice in mesh_choices(None, None, devices)]
    assert all(mesh.num_devices == devices for mesh in meshes)
    shapes = [mesh.sizes for mesh in meshes]
    pairs = [(a, devices // a) for a in range(2, devices) if devices % a == 0]
    assert sorted(shapes) == sorted([(devices,) if devices > 1 else (), *pairs])


@pytest.mark.parametrize(
    ("parallel", "devices", "message"),
    [
        ({"date": 4}, 4, r"no key 'date' \(did you mean 'data'\?\).*'data', 'tensor'"),
        ({"data": 3}, 4, r"data 3 x tensor 1 = 3 devices, but devices=4.*devices=3"),
        ({"data": 2, "tensor": ONE_D}, 8, r"data 2 x tensor 2 = 4 devices, but devices=8"),
        ({"tensor": {"size": 3, "mode": "1d"}}, 8, r"3 does not divide 8.*9 devices"),
        ({"tensor": 2}, 4, r"says no mode.*dict\(size=2, mode='1d'\).*mode='free'"),
        ({"tensor": {"size": 2}}, 4, "says no mode"),
        ({"tensor": {"size": 2, "mode": "2d"}}, 4, r"mode '2d' is not known; use '1d', 'free'"),
        ({"tensor": {"sizes": 2, "mode": "1d"}}, 4, r"no key 'sizes' \(did you mean 'size'"),
        ({"data": {"sise": 2}}, 4, r"no key 'sise' \(did you mean 'size'"),
        ({"data": 0}, 4, r"size of data must be a positive whole number, got 0"),
        ({"data": 2.0}, 4, r"got 2\.0"),
        ({"data": True}, 4, r"got True"),
        ({"data": "4"}, 4, r"got '4'"),
        ({"data": -4}, 4, r"got -4"),
        ({"pipeline": 2, "data": 4}, 4, r"data 4 x tensor 1 x pipeline 2 = 8 devices.*devices=4"),
        ({"mesh": {"x": 2, "y": 3}}, 8, r"x 2 x y 3 = 6 devices, but devices=8"),
        ({"mesh": {"x": 4}, "data": 1}, 4, r"names every axis itself.*no other key"),
        ({"mesh": 4}, 4, r"names every axis itself"),
        ({"mesh": {"x": 0}}, 4, r"mesh axis 'x' must be a positive whole number, got 0"),
        ([2, 2], 4, r"parallel is a dict such as dict\(data=2"),
        ("data", 4, "parallel is a dict"),
        (None, 0, r"devices must be a positive number, got 0"),
        (None, -1, "got -1"),
        (None, 2.0, r"got 2\.0"),
        (None, True, "got True"),
        (None, "8", "got '8'"),
    ],
)  # fmt: skip
def test_impossible_meshes_are_refused(parallel: Any, devices: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mesh_choices(parallel, None, devices)


def test_the_free_search_takes_the_best_mesh() -> None:
    """Planning every mesh by itself finds nothing faster."""
    model, x = MLP(64, 256), torch.randn(32, 64)
    free = autoplan.plan(model, (x,), devices=4, cluster="cpu")
    times = []
    for choice in mesh_choices(None, None, 4):
        sizes = dict(zip(choice.mesh.axes, choice.mesh.sizes, strict=True))
        plan = autoplan.plan(model, (x,), devices=4, cluster="cpu", parallel={"mesh": sizes})
        times.append(plan.step_time_s)
    assert len(times) == 2
    assert math.isclose(free.step_time_s, min(times), rel_tol=1e-9)


def test_unknown_presets_are_refused() -> None:
    x = torch.randn(4, 8)
    with pytest.raises(ConfigError, match=r"'fdsp' \(did you mean 'fsdp'\?\); there are data, ddp"):
        autoplan.plan(MLP(), (x,), devices=2, cluster="cpu", preset="fdsp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microbatches": 0}, "microbatches must be a positive whole number, got 0"),
        ({"microbatches": 1.5}, r"got 1\.5"),
        ({"outputs": "all"}, "outputs must be 'loss' or 'whole', got 'all'"),
        ({"optimizer": "adamx"}, r"no optimizer is called 'adamx' \(did you mean 'adam"),
        ({"cluster": "h10"}, r"h100"),
        ({"memory": "12 parsecs"}, r"bytes per device.*'12 parsecs'"),
        ({"memory": 0}, "got 0"),
        ({"memory": -1}, "got -1"),
        ({"memory": float("nan")}, "got nan"),
        *(
            pytest.param(given, ".")
            for given in (
                {"memory": "1.2.3GB"},
                {"memory": float("inf")},
                {"memory": "0GB"},
                {"optimizer": None},
                {"time_limit_s": "soon"},
                {"training": "no"},
            )
        ),
    ],
    ids=str,
)
def test_other_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    given = {"devices": 2, "cluster": "cpu"} | options
    with pytest.raises(ConfigError, match=message):
        autoplan.plan(MLP(), (torch.randn(4, 8),), **given)


def test_a_batch_that_is_no_multiple_of_the_microbatches() -> None:
    with pytest.raises(autoplan.InputError, match="batch of 4 cannot be cut into 3"):
        autoplan.plan(MLP(), (torch.randn(4, 8),), devices=2, cluster="cpu", microbatches=3)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("300 mb", 3 * 10**8), (1e6, 10**6), (7, 7)],
)
def test_memory_reads_numbers_and_units(text: Any, size: int) -> None:
    assert read_bytes(text) == size
