"""The search: never worse than trying everything, and honest about what it did not try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import autoplan
from autoplan.errors import ConfigError, InfeasibleError
from autoplan.pipelining.pieces import pieces_of
from autoplan.pipelining.planner import search_pipeline
from autoplan.planning import captures_of
from autoplan.request import Request, make_request
from autoplan.search import find_on_mesh
from autoplan.space import search as module
from autoplan.space.progress import table_of
from autoplan.space.search import search_space
from autoplan.space.shapes import request_at
from autoplan.space.tried import Tried, time_of
from tests.planner.models import Fn, Residual, gpt2, token_ids


def batch(rows: int = 8) -> tuple[torch.Tensor]:
    return (torch.randn(rows, 16),)


def request_for(devices: int = 4, **options: Any) -> Request:
    options = {"cluster": "h100", "microbatches": "auto", "time_limit_s": 120.0} | options
    return make_request(devices, **options)


def everything(model: nn.Module, args: tuple[Any, ...], request: Request) -> list[float]:
    """Every shape solved in full: seconds of the best plan of each that has one."""
    captures = captures_of(model, (args, {}), request)
    assert request.space is not None
    shapes = request.space.shapes(captures.rows, len(pieces_of(captures.whole(1))))
    found = []
    for shape in shapes:
        asked, captured = request_at(request, shape), captures.whole(shape.microbatches)
        try:
            if shape.pipeline is None:
                found.append(time_of(find_on_mesh(captured, asked, shape.mesh)))
            else:
                found.append(time_of(search_pipeline(captured, asked)))
        except InfeasibleError:
            continue
    return found


@pytest.mark.parametrize(
    ("devices", "cluster", "memory"),
    [(4, "h100", None), (4, "cpu", None), (2, "h100", 50e3), (2, "cpu", 46e3)],
)
def test_never_slower_than_trying_everything(
    devices: int, cluster: str, memory: float | None
) -> None:
    model, args = Residual(2), batch()
    request = request_for(devices, cluster=cluster, memory=memory)
    best = min(everything(model, args, request))
    found = search_space(captures_of(model, (args, {}), request), request)
    assert time_of(found.found) <= best * (1 + 1e-9)
    assert found.bound <= best * (1 + 1e-9)
    assert found.found.peak_memory_bytes <= request.memory_bytes


def test_memory_brings_pipelines_and_microbatches() -> None:
    """Less memory never makes a plan faster, and opens ways that cost time."""
    model, args = Residual(2), batch(64)
    times, shapes = [], []
    for memory in (None, 60e3, 48e3):
        request = request_for(2, memory=memory)
        found = search_space(captures_of(model, (args, {}), request), request)
        times.append(time_of(found.found))
        shapes.append(found.shape)
    assert times == sorted(times)
    assert shapes[0].microbatches == 1
    assert any(s.microbatches > 1 or s.pipeline is not None for s in shapes)


@pytest.mark.parametrize("preset", ["ddp", "fsdp", "megatron", "megatron-sp"])
def test_never_slower_than_a_preset(preset: str) -> None:
    ids = token_ids(8, 16)
    free = autoplan.plan(gpt2(), (ids,), {"labels": ids}, devices=8, cluster="h100")
    forced = autoplan.plan(
        gpt2(), (ids,), {"labels": ids}, devices=8, cluster="h100", preset=preset
    )
    assert free.step_time_s <= forced.step_time_s * (1 + 1e-9)


def test_the_plan_says_what_it_was_chosen_from() -> None:
    plan = autoplan.plan(Residual(2), batch(), devices=4, cluster="h100", microbatches="auto")
    assert plan.num_shapes > 5
    solved = [row for row in plan.shapes if row.status == "solved"]
    assert min(row.step_time_s for row in solved) == pytest.approx(plan.step_time_s)
    assert all(row.at_least_s <= row.step_time_s * (1 + 1e-9) for row in solved)
    assert plan.certificate.bound <= plan.step_time_s
    text = plan.report()
    assert f"the best of {plan.num_shapes} shapes" in text
    again = autoplan.plan(Residual(2), batch(), **plan.config)
    assert again.step_time_s == pytest.approx(plan.step_time_s)
    assert again.mesh == plan.mesh


def test_microbatches_given_with_a_pipeline_left_open() -> None:
    plan = autoplan.plan(
        Residual(4),
        batch(),
        devices=4,
        cluster="h100",
        microbatches=4,
        parallel={"pipeline": "auto"},
    )
    assert plan.microbatches == 4
    sized = autoplan.plan(
        Residual(4),
        batch(),
        devices=4,
        cluster="h100",
        microbatches=4,
        parallel={"pipeline": {"schedule": "gpipe"}},
    )
    assert sized.pipeline is not None
    assert sized.pipeline.schedule == "gpipe"
    assert plan.step_time_s <= sized.step_time_s * (1 + 1e-9)


def test_a_tensor_size_beside_open_microbatches() -> None:
    plan = autoplan.plan(
        Residual(4),
        batch(),
        devices=4,
        cluster="h100",
        microbatches="auto",
        parallel={"tensor": {"size": 2, "mode": "1d"}},
    )
    assert dict(zip(plan.mesh.axes, plan.mesh.sizes, strict=True)) == {"data": 2, "tensor": 2}


class _Stop:
    """Interrupts at the n-th report of progress."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, doing: str, tried: Sequence[Tried], bound: float) -> None:
        self.left -= 1
        if self.left <= 0:
            raise KeyboardInterrupt


def interrupted(monkeypatch: pytest.MonkeyPatch, stop: Any) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def table(wanted: Any) -> Any:
        yield stop

    monkeypatch.setattr(module, "live_table", table)
    request = request_for(4)
    return search_space(captures_of(Residual(4), (batch(), {}), request), request)


