"""What can be given up of a pipeline: its stage map, its schedule, stage hints, schemes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autoplan.capture import Captured, capture
from autoplan.hints.demands import Demand, demands_of, only
from autoplan.pipeline_choice import PipelineChoice
from autoplan.request import Request, make_request


@pytest.fixture(scope="module")
def model() -> Captured:
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    return capture(layers, (torch.zeros(4, 4),))


def asked(pipeline: dict[str, Any], microbatches: int = 1, **options: Any) -> Request:
    given = {"size": 2} | pipeline
    return make_request(4, "cpu", {"pipeline": given}, microbatches=microbatches, **options)


def texts(captured: Captured, request: Request, kind: str) -> list[str]:
    return [str(each) for each in demands_of(captured, request) if each.kind == kind]


def without(captured: Captured, request: Request, kind: str) -> Request:
    kept = [each for each in demands_of(captured, request) if each.kind != kind]
    return only(captured, request, kept)[1]


def pipeline_of(request: Request) -> PipelineChoice:
    assert request.pipeline is not None
    return request.pipeline


def test_a_stage_map_is_given_up_alone(model: Captured) -> None:
    request = asked({"stage_map": [0, 0, 0, 1], "schedule": "gpipe"}, 4, hints={"3": "stage: 1"})
    assert texts(model, request, "stage_map") == ["stage_map=[0, 0, 0, 1]"]
    assert texts(model, request, "hint") == ["hint '3': 'stage: 1'"]
    less = without(model, request, "stage_map")
    assert pipeline_of(less).stage_map is None
    assert pipeline_of(less).schedule == "gpipe"
    assert less.hints == request.hints
    assert pipeline_of(without(model, request, "hint")).stage_map == (0, 0, 0, 1)
    assert not without(model, request, "hint").hints


@pytest.mark.parametrize(
    ("pipeline", "microbatches", "default"),
    [
        ({"schedule": "gpipe"}, 4, "1f1b"),
        ({"schedule": "zero-bubble", "chunks": 2}, 4, "interleaved-1f1b"),
        ({"schedule": "zbv"}, 4, "interleaved-1f1b"),
        ({"schedule": "zero-bubble", "chunks": 1}, 4, "1f1b"),
        ({"schedule": "gpipe"}, 1, None),  # one microbatch: the same order as without
        ({"schedule": "1f1b"}, 4, None),
        ({"schedule": "naive"}, 1, None),
        ({"schedule": "zbv"}, 5, None),  # which interleaved-1f1b cannot run
        ({}, 4, None),
    ],
    ids=str,
)
def test_a_schedule_is_given_up_for_the_default_one(
    model: Captured, pipeline: Any, microbatches: int, default: str | None
) -> None:
    request = asked(pipeline, microbatches)
    found = texts(model, request, "schedule")
    less = pipeline_of(without(model, request, "schedule"))
    assert (less.size, less.chunks) == (2, pipeline_of(request).chunks)
    if default is None:
        assert found == []
        assert less == request.pipeline
    else:
        assert found == [f"schedule={pipeline['schedule']!r}"]
        assert less.schedule == default
        less.order.check(2, microbatches)


def test_schemes_of_pipeline_ranks_are_given_up_one_by_one(model: Captured) -> None:
    request = asked({"stages": [{"data": 2}, {"tensor": {"size": 2, "mode": "1d"}}]})
    found = texts(model, request, "scheme")
    first, second = "parallel data=2 of stages[0]", "parallel tensor mode='1d' of stages[1]"
    assert found == [first, second]
    kept = [each for each in demands_of(model, request) if each != Demand("scheme", first)]
    meshes = pipeline_of(only(model, request, kept)[1]).meshes
    assert meshes is not None
    assert [dict(each[0].schemes) for each in meshes] == [{}, {"tensor": "1d"}]


def test_a_scheme_of_all_ranks_is_one_demand(model: Captured) -> None:
    request = asked({})
    assert texts(model, request, "scheme") == ["data parallelism, the default"]


def test_nothing_is_lost_where_all_is_kept(model: Captured) -> None:
    request = asked(
        {"stage_map": [0, 0, 1, 1], "schedule": "gpipe", "stages": [{"data": 2}, {}]}, 4
    )
    assert only(model, request, demands_of(model, request))[1] == request
