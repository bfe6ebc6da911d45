"""Bounds: no schedule beats them, and no plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.capture import Captured, capture
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.pipeline_choice import PipelineChoice
from autoplan.pipelining.events import Times, simulate
from autoplan.pipelining.pieces import pieces_of
from autoplan.pipelining.schedules import read_schedule
from autoplan.request import make_request
from autoplan.search import find_on_mesh
from autoplan.space.bounds import compute_s, ops_of, pipeline_floor_s
from autoplan.space.shapes import Shape, free_meshes, request_at
from autoplan.space.shorten import Short, shorten
from tests.planner.models import Residual, gpt2, token_ids

SCHEDULES = [("gpipe", 1), ("1f1b", 1), ("interleaved-1f1b", 2), ("zero-bubble", 2), ("zbv", 2)]


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_schedule_is_faster(name: str, chunks: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 4))
    count = size * data.draw(st.integers(1 if chunks == 1 else 2, 4))
    stages = size * chunks
    seconds = st.floats(0.0, 1.0)
    forward = data.draw(st.lists(seconds, min_size=stages, max_size=stages))
    backward = data.draw(st.lists(seconds, min_size=stages, max_size=stages))
    schedule = read_schedule(name, chunks if name != "zbv" else None)
    zeros = [0.0] * (stages - 1)
    after = data.draw(st.lists(st.floats(0.0, 4.0), min_size=size, max_size=size))
    times = Times(
        forward_s=forward,
        backward_s=backward,
        forward_transfer_s=zeros,
        backward_transfer_s=zeros,
        after_s=after,
    )
    run = simulate(schedule.orders(size, count), times)
    shape = Shape(MeshChoice(Mesh.of(x=1)), count, PipelineChoice(size, name, chunks))
    work_s = count * (sum(forward) + sum(backward))
    most = run.makespan_s * (1 + 1e-9) + 1e-12
    assert pipeline_floor_s(work_s, shape) <= most
    assert pipeline_floor_s(work_s + sum(after), shape, once=True) <= most


def test_the_floor_of_a_plain_schedule_is_reached() -> None:
    """Where later stages are shorter, by what they wait for those before them."""
    size, count = 3, 4
    share = [(1 - 1 / count) ** s / count for s in range(size)]
    total = sum(share)
    stages = [each / total for each in share]
    busiest = max(sum(stages[:s]) + count * stages[s] for s in range(size))
    shape = Shape(MeshChoice(Mesh.of(x=1)), count, PipelineChoice(size, "1f1b", 1))
    assert pipeline_floor_s(count * 1.0, shape) == pytest.approx(busiest)


def test_one_microbatch_runs_stage_after_stage() -> None:
    shape = Shape(MeshChoice(Mesh.of(x=1)), 1, PipelineChoice(4, "naive", 1))
    assert pipeline_floor_s(3.0, shape) == pytest.approx(3.0)


def _captured(family: str, rows: int) -> Captured:
    if family == "residual":
        return capture(Residual(3), (torch.randn(rows, 16),))
    ids = token_ids(rows, 16)
    return capture(gpt2(), (ids,), {"labels": ids})


@pytest.mark.parametrize("family", ["residual", "gpt2"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_computing_alone_takes_less_than_any_plan(family: str, devices: int) -> None:
    request = make_request(devices, "h100", {"pipeline": 1})
    captured = _captured(family, 8)
    floor = compute_s(ops_of(whole(captured)), request.cluster, devices)
    assert floor > 0.0
    for mesh in free_meshes(devices, 8):
        asked = replace(request, meshes=(MeshChoice(mesh),))
        found = find_on_mesh(captured, asked, MeshChoice(mesh))
        assert floor <= found.solution.certificate.bound


def whole(captured: Captured) -> Short:
    """A model of which nothing is left out."""
    pieces = pieces_of(captured)
    return Short(captured, pieces, tuple(range(len(pieces))))


def test_on_one_device_only_what_runs_once_a_step_is_left_out() -> None:
    request = make_request(1, "h100", optimizer="none")
    captured = _captured("gpt2", 4)
    found = find_on_mesh(captured, request, request.meshes[0])
    floor = compute_s(ops_of(whole(captured)), request.cluster, 1)
    once = [site for site in found.annotated.sites if site.parameter_only]
    once_s = sum(float(found.pricer.costs(site)[0]) for site in once)
    assert floor + once_s == pytest.approx(found.solution.certificate.objective, abs=1e-6)


def test_a_short_model_has_the_ops_of_the_whole_one() -> None:
    ids = token_ids(4, 16)
    captured = capture(gpt2(n_layer=6), (ids,), {"labels": ids})
    short = shorten(captured, pieces_of(captured))
    assert not short.is_whole
    assert ops_of(short) == ops_of(whole(captured))


@pytest.mark.parametrize("family", ["residual", "gpt2"])
@pytest.mark.parametrize("cluster", ["h100", "cpu"])
def test_cutting_a_batch_further_never_takes_less(family: str, cluster: str) -> None:
    """Which lets a bound of the fewest microbatches stand for more of them."""
    mesh = MeshChoice(Mesh.of(x=2, y=2))
    request = make_request(4, cluster, {"mesh": {"x": 2, "y": 2}})
    objectives = []
    for count in (1, 2, 4, 8):
        asked = request_at(request, Shape(mesh, count))
        found = find_on_mesh(_captured(family, 8 // count), asked, mesh)
        objectives.append(found.solution.certificate.objective)
    assert objectives == sorted(objectives)


def test_what_depends_on_parameters_alone_is_not_counted() -> None:
    class Merged(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.randn(64, 8))
            self.b = torch.nn.Parameter(torch.randn(8, 64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ (self.a @ self.b)).square().mean()

    ops = ops_of(whole(capture(Merged(), (torch.randn(4, 64),))))
    (product,) = (each.forward for each in ops if each.forward.kind == "matmul")
    assert product.flops == 2 * 4 * 64 * 64


def test_meshes_of_few_and_of_many_devices() -> None:
    assert [m.sizes for m in free_meshes(1, 8)] == [Mesh.of(devices=1).sizes]
    sizes = [m.sizes for m in free_meshes(8, 8)]
    assert sizes == [(8,), (4, 2), (2, 4), (2, 2, 2)]
    many = free_meshes(1024, 8)
    assert all(m.num_devices == 1024 for m in many)
    assert all(m.sizes[-1] <= 16 for m in many if m.ndim > 1)
    assert Mesh.of(outer=128, inner=8) in many
