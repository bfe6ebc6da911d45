"""`parallel=dict(pipeline=...)`: which pipelines it means, and what it says of impossible ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.errors import ConfigError
from autoplan.mesh import Mesh
from autoplan.parallel import mesh_choices
from autoplan.pipeline_choice import PipelineChoice, default_schedule, pipeline_choice
from autoplan.pipelining.schedules import SCHEDULES
from autoplan.request import make_request

ONE_D = {"size": 2, "mode": "1d"}
SIX = {"size": 2, "stage_map": [0] * 4 + [1] * 2}


def choice(parallel: Any, devices: int = 8, microbatches: int = 1) -> PipelineChoice | None:
    return pipeline_choice(parallel, None, devices, microbatches)


# -- meshes of one pipeline rank ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "preset", "mesh", "schemes"),
    [
        ({"pipeline": 4}, None, Mesh.of(data=2), {"data": "data"}),
        ({"pipeline": {"size": 4}}, None, Mesh.of(data=2), {"data": "data"}),
        ({"pipeline": 8}, None, Mesh.of(), {}),
        ({"pipeline": 2, "tensor": ONE_D}, None, Mesh.of(data=2, tensor=2),
         {"data": "data", "tensor": "1d"}),
        ({"pipeline": 2, "data": 2, "tensor": ONE_D}, None, Mesh.of(data=2, tensor=2),
         {"data": "data", "tensor": "1d"}),
        ({"pipeline": 4, "tensor": ONE_D}, None, Mesh.of(tensor=2), {"tensor": "1d"}),
        ({"pipeline": 2, "data": 4}, "fsdp", Mesh.of(data=4), {"data": "fsdp"}),
        ({"pipeline": 2, "tensor": ONE_D}, "megatron", Mesh.of(data=2, tensor=2),
         {"data": "data", "tensor": "megatron"}),
        ({"pipeline": 2, "mesh": {"a": 2, "b": 2}}, None, Mesh.of(a=2, b=2), {}),
        ({"pipeline": 2, "mesh": {"a": 4}}, "ddp", Mesh.of(a=4), {"a": "ddp"}),
        ({"pipeline": None, "data": 8}, None, Mesh.of(data=8), {"data": "data"}),
        ({"pipeline": {}, "data": 8}, None, Mesh.of(data=8), {"data": "data"}),
    ],
)  # fmt: skip
def test_meshes_are_those_of_one_pipeline_rank(
    parallel: Any, preset: Any, mesh: Mesh, schemes: dict[str, str]
) -> None:
    (found,) = mesh_choices(parallel, preset, 8)
    assert found.mesh == mesh
    assert dict(found.schemes) == schemes
    request = make_request(8, "cpu", parallel, preset)
    assert request.meshes == (found,)
    size = 1 if request.pipeline is None else request.pipeline.size
    assert size * found.mesh.num_devices == 8


@given(
    data=st.none() | st.integers(1, 4),
    tensor=st.none() | st.integers(1, 4),
    pipeline=st.none() | st.integers(1, 4),
    devices=st.sampled_from([1, 2, 4, 6, 8, 12, 16, 24]),
)
def test_the_product_is_the_number_of_devices_or_an_error(
    data: int | None, tensor: int | None, pipeline: int | None, devices: int
) -> None:
    parallel = {
        "data": data,
        "tensor": tensor and {"size": tensor, "mode": "free"},
        "pipeline": pipeline,
    }
    others = (tensor or 1) * (pipeline or 1)
    possible = devices % others == 0 if data is None else data * others == devices
    if not possible:
        with pytest.raises(ConfigError, match=rf"\b{devices}\b"):
            make_request(devices, "cpu", parallel)
        return
    request = make_request(devices, "cpu", parallel)
    sizes = dict(zip(request.meshes[0].mesh.axes, request.meshes[0].mesh.sizes, strict=True))
    assert sizes.get("tensor", 1) == (tensor or 1)
    assert sizes.get("data", 1) == devices // others
    assert request.num_stages == (pipeline or 1)


# -- schedules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "microbatches", "schedule", "chunks"),
    [
        (4, 1, "naive", 1),
        (4, 2, "gpipe", 1),
        (4, 4, "1f1b", 1),
        (4, 9, "1f1b", 1),
        ({"size": 4, "chunks": 1}, 8, "1f1b", 1),
        ({"size": 4, "chunks": 2}, 8, "interleaved-1f1b", 2),
        ({"size": 4, "chunks": 3}, 4, "interleaved-1f1b", 3),
        ({"size": 4, "schedule": "1F1B"}, 4, "1f1b", 1),
        ({"size": 4, "schedule": "GPipe", "chunks": 1}, 2, "gpipe", 1),
        ({"size": 2, "schedule": "interleaved"}, 4, "interleaved-1f1b", 2),
        ({"size": 2, "schedule": "zero_bubble", "chunks": 3}, 4, "zero-bubble", 3),
        ({"size": 2, "schedule": "zero-bubble", "chunks": 1}, 4, "zero-bubble", 1),
        ({"size": 2, "schedule": "ZBVZeroBubble"}, 2, "zbv", 2),
        ({"size": 2, "schedule": "dualpipev", "chunks": 2}, 4, "dualpipev", 2),
    ],
)
def test_schedules(pipeline: Any, microbatches: int, schedule: str, chunks: int) -> None:
    found = choice({"pipeline": pipeline}, microbatches=microbatches)
    assert found is not None
    assert (found.schedule, found.chunks) == (schedule, chunks)
    assert found.num_stages == found.size * chunks
    assert found.order == replace(SCHEDULES[schedule], chunks=chunks)
    assert (found.stage_map, found.meshes) == (None, None)


@given(size=st.integers(2, 8), microbatches=st.integers(1, 20))
def test_a_default_schedule_always_runs(size: int, microbatches: int) -> None:
    default_schedule(size, microbatches).check(size, microbatches)


@pytest.mark.parametrize(
    "pipeline", [None, 1, {}, {"size": 1}, {"size": 1, "schedule": "1f1b", "stage_map": [0, 0]}],
    ids=str,
)  # fmt: skip
def test_size_1_is_no_pipeline(pipeline: Any) -> None:
    """A schedule of one stage runs one microbatch after another, as without it."""
    assert choice({"pipeline": pipeline}, microbatches=4) is None


def test_without_parallel_there_is_no_pipeline() -> None:
    assert choice(None) is None
    assert make_request(4, "cpu").num_stages == 1


# -- stage maps -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "written", "found"),
    [
        (4, [0] * 6 + [1] * 7 + [2] * 7 + [3] * 4, (0,) * 6 + (1,) * 7 + (2,) * 7 + (3,) * 4),
        (2, [0, 0, 0, 1], (0, 0, 0, 1)),
        (2, (0, -1), (0, 1)),
        (3, [-3, -2, 1, -1], (0, 1, 1, 2)),
    ],
)
def test_stage_maps(size: int, written: Any, found: tuple[int, ...]) -> None:
    made = choice({"pipeline": {"size": size, "stage_map": written}}, devices=12)
    assert made is not None
    assert made.stage_map == found


@given(st.integers(2, 3), st.lists(st.integers(0, 3), max_size=6))
def test_a_stage_map_goes_up_one_by_one_to_the_last_stage(size: int, written: list[int]) -> None:
    steps = [b - a for a, b in zip([0, *written], written, strict=False)]
    legal = bool(written) and written[0] == 0 and set(steps) <= {0, 1} and written[-1] == size - 1
    parallel = {"pipeline": {"size": size, "stage_map": written}}
    if not legal:
        with pytest.raises(ConfigError, match="stage_map"):
            choice(parallel, devices=size)
        return
    made = choice(parallel, devices=size)
    assert made is not None
    assert made.stage_map == tuple(written)


# -- meshes for each pipeline rank ----------------------------------------------------------------


def test_every_pipeline_rank_may_have_its_own_mesh() -> None:
    stages = [{"data": 2}, {"tensor": {"size": 2, "mode": "free"}}]
    request = make_request(4, "cpu", {"pipeline": {"size": 2, "stages": stages}})
    assert request.pipeline is not None
    assert request.pipeline.meshes is not None
    ((first,), (second,)) = request.pipeline.meshes
    assert (first.mesh, dict(first.schemes)) == (Mesh.of(data=2), {"data": "data"})
    assert (second.mesh, dict(second.schemes)) == (Mesh.of(tensor=2), {})
    assert first.written == {"data": "parallel data=2 of stages[0]"}


def test_none_stands_for_the_axes_beside_the_pipeline() -> None:
    pipeline = {"size": 2, "stages": [None, {"mesh": {"a": 2, "b": 2}}]}
    request = make_request(8, "cpu", {"data": 4, "pipeline": pipeline})
    assert request.pipeline is not None
    assert request.pipeline.meshes is not None
    beside, own = request.pipeline.meshes
    assert beside == request.meshes
    assert beside[0].mesh == Mesh.of(data=4)
    assert [each.mesh for each in own] == [Mesh.of(a=2, b=2)]


def test_a_preset_binds_each_of_them() -> None:
    stages = [{"data": 2}, {"mesh": {"x": 2}}]
    found = pipeline_choice({"pipeline": {"size": 2, "stages": stages}}, "fsdp", 4, 1)
    assert found is not None
    assert found.meshes is not None
    assert [dict(each[0].schemes) for each in found.meshes] == [{"data": "fsdp"}, {"x": "fsdp"}]


def test_without_stages_all_ranks_have_the_same_mesh() -> None:
    request = make_request(8, "cpu", {"pipeline": 4})
    assert request.pipeline is not None
    assert request.pipeline.meshes is None
    assert [each.mesh for each in request.meshes] == [Mesh.of(data=2)]


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "microbatches", "message"),
    [
        # sizes
        ({"pipeline": 3}, 1, r"pipeline size 3 does not divide 8 devices.*9 devices"),
        ({"pipeline": 3, "tensor": ONE_D}, 1, r"tensor x pipeline = 6 does not divide 8.*12"),
        ({"pipeline": 4, "data": 2, "tensor": ONE_D}, 1,
         r"data 2 x tensor 2 x pipeline 4 = 16 devices, but devices=8"),
        ({"pipeline": 4, "mesh": {"a": 2, "b": 2}}, 1,
         r"a 2 x b 2 x pipeline 4 = 16 devices, but devices=8"),
        ({"pipeline": 2, "mesh": {"a": 4}, "data": 1}, 1, r"no other key but pipeline"),
        ({"pipeline": 0}, 1, r"the size of pipeline must be a positive whole number, got 0"),
        ({"pipeline": True}, 1, r"got True"),
        ({"pipeline": "4"}, 1, r"got '4'"),
        ({"pipeline": {"size": 2.0}}, 1, r"got 2\.0"),
        ({"pipeline": {"sise": 2}}, 1, r"no key 'sise' \(did you mean 'size'\?\)"),
        ({"pipeline": {"size": 2, "stagemap": [0, 1]}}, 1, r"\(did you mean 'stage_map'\?\)"),
        # schedules
        ({"pipeline": {"size": 4, "schedule": "1f1b"}}, 2,
         r"'1f1b' on 4 pipeline ranks needs at least 4 microbatches, got 2; use microbatches=4"),
        ({"pipeline": {"size": 4, "schedule": "dualpipev"}}, 4,
         r"'dualpipev' on 4 .* at least 8 microbatches, got 4; use microbatches=8"),
        ({"pipeline": {"size": 2, "schedule": "naive"}}, 4,
         r"'naive' runs the whole batch as 1 microbatch, got 4; use schedule 'gpipe'"),
        ({"pipeline": {"size": 2, "schedule": "interleaved"}}, 5, r"which 5.*use 4 or 6"),
        ({"pipeline": {"size": 2, "schedule": "1f1f"}}, 4, r"'1f1f' \(did you mean '1f1b'\?\)"),
        ({"pipeline": {"size": 2, "schedule": 3}}, 4, r"no pipeline schedule is called 3"),
        ({"pipeline": {"size": 2, "schedule": "1f1b", "chunks": 2}}, 4,
         r"schedule='1f1b', chunks=2: .*exactly 1 stage per rank, got 2; .*'interleaved-1f1b'"),
        ({"pipeline": {"size": 2, "schedule": "zbv", "chunks": 3}}, 4,
         r"chunks=3: schedule 'zbv' has exactly 2 stages per rank, got 3"),
        ({"pipeline": {"size": 2, "schedule": "interleaved", "chunks": 1}}, 4,
         r"needs at least 2 stages per rank, got 1; use '1f1b'"),
        ({"pipeline": {"size": 2, "chunks": 0}}, 4, r"chunks.*positive whole number, got 0"),
        ({"pipeline": {"size": 2, "chunks": 1.5}}, 4, r"chunks.*got 1\.5"),
        ({"pipeline": {"size": 1, "chunks": 2}}, 4, r"chunks=2 puts 2 stages.*size 1"),
        ({"pipeline": {"size": 1, "schedule": "zbv"}}, 4, r"'zbv'.*at least 2 pipeline ranks"),
        ({"pipeline": {"size": 1, "schedule": "gpip"}}, 4, r"did you mean 'gpipe'"),
        # stage maps
        ({"pipeline": {"size": 2, "stage_map": [0, 1, 2]}}, 1,
         r"stage_map \(pipeline 2 x chunks 1\): .*2 stages.*0 to 1, or -2 to -1.*got 2"),
        ({"pipeline": {"size": 2, "stage_map": [0, 1, 0]}}, 1,
         r"stage_map has stage 0 at entry 2, after stage 1"),
        ({"pipeline": {"size": 4, "stage_map": [0, 1, 3]}}, 1,
         r"stage_map has stage 3 at entry 2, after stage 1.*none left out"),
        ({"pipeline": {"size": 2, "stage_map": [1, 1]}}, 1, r"has stage 1 at entry 0.*stage 0"),
        ({"pipeline": {"size": 2, "stage_map": [0, 0]}}, 1,
         r"ends with stage 0, and pipeline 2 x chunks 1 has 2 stages"),
        ({"pipeline": SIX | {"chunks": 2}}, 4, r"ends with stage 1, and pipeline 2 x chunks 2"),
        ({"pipeline": {"size": 2, "stage_map": []}}, 1, r"stage_map is empty"),
        ({"pipeline": {"size": 2, "stage_map": "01"}}, 1, r"a list of stage numbers.*got '01'"),
        ({"pipeline": {"size": 2, "stage_map": [0, True]}}, 1, r"list of stage numbers"),
        ({"pipeline": {"size": 2, "stage_map": 1}}, 1, r"list of stage numbers.*got 1"),
        ({"pipeline": {"size": 1, "stage_map": [0, 1]}}, 1, r"the plan has 1 stage.*got 1"),
        ({"pipeline": {"stage_map": [0, 1]}}, 1, r"says no size"),
        # meshes of their own
        ({"pipeline": {"size": 2, "stages": [{}]}}, 1, r"stages has 1 of the 2 entries"),
        ({"pipeline": {"size": 2, "chunks": 2, "stages": [{}] * 4}}, 4, r"stages has 4 of the 2"),
        ({"pipeline": {"size": 2, "stages": {"data": 4}}}, 1, r"stages is a list.*got \{'data'"),
        ({"pipeline": {"size": 2, "stages": [{"data": 3}, {}]}}, 1,
         r"stages\[0\]=\{'data': 3\}, for 4 devices: data 3 x tensor 1 = 3 devices"),
        ({"pipeline": {"size": 2, "stages": [{}, {"tensor": 2}]}}, 1,
         r"stages\[1\]=\{'tensor': 2\}, for 4 devices: tensor=2 says no mode"),
        ({"pipeline": {"size": 2, "stages": [{}, {"pipeline": 2}]}}, 1,
         r"stages\[1\].*has no pipeline of its own"),
        ({"pipeline": {"size": 2, "stages": [3, {}]}}, 1, r"stages\[0\]=3.*is a dict"),
        ({"data": 4, "pipeline": {"size": 2, "stages": [{}, {}]}}, 1,
         r"data beside pipeline would hold nowhere"),
        ({"pipeline": {"size": 1, "stages": [{"data": 8}]}}, 1, r"pipeline size 1 is one rank"),
    ],
)  # fmt: skip
def test_impossible_pipelines_are_refused(parallel: Any, microbatches: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_request(8, "cpu", parallel, microbatches=microbatches)