def test_an_interrupt_takes_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    class AfterTheFirst(_Stop):
        def __call__(self, doing: str, tried: Sequence[Tried], bound: float) -> None:
            if any(each.step_time_s is not None for each in tried):
                raise KeyboardInterrupt

    found = interrupted(monkeypatch, AfterTheFirst(1))
    assert found.interrupted
    certificate = found.found.solution.certificate
    assert certificate.status == "interrupted"
    assert certificate.gap > 0.0
    assert certificate.bound <= certificate.objective


def test_an_interrupt_before_anything_is_found_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(monkeypatch, _Stop(1))


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match="'auto'"):
        make_request(4, "h100", microbatches="many")
    with pytest.raises(ConfigError, match="does not divide 8 devices"):
        make_request(8, "h100", {"pipeline": "auto", "tensor": {"size": 3, "mode": "1d"}})


def test_the_table_shows_the_best_first() -> None:
    request = request_for(4)
    found = search_space(captures_of(Residual(4), (batch(), {}), request), request)
    table = table_of(found.tried, found.bound)
    assert "solved; best" in str(table.caption)
    assert found.tried[0].found is not None
    assert found.tried[0].step_time_s == min(t.step_time_s for t in found.tried if t.step_time_s)


def test_the_same_request_closed_is_the_same_plan() -> None:
    request = request_for(4)
    captures = captures_of(Residual(4), (batch(), {}), request)
    found = search_space(captures, request)
    assert found.request.space is None
    assert replace(found.request, time_limit_s=request.time_limit_s) == request_at(
        request, found.shape
    )


# -- modules --------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, 130e3])
def test_a_module_trains_as_the_original_does(memory: float | None) -> None:
    torch.manual_seed(0)
    model, args = Residual(2).double(), (torch.randn(64, 16, dtype=torch.float64),)
    parallel = autoplan.parallelize(
        model, args, devices=2, cluster="h100", microbatches="auto", memory=memory
    )
    assert parallel.verify(args, steps=2).ok
    step = parallel.train_step(args)
    assert step.loss.item() == pytest.approx(model(*args).item(), rel=1e-9)


def test_a_module_without_arguments_searches_at_its_first_step() -> None:
    torch.manual_seed(0)
    model, args = Residual(3), batch()
    parallel = autoplan.parallelize(model, devices=4, cluster="h100", microbatches="auto")
    loss = parallel.train_step(args).loss
    assert loss.item() == pytest.approx(model(*args).item(), rel=1e-5)
    assert parallel.plan.num_shapes > 1


def test_given_microbatches_of_a_step_are_not_open() -> None:
    parallel = autoplan.parallelize(Residual(3), devices=2, cluster="h100", microbatches="auto")
    parallel.train_step(batch(), microbatches=4)
    assert parallel.plan.microbatches == 4


# -- batches --------------------------------------------------------------------------------


class Weighted(nn.Module):
    """Rows, and class weights that are as many as rows by chance."""

    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.linear(x), target, weights)


def test_an_argument_as_large_as_the_batch_is_not_cut() -> None:
    args = (torch.randn(8, 16), torch.arange(8), torch.rand(8))
    request = request_for(2)
    captures = captures_of(Weighted(), (args, {}), request)
    shapes = {each.path: each.meta.shape for each in captures.whole(4).inputs_of("input")}
    assert shapes == {"x": (2, 16), "target": (2,), "weights": (8,)}


def test_a_batch_is_not_captured_whole_to_be_cut() -> None:
    rows: list[int] = []

    class Counting(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows.append(x.shape[0])
            return super().forward(x)

    captures = captures_of(Counting(2), (batch(64), {}), request_for(2))
    assert captures.short(2).captured.inputs_of("input")[0].meta.shape == (32, 16)
    assert set(rows) == {2, 4}


def test_a_first_argument_without_a_batch() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x @ table).square().mean()

    args = torch.randn(16, 16), torch.randn(8, 16)
    assert autoplan.plan(Table(), args, devices=2, cluster="h100").microbatches == 1


def test_microbatches_that_a_model_refuses_are_left_out() -> None:
    """A batch norm takes no single row."""
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    search = Fn(lambda self, x: self.model(x).square().mean(), model=model)
    plan = autoplan.plan(search, batch(8), devices=2, cluster="h100", microbatches="auto")
    assert plan.num_shapes > 1


def test_parts_of_ranks_have_no_pipeline() -> None:
    request = make_request(4, "h100", microbatches="auto", local_inputs=True)
    assert request.space is not None
    assert request.space.pipelines == (1,)
    plan = autoplan.plan(
        Residual(2), batch(2), devices=4, cluster="h100", microbatches="auto", local_inputs=True
    )
    assert plan.local_inputs
    with pytest.raises(ConfigError, match="local_inputs=True with a pipeline"):
        make_request(4, "h100", {"pipeline": "auto"}, local_inputs=True)


def test_an_interrupt_while_estimating_solves_the_best_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class AfterTwoEstimates(_Stop):
        def __call__(self, doing: str, tried: Sequence[Tried], bound: float) -> None:
            if self.left and sum(each.status == "estimated" for each in tried) == 2:
                self.left = 0
                raise KeyboardInterrupt

    found = interrupted(monkeypatch, AfterTwoEstimates(1))
    assert found.interrupted
    assert found.found.solution.certificate.status == "interrupted"


def test_hopeless_memory_is_refused_at_once() -> None:
    with pytest.raises(InfeasibleError, match="split evenly over 4 devices"):
        autoplan.plan(
            Residual(2), batch(), devices=4, cluster="h100", microbatches="auto", memory=2000
        )
