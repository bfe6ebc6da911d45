"""The `parallel` argument: which meshes it means, and what it says about impossible ones."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import autoplan
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice, mesh_choices, pipeline_size
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
        ({"tensor": {"size": 2, "mode": "2.5"}}, 4,
         r"mode '2.5' is not known \(did you mean '2.5d'\?\); use '1d', '2d', '2.5d', '3d'"),
        ({"tensor": {"size": 2, "mode": 2}}, 4, r"tensor mode 2 is not known"),
        ({"tensor": {"mode": None}}, 4, r"says no mode; write tensor=dict\(mode='1d'\)"),
        # grids
        ({"tensor": {"size": 8, "mode": "2d"}}, 8,
         r"size=8 does not fit mode='2d'.*use size=4 or 9"),
        ({"tensor": {"size": 4, "mode": "3d"}}, 8, r"size=4 does not fit mode='3d'.*use size=8"),
        ({"tensor": {"size": 8, "mode": "2.5d", "depth": 3}}, 8,
         r"with depth=3.*depth=2, or size="),
        ({"tensor": {"size": 8, "mode": "1d", "depth": 2}}, 8,
         r"mode='1d' has no depth, got depth=2"),
        ({"tensor": {"size": 8, "mode": "2.5d", "depth": 0}}, 8,
         r"depth of tensor must be a pos.*got 0"),
        ({"tensor": {"mode": "2d"}, "data": 1}, 8,
         r"tensor mode='2d' on 8 devices: tensor size=8 does"),
        ({"tensor": {"size": 4, "mode": "2d", "sequence_parallel": True}}, 8,
         r"sequence_parallel=True is a choice of tensor mode='1d', got mode='2d'"),
        ({"tensor": {"size": 4, "mode": "1d", "sequence_parallel": "yes"}}, 8,
         r"True or False, got 'y"),
        # data
        ({"data": {"size": 4, "mode": "fdsp"}}, 4,
         r"'fdsp' is not known \(did you mean 'fsdp'\?\); use"),
        ({"data": {"size": 4, "mode": "hsdp", "shard": 3}}, 4,
         r"shard=3 does not divide data size 4; use"
         r" one of 1, 2, 4"),
        ({"data": {"mode": "hsdp"}}, 3,
         r"data size 3 cannot be copies of shards.*mode='fsdp' or 'ddp'"),
        ({"data": {"size": 4, "mode": "fsdp", "shard": 2}}, 4,
         r"shard=2.*mode='fsdp' has no such copies"),
        ({"data": {"size": 4, "zero": 4}}, 4, r"data zero is a stage of ZeRO, 1, 2 or 3, got 4"),
        ({"data": {"size": 4, "zero": True}}, 4, r"1, 2 or 3, got True"),
        ({"data": {"size": 4, "zero": 1, "mode": "ddp"}}, 4,
         r"mode='ddp' keeps everything whole.*zero=1"),
        # sequence, expert
        ({"sequence": {"size": 2, "mode": "rings"}}, 4,
         r"sequence mode 'rings'.*did you mean 'ring'"),
        ({"sequence": {"sise": 2}}, 4,
         r"parallel\['sequence'\] has no key 'sise' \(did you mean 'size'"),
        ({"expert": {"mode": "ring"}}, 4,
         r"parallel\['expert'\] has no key 'mode'; the keys are 'size'"),
        ({"sequense": 2}, 4, r"no key 'sequense' \(did you mean 'sequence'\?\)"),
        ({"data": 2, "sequence": {"size": 2, "mode": "ring"}, "expert": 2}, 4,
         r"data 2 x expert 2 x sequence 2 x tensor 1 = 8 devices, but devices=4"),
        ({"sequence": 2}, 4,
         r"sequence=2 says no mode; write sequence=dict\(size=2, mode='ulysses'\)"),
        ({"sequence": {"size": 3, "mode": "ring"}, "expert": 2}, 8,
         r"expert x sequence = 6 does not divide 8 devices.*12 devices"),
        # no size at all
        ({"tensor": {"mode": "1d"}, "data": 3}, 8, r"data size 3 does not divide 8 devices"),
        ({"tensor": {"mode": "1d"}}, 1,
         r"tensor mode='1d' says no size, and of 1 devices 1 is left"),
        ({"tensor": {"mode": "1d"}, "data": 4}, 4, r"says no size, and of 4 devices 1 is left"),
        ({"tensor": {"mode": "3d"}}, 4, r"tensor mode='3d' on 4 devices: .*does not fit mode='3d'"),
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
        ({"mesh": {"x": {"size": 4, "mode": "fsdp"}}}, 4,
         r"parallel\['mesh'\]\['x'\] has no key 'mode'"),
        ({"mesh": {"x": {"preset": "fsdp"}}}, 4, r"size of mesh axis 'x' must be.*got None"),
        ({"mesh": {"x": {"size": 4, "preset": "fdsp"}}}, 4, r"no preset is called 'fdsp'.*'fsdp'"),
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


# -- parts and their presets ----------------------------------------------------------------------

HSDP = {"size": 8, "mode": "hsdp", "shard": 4}


@pytest.mark.parametrize(
    ("parallel", "preset", "devices", "schemes"),
    [
        # data: axes in order, each with its preset
        ({"data": {"size": 4, "mode": "ddp"}}, None, 4, "data 4 ddp"),
        ({"data": {"mode": "fsdp"}}, None, 4, "data 4 fsdp"),
        ({"data": {"zero": 1}}, None, 4, "data 4 zero1"),
        ({"data": {"zero": 2, "mode": "fsdp"}}, None, 4, "data 4 zero2"),
        ({"data": HSDP}, None, 8, "replicate 2 ddp, shard 4 fsdp"),
        ({"data": {"shard": 2}}, None, 8, "replicate 4 ddp, shard 2 fsdp"),
        ({"data": {"mode": "hsdp", "shard": 8}}, None, 8, "shard 8 fsdp"),
        ({"data": HSDP | {"zero": 1}}, None, 8, "replicate 2 ddp, shard 4 zero1"),
        ({"data": HSDP, "tensor": ONE_D}, None, 16, "replicate 2 ddp, shard 4 fsdp, tensor 2 1d"),
        # tensor
        ({"tensor": ONE_D | {"sequence_parallel": True}}, None, 2, "tensor 2 megatron-sp"),
        ({"tensor": ONE_D | {"sequence_parallel": False}}, None, 2, "tensor 2 megatron"),
        ({"tensor": {"size": 4, "mode": "2d"}}, None, 4,
         "tensor_row 2 2d-row, tensor_column 2 2d-column"),
        ({"tensor": {"size": 4, "mode": "2d"}}, None, 8,
         "data 2 data, tensor_row 2 2d-row, tensor_column 2 2d-column"),
        ({"tensor": {"size": 8, "mode": "2.5d", "depth": 2}}, None, 8,
         "tensor_depth 2 2.5d-depth, tensor_row 2 2d-row, tensor_column 2 2d-column"),
        ({"tensor": {"size": 8, "mode": "3d"}}, None, 8,
         "tensor_input 2 3d-input, tensor_output 2 3d-output, tensor_weight 2 3d-weight"),
        # sequence and expert, outside of tensor
        ({"sequence": {"size": 4, "mode": "ring"}}, None, 8, "data 2 data, sequence 4 ring"),
        ({"expert": 2, "sequence": {"size": 2, "mode": "ulysses"}, "tensor": ONE_D,
         "data": 2}, None, 16,
         "data 2 data, expert 2 expert, sequence 2 ulysses, tensor 2 1d"),
        # presets alone make the axes that the entries make
        (None, "2d", 4, "tensor_row 2 2d-row, tensor_column 2 2d-column"),
        (None, "2.5d", 8,
         "tensor_depth 2 2.5d-depth, tensor_row 2 2d-row, tensor_column 2 2d-column"),
        (None, "3d", 8,
         "tensor_input 2 3d-input, tensor_output 2 3d-output, tensor_weight 2 3d-weight"),
        (None, "ulysses", 4, "sequence 4 ulysses"),
        (None, "ring", 4, "sequence 4 ring"),
        (None, "expert", 4, "expert 4 expert"),
        (None, "zero1", 4, "devices 4 zero1"),
        (None, "hsdp", 4, "replicate 2 ddp, shard 2 fsdp"),
        # presets beside entries are their modes
        ({"data": 4}, "hsdp", 4, "replicate 2 ddp, shard 2 fsdp"),
        ({"data": {"size": 4, "shard": 4}}, "hsdp", 4, "shard 4 fsdp"),
        ({"data": 4}, "zero3", 4, "data 4 zero3"),
        ({"data": {"size": 4, "mode": "fsdp"}}, "fsdp", 4, "data 4 fsdp"),
        ({"tensor": 4}, "2d", 8, "data 2 data, tensor_row 2 2d-row, tensor_column 2 2d-column"),
        ({"tensor": 2}, "megatron-sp", 4, "data 2 data, tensor 2 megatron-sp"),
        ({"tensor": ONE_D}, "fsdp", 4, "data 2 fsdp, tensor 2 1d"),
        ({"sequence": 2}, "ring", 4, "data 2 data, sequence 2 ring"),
        ({"data": 2}, "ring", 8, "data 2 data, sequence 4 ring"),
        ({"pipeline": 2}, "3d", 16,
         "tensor_input 2 3d-input, tensor_output 2 3d-output, tensor_weight 2 3d-weight"),
        ({"pipeline": 2, "expert": 2}, "expert", 8, "data 2 data, expert 2 expert"),
        # mesh, each axis by itself
        ({"mesh": {"x": 2, "y": {"size": 2, "preset": "fsdp"}}}, None, 4, "x 2, y 2 fsdp"),
        ({"mesh": {"x": 2, "y": {"size": 2}}}, None, 4, "x 2, y 2"),
        ({"mesh": {"x": {"size": 2, "preset": "ddp"}, "y": 2}}, "ddp", 4, "x 2 ddp, y 2 ddp"),
    ],
)  # fmt: skip
def test_parts_make_axes_that_are_bound(
    parallel: Any, preset: Any, devices: int, schemes: str
) -> None:
    (choice,) = mesh_choices(parallel, preset, devices)
    assert spoken(choice) == schemes
    assert choice.written.keys() == choice.schemes.keys()
    size = pipeline_size(parallel or {})
    (again,) = mesh_choices({**choice.as_parallel(), "pipeline": size}, None, devices)
    assert (again.mesh, again.schemes) == (choice.mesh, choice.schemes)


def spoken(choice: MeshChoice) -> str:
    """`data 2 fsdp, tensor 4`."""
    axes = zip(choice.mesh.axes, choice.mesh.sizes, strict=True)
    return ", ".join(f"{axis} {size} {choice.schemes.get(axis, '')}".strip() for axis, size in axes)


@pytest.mark.parametrize(
    ("parallel", "devices", "node_size", "found"),
    [
        ({}, 16, 8, ["replicate 2 ddp, shard 8 fsdp"]),
        ({}, 16, 4, ["replicate 4 ddp, shard 4 fsdp"]),
        # beside inner axes, the ranks that a node has left
        ({"tensor": ONE_D}, 16, 8, ["replicate 2 ddp, shard 4 fsdp, tensor 2 1d"]),
        # no such number: any
        ({}, 8, 8, ["replicate 4 ddp, shard 2 fsdp", "replicate 2 ddp, shard 4 fsdp"]),
        ({}, 12, 8, ["replicate 6 ddp, shard 2 fsdp", "replicate 4 ddp, shard 3 fsdp",
                     "replicate 3 ddp, shard 4 fsdp", "replicate 2 ddp, shard 6 fsdp"]),
        ({}, 8, None, ["replicate 4 ddp, shard 2 fsdp", "replicate 2 ddp, shard 4 fsdp"]),
    ],
)  # fmt: skip
def test_shards_of_hsdp_are_nodes_where_these_fit(
    parallel: Any, devices: int, node_size: int | None, found: list[str]
) -> None:
    choices = mesh_choices(parallel, "hsdp", devices, node_size)
    assert [spoken(choice) for choice in choices] == found
    mode = {**parallel, "data": {"mode": "hsdp"}}
    assert [spoken(each) for each in mesh_choices(mode, None, devices, node_size)] == found


@pytest.mark.parametrize(
    ("preset", "parallel", "message"),
    [
        ("fsdp", {"data": {"mode": "ddp"}},
         r"preset='fsdp' and parallel data mode='ddp' say different"),
        ("zero1", {"data": {"zero": 2}}, r"preset='zero1' and parallel data zero=2 say different"),
        ("fsdp", {"data": {"zero": 1}}, r"say different things; leave one of them out"),
        ("2d", {"tensor": ONE_D}, r"preset='2d' and parallel tensor mode='1d' say different"),
        ("megatron", {"tensor": ONE_D | {"sequence_parallel": True}},
         r"sequence_parallel=True say diff"),
        ("ring", {"sequence": {"mode": "ulysses"}},
         r"preset='ring' and parallel sequence mode='uly"),
        ("ddp", {"mesh": {"x": {"size": 4, "preset": "fsdp"}}},
         r"preset='ddp' and mesh x=.*different"),
        ("2d", {"mesh": {"x": 4}}, r"preset='2d' makes axes of its own, and mesh=\{'x': 4\} names"),
        ("2d", {"data": 2}, r"preset='2d' on 4 devices: tensor size=2 does not fit mode='2d'"),
        ("2bd", None, r"no preset is called '2bd' \(did you mean '2d'\?\); there are data, ddp"),
        ("hsdb", {}, r"no preset is called 'hsdb' \(did you mean 'hsdp'\?\)"),
        (["ddp"], {}, r"no preset is called \['ddp'\]"),
    ],
)  # fmt: skip
def test_presets_that_contradict_are_refused(preset: Any, parallel: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mesh_choices(parallel, preset, 4)


def test_the_axes_of_a_grid_are_no_presets_of_their_own() -> None:
    with pytest.raises(ConfigError) as error:
        mesh_choices(None, "nothing", 4)
    assert "2d-row" not in str(error.value)
    assert "2.5d" in str(error.value)


# -- entries without a size -----------------------------------------------------------------------

parts = st.fixed_dictionaries(
    {},
    optional={
        "data": st.sampled_from([1, 2, 4, {"mode": "fsdp"}, {"mode": "hsdp"}, {"zero": 2}]),
        "expert": st.sampled_from([1, 2, {}]),
        "sequence": st.sampled_from(
            [1, {"mode": "ring"}, {"size": 2, "mode": "free"}, {"size": 2, "mode": "ulysses"}]
        ),
        "tensor": st.sampled_from(
            [{"mode": "1d"}, {"size": 2, "mode": "free"}, {"mode": "2d"}, {"mode": "2.5d"},
             {"mode": "3d"}, {"mode": "1d", "sequence_parallel": True}]
        ),
        "pipeline": st.sampled_from([1, 2]),
    },
)  # fmt: skip


@given(parts, st.sampled_from([1, 2, 4, 6, 8, 12, 16]))
@settings(max_examples=300, deadline=None)
def test_every_size_that_fits_is_a_choice_and_no_other(parallel: Any, devices: int) -> None:
    """Against all products of sizes that were tried one by one."""
    room = devices // parallel.get("pipeline", 1)
    asked = {name: each for name, each in parallel.items() if name != "pipeline"}
    tries = [
        [size_of(each)] if size_of(each) else list(range(1 if name == "data" else 2, room + 1))
        for name, each in {"data": {}, **asked}.items()
    ]
    expected = []
    for sizes in itertools.product(*tries):
        given = dict(zip(["data", *(n for n in asked if n != "data")], sizes, strict=True))
        with contextlib.suppress(ConfigError):
            entries = {name: with_size(asked.get(name, {}), size) for name, size in given.items()}
            expected += mesh_choices({**parallel, **entries}, None, devices)
    try:
        found = mesh_choices(parallel, None, devices)
    except ConfigError:
        assert not expected
        return
    assert sorted(map(spoken, found)) == sorted(map(spoken, expected))
    assert [each.mesh.ndim for each in found] == sorted(each.mesh.ndim for each in found)
    for each in found:
        assert each.mesh.num_devices == room
        (again,) = mesh_choices({**parallel, **each.as_parallel()}, None, devices)
        assert (again.mesh, again.schemes) == (each.mesh, each.schemes)


def size_of(entry: Any) -> int | None:
    size: int | None = entry.get("size") if isinstance(entry, dict) else entry
    return size


def with_size(entry: Any, size: int) -> dict[str, Any]:
    return {**(entry if isinstance(entry, dict) else {}), "size": size}


def test_a_choice_of_any_schemes_is_written_as_a_mesh() -> None:
    choice = MeshChoice(Mesh.of(a=2, b=4), {"b": "fsdp"})
    assert choice.as_parallel() == {"mesh": {"a": 2, "b": {"size": 4, "preset": "fsdp"}}}
    assert mesh_choices(choice.as_parallel(), None, 8)[0].schemes == {"b": "fsdp"}
    (bound,) = mesh_choices({"data": {"size": 8, "mode": "fsdp"}}, None, 8)
    freed = bound.without_schemes(["data"])
    assert freed.as_parallel() == {"mesh": {"data": 8}}
    assert bound.without_schemes([]).as_parallel() == bound.as_parallel()


# -- the search -----------------------------------------------------------------------------------


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
