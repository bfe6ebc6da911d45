"""The cut that is planned is the best there is, within memory, and as hints say."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoplan
from autoplan.capture import capture
from autoplan.errors import ConfigError, HintError, InfeasibleError
from autoplan.pipelining.pieces import pieces_of
from autoplan.pipelining.planner import Piped, search_pipeline
from autoplan.pipelining.stages import solve_stages
from autoplan.request import Request, make_request


class Uneven(nn.Module):
    """Layers of unlike width, a head as heavy as several of them, and a loss."""

    def __init__(self, widths: tuple[int, ...] = (64, 16, 48, 8, 32, 96), head: int = 256) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(32, width), nn.GELU(), nn.Linear(width, 32)) for width in widths
        )
        self.head = nn.Linear(32, head)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x).square().mean()


X = torch.zeros(64, 32)


def request(devices: int, pipeline: dict[str, Any], **options: Any) -> Request:
    beside = options.pop("beside", {"data": 1})
    options.setdefault("microbatches", 4)
    return make_request(
        devices, cluster="cpu", parallel={"pipeline": pipeline, **beside}, **options
    )


def planned(model: nn.Module, asked: Request) -> Piped:
    rows = 64 // asked.setting.microbatches
    return search_pipeline(capture(model, (X[:rows],)), asked)


def every_cut(count: int, stages: int) -> list[tuple[int, ...]]:
    """Every way to put `count` pieces on so many stages."""
    return [
        tuple(sum(at >= start for start in starts) for at in range(count))
        for starts in combinations(range(1, count), stages - 1)
    ]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("stages", [2, 3])
def test_no_cut_is_faster(schedule: str, stages: int) -> None:
    model = Uneven()
    found = planned(model, request(stages, {"size": stages, "schedule": schedule}))
    frame = found.staged.frame
    times = {
        cut: solve_stages(frame, cut).step_time_s for cut in every_cut(len(frame.pieces), stages)
    }
    assert found.step_time_s == pytest.approx(min(times.values()), rel=1e-9)
    assert found.step_time_s < sorted(times.values())[len(times) // 2]
    assert found.floor <= found.step_time_s


def test_no_map_is_faster_than_the_solvers_own_cut() -> None:
    model = Uneven()
    own = planned(model, request(2, {"size": 2, "schedule": "1f1b"}))
    for first in range(1, 6):
        stage_map = [0] * first + [1] * (6 - first)
        given = planned(model, request(2, {"size": 2, "schedule": "1f1b", "stage_map": stage_map}))
        blocks = [
            s
            for s, b in zip(given.staged.stage_of, given.staged.frame.pieces.blocks, strict=True)
            if b
        ]
        assert blocks == stage_map
        assert own.step_time_s <= given.step_time_s * (1 + 1e-9)
        assert given.automatic == own.staged.stage_of


def test_stages_together_hold_less_than_one_and_the_limit_moves_the_cut() -> None:
    model = Uneven((64, 64, 64, 64), head=32)
    free = planned(model, request(2, {"size": 2, "schedule": "gpipe"}))
    most = max(free.staged.memory_bytes)
    again = planned(model, request(2, {"size": 2, "schedule": "gpipe"}, memory=most))
    assert max(again.staged.memory_bytes) <= most
    with pytest.raises(InfeasibleError, match="memory"):
        planned(model, request(2, {"size": 2, "schedule": "gpipe"}, memory=most // 8))


def test_1f1b_holds_fewer_microbatches_and_less_memory_than_gpipe() -> None:
    model = Uneven((64, 64, 64, 64), head=32)
    gpipe = planned(model, request(2, {"size": 2, "schedule": "gpipe"}, microbatches=8))
    one = planned(model, request(2, {"size": 2, "schedule": "1f1b"}, microbatches=8))
    assert gpipe.staged.frame.in_flight == (8, 8)
    assert one.staged.frame.in_flight == (2, 1)
    assert max(one.staged.memory_bytes) < max(gpipe.staged.memory_bytes)


def test_every_stage_may_have_its_own_mesh() -> None:
    own = [{"data": 2}, {"tensor": {"size": 2, "mode": "free"}}]
    found = planned(Uneven(), request(4, {"size": 2, "stages": own}, beside={}))
    first, second = (each.annotated.mesh for each in found.staged.stages)
    assert (first.axes, second.axes) == (("data",), ("tensor",))


def test_more_stages_than_parts_is_an_error_with_both_numbers() -> None:
    count = len(pieces_of(capture(Uneven((8,), head=8), (X,))))
    asked = request(count + 1, {"size": count + 1, "schedule": "gpipe"})
    with pytest.raises(InfeasibleError, match=f"{count + 1} pipeline stages.* {count} pieces"):
        planned(Uneven((8,), head=8), asked)


def test_stage_hints_bind() -> None:
    asked = request(2, {"size": 2, "schedule": "1f1b"}, hints={"layers.4": "stage: 0"})
    found = planned(Uneven(), asked)
    pieces = found.staged.frame.pieces
    assert found.staged.stage_of[pieces.names.index("layers.4")] == 0
    free = planned(Uneven(), replace(asked, hints={}))
    assert free.step_time_s <= found.step_time_s
    with pytest.raises(HintError, match="stage"):
        planned(Uneven(), replace(asked, hints={"layers.0": "stage: 1", "layers.1": "stage: 0"}))


def test_a_batch_that_microbatches_do_not_divide_is_refused() -> None:
    with pytest.raises(autoplan.AutoplanError, match="multiple of 3"):
        autoplan.plan(
            Uneven(), (X,), devices=2, parallel={"pipeline": 2, "data": 1}, microbatches=3
        )


def test_too_few_microbatches_are_refused() -> None:
    with pytest.raises(ConfigError, match="microbatches"):
        request(4, {"size": 4, "schedule": "1f1b"}, microbatches=2)


def test_a_plan_without_training_only_runs_forward() -> None:
    found = planned(Uneven(), request(2, {"size": 2, "schedule": "1f1b"}, training=False))
    kinds = {timed.event.kind for timed in found.staged.run}
    assert kinds == {"forward"}
