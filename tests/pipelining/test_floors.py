"""Floors: no cut takes less, and where stages are alike little more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoplan.capture import capture
from autoplan.errors import InfeasibleError
from autoplan.pipelining.floors import floor_s
from autoplan.pipelining.planner import search_pipeline
from autoplan.pipelining.stages import solve_stages
from autoplan.planning import plan_captured
from autoplan.request import make_request
from tests.pipelining.test_planner import Uneven, every_cut

SCHEDULES = ("naive", "gpipe", "1f1b", "interleaved-1f1b", "zero-bubble", "zbv")
BESIDE: tuple[dict[str, Any], ...] = (
    {"data": 1},
    {"data": 2},
    {"tensor": {"size": 2, "mode": "free"}},
)


@pytest.mark.parametrize("recompute", ["none", "all", ["layers.1", "layers.3"]])
@pytest.mark.parametrize("cluster", ["cpu", "h100"])
@pytest.mark.parametrize("beside", BESIDE, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_cut_takes_less(
    schedule: str, beside: dict[str, Any], cluster: str, recompute: Any
) -> None:
    count = 1 if schedule == "naive" else 4
    pipeline = {"size": 2, "schedule": schedule}
    devices = 2 if beside == {"data": 1} else 4
    request = make_request(
        devices, cluster, {"pipeline": pipeline, **beside}, microbatches=count, recompute=recompute
    )
    model = Uneven((64, 16, 48, 32), head=64)
    found = search_pipeline(capture(model, (torch.zeros(64 // count, 32),)), request)
    frame = found.staged.frame
    assert 0.0 < found.floor <= found.step_time_s
    assert found.floor == pytest.approx(floor_s(frame, 10.0), rel=1e-3)
    for cut in every_cut(len(frame.pieces), frame.num_stages):
        try:
            assert found.floor <= solve_stages(frame, cut).step_time_s
        except InfeasibleError:
            continue


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_what_equal_stages_wait_for_is_in_the_floor(recompute: str) -> None:
    """Of four stages and eight microbatches a plain schedule waits for 11/8 of the mean."""
    model = Uneven((512,) * 8, head=8)
    captured = capture(model, (torch.zeros(512, 32),))
    request = make_request(
        4, "h100", {"pipeline": {"size": 4, "schedule": "1f1b"}}, microbatches=8,
        recompute=recompute,
    )  # fmt: skip
    plan = plan_captured(captured, request, "Uneven").plan
    assert plan.certificate.gap < 0.3  # the mean alone leaves 0.38
    assert plan.certificate.bound <= plan.step_time_s
