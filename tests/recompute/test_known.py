"""Stages that differ in names only are solved once, and none gets another's answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoplan.recompute.known as known
from autoplan.annotate import annotate
from autoplan.capture import Captured, capture
from autoplan.pipelining.pieces import pieces_of
from autoplan.pipelining.planner import search_pipeline
from autoplan.pipelining.splitting import split
from autoplan.pipelining.stages import solve_stages
from autoplan.recompute.choose import solve_recomputing
from autoplan.recompute.known import Known
from autoplan.request import Request, make_request
from autoplan.sites import Annotated
from autoplan.strategies import RULES


class Deep(nn.Module):
    """Equal layers, but for the width of the last."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.Linear(width, 16)) for width in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x.square().mean()


def stages(widths: tuple[int, ...], stage_of: tuple[int, ...]) -> tuple[Captured, ...]:
    captured = capture(Deep(widths), (torch.zeros(64, 16),))
    pieces = pieces_of(captured)
    assert len(pieces) == len(stage_of)
    return split(captured, pieces, stage_of).stages


@pytest.fixture
def asked() -> Request:
    return make_request(4, cluster="cpu", parallel={"tensor": {"size": 4, "mode": "free"}})


class Counted:
    """How often something was solved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(known, "solve_recomputing", self)

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        return solve_recomputing(*given)


@pytest.mark.parametrize("memory", [None, 60_000, 40_000])
def test_equal_stages_are_solved_once(
    memory: int | None, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages 1 and 2 are alike; 0 has no gradient to send, 3 is wider and has the loss."""
    counted, everything = Counted(monkeypatch), Known()
    if memory is not None:
        asked = replace(asked, memory_bytes=memory)
    (choice,) = asked.meshes
    cut = (0, 0, 1, 1, 2, 2, 3, 3)
    for number, stage in enumerate(stages((32,) * 7 + (48,), cut)):
        annotated = annotate(stage, choice.mesh, RULES)
        pricer = asked.pricer(choice.mesh)
        found = everything.solve(annotated, pricer, asked)
        alone = solve_recomputing(annotated, pricer, asked)
        assert found.solution.choices == alone.solution.choices
        assert found.recomputed == alone.recomputed
        assert found.memory == alone.memory
        assert counted.calls == (1, 2, 2, 3)[number]


def middle(asked: Request) -> Annotated:
    """The stage of three that neither begins nor ends the model."""
    (choice,) = asked.meshes
    _, stage, _ = stages((32,) * 6, (0, 0, 1, 1, 2, 2))
    return annotate(stage, choice.mesh, RULES)


def test_another_limit_is_another_problem(asked: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, everything = Counted(monkeypatch), Known()
    annotated = middle(asked)
    pricer = asked.pricer(annotated.mesh)
    for memory, calls in ((1 << 40, 1), (30_000, 2), (1 << 40, 2), (29_999, 3)):
        everything.solve(annotated, pricer, replace(asked, memory_bytes=memory))
        assert counted.calls == calls


def test_a_limit_that_the_fastest_keeps_is_no_other_problem(
    asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, everything = Counted(monkeypatch), Known()
    annotated = middle(asked)
    pricer = asked.pricer(annotated.mesh)
    fastest = solve_recomputing(annotated, pricer, asked)
    assert not fastest.limited
    held = fastest.memory.total
    for memory, calls in ((1 << 40, 1), (held, 1), (held + 1, 1), (held - 8, 2), (1 << 40, 2)):
        limited = replace(asked, memory_bytes=memory)
        found = everything.solve(annotated, pricer, limited)
        alone = solve_recomputing(annotated, pricer, limited)
        assert found.solution.choices == alone.solution.choices
        assert found.recomputed == alone.recomputed
        assert counted.calls == calls


@pytest.mark.parametrize("memory", [None, 90_000, 70_000])
def test_cuts_that_share_stages_are_solved_as_if_each_were_alone(memory: int | None) -> None:
    """Of interleaved stages each cut gives others a part of the memory."""
    parallel = {"pipeline": {"size": 2, "schedule": "interleaved-1f1b"}, "data": 2}
    asked = make_request(4, "cpu", parallel, microbatches=4)
    if memory is not None:
        asked = replace(asked, memory_bytes=memory)
    captured = capture(Deep((32, 16, 48, 32, 24, 32)), (torch.zeros(16, 16),))
    found = search_pipeline(captured, asked).staged
    alone = solve_stages(
        replace(found.frame, _solved={}, _fastest={}, _equal=Known()), found.stage_of
    )
    assert [each.solution.choices for each in found.stages] == [
        each.solution.choices for each in alone.stages
    ]
    assert found.memory_bytes == alone.memory_bytes


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.nn.functional.gelu(self.wide(x)))


class Beside(nn.Module):
    """Three numbered layers, and one of the same kind that has a name of its own."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.extra = Layer()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.layers[: self.first], self.extra, *self.layers[self.first :]):
            x = layer(x)
        return x.square().mean()


@pytest.mark.parametrize("first", [1, 2])
def test_what_may_not_be_recomputed_is_another_problem(first: int) -> None:
    asked = make_request(4, cluster="cpu", parallel={"pipeline": 4}, recompute="all")
    found = search_pipeline(capture(Beside(first), (torch.zeros(64, 16),)), asked)
    names = [tuple(block.name for block in stage.recomputed) for stage in found.staged.stages]
    expected: list[tuple[str, ...]] = [(f"layers.{number}",) for number in range(3)]
    expected.insert(first, ())
    assert names == expected


def test_stages_that_differ_in_bytes_alone_share_the_fastest(
    asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more microbatches in flight a stage holds more, and takes as long."""
    counted, everything = Counted(monkeypatch), Known()
    annotated = middle(asked)
    for in_flight, memory, calls in ((1, 1 << 40, 1), (4, 1 << 40, 1), (4, 60_000, 2)):
        here = replace(asked, setting=replace(asked.setting, in_flight=in_flight))
        here = replace(here, memory_bytes=memory)
        found = everything.solve(annotated, here.pricer(annotated.mesh), here)
        alone = solve_recomputing(annotated, here.pricer(annotated.mesh), here)
        assert found.solution.choices == alone.solution.choices
        assert found.memory == alone.memory
        assert counted.calls == calls
