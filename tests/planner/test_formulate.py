"""Formulate: the problem prices a choice as its parts say, and the solver finds its optimum."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from autoplan.annotate import annotate
from autoplan.boxing import Router
from autoplan.capture import capture
from autoplan.cost_models import Roofline, load_cluster
from autoplan.formulate import formulate, priced_outputs, repeated_blocks
from autoplan.layouts import B, Layout
from autoplan.memory.liveness import timeline_of
from autoplan.mesh import Mesh
from autoplan.pricing import Pricer, Setting
from autoplan.sites import Annotated
from autoplan.solver import Limit, Solution, fold, solve, solve_ilp
from autoplan.strategies import RULES
from tests.planner.models import Residual, gpt2, token_ids

MESHES = (Mesh.of(x=4), Mesh.of(a=2, b=2))


def pricer_on(mesh: Mesh, cluster: str = "cpu", **setting: Any) -> Pricer:
    cost_model = Roofline(load_cluster(cluster, mesh.num_devices, "cpu"), mesh)
    return Pricer(mesh, cost_model, Setting(**setting))


@pytest.fixture(scope="module")
def small() -> Any:
    ids = token_ids(8, 16)
    return capture(gpt2(), (ids,), {"labels": ids})


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_solver_loses_nothing_on_a_real_model(small: Any, mesh: Mesh) -> None:
    """Reduced, against the plain ILP of the whole problem: the same objective."""
    annotated = annotate(small, mesh, RULES)
    problem = formulate(annotated, pricer_on(mesh), False)
    plain = solve_ilp(problem, 120.0, gap=0.0)
    reduced = solve(problem, None, 120.0)
    assert plain.certificate.gap == reduced.certificate.gap == 0.0
    assert reduced.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-9)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_folding_costs_nothing_where_layers_are_alike(mesh: Mesh) -> None:
    """Three of four layers held to one choice: never cheaper than free ones, here no dearer."""
    ids = token_ids(8, 16)
    annotated = annotate(capture(gpt2(n_layer=4), (ids,), {"labels": ids}), mesh, RULES)
    problem = formulate(annotated, pricer_on(mesh), False)
    free = solve(problem, None, 120.0)
    folded = solve(problem, repeated_blocks(annotated), 120.0)
    assert folded.certificate.folding is not None
    assert folded.certificate.folding.num_classes < 0.7 * len(annotated.sites)
    assert folded.certificate.folding.cost_s == 0.0
    assert folded.certificate.objective == pytest.approx(free.certificate.objective, rel=1e-9)


def _binding(annotated: Annotated, mesh: Mesh, free: Solution) -> Limit:
    """A limit, at the moment of an optimum's peak, below what it takes there."""
    timeline = timeline_of(annotated, pricer_on(mesh))
    peak = timeline.peak(free.choices)
    return timeline.limit(peak.moment, 0.8 * peak.total)


@pytest.mark.parametrize(
    "mesh", [MESHES[0], pytest.param(MESHES[1], marks=pytest.mark.slow)], ids=str
)
def test_nor_under_a_binding_memory_limit(mesh: Mesh) -> None:
    """Two blocks of an MLP with a residual stream; the plain ILP of GPT-2 takes minutes here."""
    annotated = annotate(capture(Residual(2), (torch.randn(64, 16),)), mesh, RULES)
    problem = formulate(annotated, pricer_on(mesh), False)
    free = solve(problem)
    limit = _binding(annotated, mesh, free)
    tight = replace(problem, limits=(limit,))
    reduced = solve(tight, None, 120.0)
    plain = solve_ilp(tight, 120.0, gap=0.0)
    assert plain.certificate.gap == reduced.certificate.gap == 0.0
    assert reduced.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-9)
    assert reduced.certificate.objective > free.certificate.objective
    assert limit.total(reduced.choices) <= limit.most


def test_folding_loses_nothing_under_a_binding_limit() -> None:
    """Folded blocks are a start only: the optimum is that of the problem as it is."""
    mesh = MESHES[0]
    annotated = annotate(capture(Residual(4), (torch.randn(64, 16),)), mesh, RULES)
    classes = repeated_blocks(annotated)
    problem = formulate(annotated, pricer_on(mesh), False)
    free = solve(problem, classes)
    tight = replace(problem, limits=(_binding(annotated, mesh, free),))
    solution = solve(tight, classes, 120.0)
    assert solution.certificate.gap == 0.0
    objective = solution.certificate.objective
    assert objective == pytest.approx(solve(tight, None, 120.0).certificate.objective, rel=1e-9)
    small = fold(tight, classes)
    alike = solve(small.problem, None, 120.0)
    assert tight.objective(small.expand(alike.choices)) == pytest.approx(
        alike.certificate.objective, rel=1e-9
    )
    assert solution.certificate.folding is not None
    lost_s = alike.certificate.objective - objective
    assert solution.certificate.folding.cost_s == pytest.approx(
        lost_s, rel=1e-6, abs=1e-9 * objective
    )


def _numbers_by_class(annotated: Annotated) -> list[set[str]]:
    """Of every class with several members: the numbers of its layers."""
    members: dict[Any, list[str]] = {}
    for site, label in zip(annotated.sites, repeated_blocks(annotated), strict=True):
        members.setdefault(label, []).append(site.path)
    result = []
    for paths in members.values():
        if len(paths) > 1:
            assert len({re.sub(r"\d+", "*", path) for path in paths}) == 1, paths
            result.append({re.search(r"\d+", path).group() for path in paths})  # type: ignore[union-attr]
    return result


