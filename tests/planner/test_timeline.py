"""The timeline of a step: limits add up to totals, and the fastest plan that fits is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.cost_models import Roofline
from autoplan.errors import InfeasibleError
from autoplan.formulate import formulate
from autoplan.memory.liveness import timeline_of
from autoplan.memory.peak import memory_at_peak
from autoplan.memory.timeline import Timeline
from autoplan.memory.within_memory import leanest, solve_within_memory
from autoplan.mesh import Mesh
from autoplan.pricing import Pricer
from autoplan.request import Request, make_request
from autoplan.sites import Annotated
from autoplan.solver import Problem
from autoplan.strategies import RULES
from tests.planner.models import Residual, gpt2, token_ids
from tests.solver.problems import enumerate_choices


@dataclass(frozen=True, eq=False)
class Posed:
    """A model on a mesh, with its problem and its timeline."""

    annotated: Annotated
    pricer: Pricer
    request: Request
    problem: Problem
    timeline: Timeline


def pose(captured: Any, axes: dict[str, int], **options: Any) -> Posed:
    mesh = Mesh.of(**axes)
    request = make_request(mesh.num_devices, "cpu", {"mesh": axes}, **options)
    annotated = annotate(captured, mesh, RULES)
    pricer = Pricer(mesh, Roofline(request.cluster, mesh), request.setting)
    problem = formulate(annotated, pricer, request.whole_outputs)
    return Posed(annotated, pricer, request, problem, timeline_of(annotated, pricer))


def captured_gpt2(training: bool = True) -> Any:
    ids = token_ids(8, 16)
    return capture(gpt2(n_layer=1), (ids,), {"labels": ids}, training=training)


def random_choices(annotated: Annotated, count: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield [int(rng.integers(len(site.candidates))) for site in annotated.sites]


@pytest.mark.parametrize(
    ("captured", "axes", "options"),
    [
        (captured_gpt2, {"x": 4}, {}),
        (captured_gpt2, {"a": 2, "b": 2}, {"optimizer": "sgd"}),
        (captured_gpt2, {"x": 4}, {"microbatches": 4}),
        (lambda: captured_gpt2(False), {"x": 4}, {"training": False}),
        (lambda: capture(Residual(3), (torch.randn(64, 16),)), {"a": 2, "b": 2}, {}),
    ],
    ids=["gpt2", "two axes", "microbatches", "inference", "residual"],
)
def test_limits_of_all_moments_add_up_to_the_totals(
    captured: Any, axes: dict[str, int], options: dict[str, Any]
) -> None:
    posed = pose(captured(), axes, **options)
    timeline = posed.timeline
    assert timeline.num_moments == 2 * len(posed.annotated.sites) + 3
    limits = [timeline.limit(moment, 1e18) for moment in range(timeline.num_moments)]
    # Whatever is limited is a sum of choices and of pairs that the solver may be given.
    with_limits = replace(posed.problem, limits=tuple(limits))
    for choices in random_choices(posed.annotated, 4):
        totals = timeline.totals(choices)
        assert (totals >= 0).all()
        for moment, limit in enumerate(with_limits.limits):
            assert limit.total(choices) == pytest.approx(totals[moment], rel=1e-9)
        peak = timeline.peak(choices)
        assert peak.total == pytest.approx(totals.max(), rel=1e-9)
        assert timeline.at(choices, peak.moment).kinds == peak.kinds
        for moment in range(0, timeline.num_moments, 7):
            kinds = timeline.at(choices, moment).kinds
            assert sum(kinds.values()) == pytest.approx(totals[moment], rel=1e-9)
        memory = memory_at_peak(timeline, choices)
        assert memory.total == pytest.approx(totals.max(), abs=len(peak.kinds))
        assert memory.moment == timeline.name(peak.moment)


class Tiny(nn.Module):
    """Two linear layers: 103,680 choices on one axis of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))).sum()


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("rows", [16, 64])
def test_the_fastest_plan_that_fits_is_found(rows: int, microbatches: int) -> None:
    """Against all choices: of every limit, the least cost among those that never exceed it."""
    posed = pose(capture(Tiny(), (torch.randn(rows, 8),)), {"x": 2}, microbatches=microbatches)
    moments = range(posed.timeline.num_moments)
    limits = tuple(posed.timeline.limit(moment, 1e18) for moment in moments)
    every = enumerate_choices(replace(posed.problem, limits=limits))
    peaks = every.totals.max(axis=0)
    rng = np.random.default_rng(0)
    for at in rng.integers(len(peaks), size=30):
        assert posed.timeline.totals(every.choices[at]).max() == pytest.approx(peaks[at], rel=1e-9)

    allowed = np.isfinite(every.costs)
    # Where the fastest plan changes: every peak below which nothing is as fast.
    order = np.lexsort((every.costs[allowed], peaks[allowed]))
    sorted_peaks, sorted_costs = peaks[allowed][order], every.costs[allowed][order]
    best_so_far = np.minimum.accumulate(sorted_costs)
    front = np.flatnonzero(np.r_[True, best_so_far[1:] < best_so_far[:-1] * (1 - 1e-9)])
    assert len(front) > 1  # memory does cost time here
    for at in front.tolist():
        for limit in (sorted_peaks[at], sorted_peaks[at] - 1):
            fitting = sorted_costs[sorted_peaks <= limit]
            request = replace(posed.request, memory_bytes=int(limit))
            if not len(fitting):
                with pytest.raises(InfeasibleError, match="is too small on mesh"):
                    solve_within_memory(posed.annotated, posed.pricer, request)
                continue
            solution, memory = solve_within_memory(posed.annotated, posed.pricer, request)
            assert memory.total <= limit
            assert posed.timeline.totals(solution.choices).max() <= limit
            assert solution.certificate.objective == pytest.approx(fitting.min(), rel=1e-9)
            assert solution.certificate.gap == 0.0


def test_the_leanest_plan_is_found_where_one_moment_decides() -> None:
    posed = pose(capture(Tiny(), (torch.randn(64, 8),)), {"x": 2})
    moments = range(posed.timeline.num_moments)
    limits = tuple(posed.timeline.limit(moment, 1.0) for moment in moments)
    every = enumerate_choices(replace(posed.problem, limits=limits))
    peaks = np.where(np.isfinite(every.costs), every.totals.max(axis=0), np.inf)
    problem = replace(posed.problem, limits=(posed.timeline.limit(0, 1.0),))
    choices = leanest(problem, posed.timeline, 1.0)
    assert np.isfinite(posed.problem.objective(choices))
    assert posed.timeline.totals(choices).max() == pytest.approx(peaks.min(), rel=1e-9)