def test_repeated_blocks_are_the_layers() -> None:
    """All but the last one, whose result has one reader less and needs no boxing site."""
    ids = token_ids(8, 16)
    captured = capture(gpt2(n_layer=4), (ids,), {"labels": ids})
    numbers = _numbers_by_class(annotate(captured, MESHES[0], RULES))
    assert len(numbers) > 30
    assert all(each == {"0", "1", "2"} for each in numbers)


def test_blocks_that_differ_are_not_shared() -> None:
    model = Residual(5)
    model.layers[2].up = torch.nn.Linear(16, 64, bias=False)
    annotated = annotate(capture(model, (torch.randn(8, 16),)), MESHES[0], RULES)
    numbers = _numbers_by_class(annotated)
    assert numbers
    # Layer 0 reads an argument without gradient, layer 2 has no bias, layer 4 is the last.
    assert all(each == {"1", "3"} for each in numbers)


# -- the price of a choice, added up again from its parts ------------------------------------------


def price(annotated: Annotated, choices: Any, pricer: Pricer, whole_outputs: bool) -> float:
    """Ops x runs, every boxing's price as the sum of its path, and the optimizer's passes."""
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]

    def boxing_s(router: Router, source: Layout, target: Layout, meta: Any) -> float:
        path = router.path(source, target, meta.shape, meta.itemsize, meta.requires_grad)
        assert not path or (path[0].source, path[-1].target) == (source, target)
        total = 0.0
        for move in path:
            size = move.whole_bytes(meta.shape, meta.itemsize, pricer.mesh)
            axis = pricer.mesh.axes[move.axis]
            for action in move.actions(meta.requires_grad):
                total += router._price(action, axis, size)
        return total

    total = 0.0
    for site, candidate in zip(annotated.sites, chosen, strict=True):
        meta = site.outputs[0]
        if site.kind == "parameter":
            total += boxing_s(
                pricer.routers.prologue, candidate.storage, candidate.outputs[0], meta
            )
            total += pricer.optimizer_time_s(meta, candidate.storage)
        if site.call is not None:
            total += pricer.runs(site) * math.fsum(pricer.op_times_s(site, candidate))
        for position, source in enumerate(site.inputs):
            origin = annotated.sites[source.site]
            before = chosen[source.site].outputs[source.output]
            runs = 1 if origin.parameter_only else pricer.setting.microbatches
            total += runs * boxing_s(
                pricer.router(origin, site),
                before,
                candidate.inputs[position],
                origin.outputs[source.output],
            )
    whole = Layout((B,) * pricer.mesh.ndim)
    for source, meta in priced_outputs(annotated, whole_outputs):
        origin = annotated.sites[source.site]
        before = chosen[source.site].outputs[source.output]
        total += pricer.runs(origin) * boxing_s(pricer.routers.body, before, whole, meta)
    return total


@pytest.mark.parametrize("whole_outputs", [False, True], ids=["loss", "whole"])
@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_objective_is_the_sum_of_its_parts(
    small: Any, mesh: Mesh, microbatches: int, whole_outputs: bool
) -> None:
    annotated = annotate(small, mesh, RULES)
    pricer = pricer_on(mesh, "h100", microbatches=microbatches)
    problem = formulate(annotated, pricer, whole_outputs)
    best = solve(problem)
    expected = price(annotated, best.choices, pricer, whole_outputs)
    assert best.certificate.objective == pytest.approx(expected, rel=1e-9)
    # Any other choice too: the law, not one example.
    rng = np.random.default_rng(0)
    for _ in range(3):
        choices = [int(rng.integers(len(site.candidates))) for site in annotated.sites]
        if np.isfinite(problem.objective(choices)):
            expected = price(annotated, choices, pricer, whole_outputs)
            assert problem.objective(choices) == pytest.approx(expected, rel=1e-9)


def test_no_random_choice_beats_the_optimum(small: Any) -> None:
    mesh = MESHES[1]
    annotated = annotate(small, mesh, RULES)
    problem = formulate(annotated, pricer_on(mesh), False)
    best = list(solve(problem).choices)
    least = problem.objective(best)
    rng = np.random.default_rng(0)
    for _ in range(300):  # change a few sites of the optimum
        other = list(best)
        for at in rng.choice(len(other), size=int(rng.integers(1, 4)), replace=False):
            other[at] = int(rng.integers(len(annotated.sites[at].candidates)))
        assert problem.objective(other) >= least * (1 - 1e-12)


def test_more_microbatches_run_the_body_again() -> None:
    """A body op is paid once a microbatch, a parameter's boxing once a step."""
    mesh = Mesh.of(x=4)
    annotated = annotate(capture(Residual(1), (torch.randn(8, 16),)), mesh, RULES)
    once, four = (pricer_on(mesh, microbatches=n) for n in (1, 4))
    for site in annotated.sites:
        one, more = once.costs(site), four.costs(site)
        factor = 1 if site.parameter_only else 4
        assert np.allclose(more, factor * one, rtol=1e-12), site.name
