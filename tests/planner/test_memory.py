"""Memory: the prediction adds up, limits hold, and what is too small says how much would do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import autoplan
from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.cost_models import Roofline
from autoplan.errors import InfeasibleError
from autoplan.formulate import formulate
from autoplan.memory.liveness import timeline_of
from autoplan.mesh import Mesh
from autoplan.plan import Plan
from autoplan.planning import Planned, plan_captured
from autoplan.pricing import Pricer
from autoplan.request import make_request, read_bytes
from autoplan.solver import solve
from autoplan.strategies import RULES
from tests.planner.models import MLP, Residual, gpt2, token_ids

AXES = ({"d": 4}, {"a": 2, "b": 2})


@pytest.fixture(scope="module")
def small() -> Any:
    ids = token_ids(16, 32)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
    return capture(gpt2(**dropout), (ids,), {"labels": ids})


@pytest.fixture(scope="module")
def blocks() -> Any:
    return capture(Residual(3), (torch.randn(256, 16),))


def planned_within(
    captured: Any, memory: Any = None, axes: Any = AXES[0], **options: Any
) -> Planned:
    request = make_request(4, "cpu", {"mesh": axes}, memory=memory, **options)
    return plan_captured(captured, request, "model")


def plan_within(captured: Any, memory: Any = None, axes: Any = AXES[0], **options: Any) -> Plan:
    return planned_within(captured, memory, axes, **options).plan


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_peak_is_the_sum_of_its_kinds(small: Any, axes: Any, microbatches: int) -> None:
    planned = planned_within(small, axes=axes, microbatches=microbatches)
    plan, memory = planned.plan, planned.plan.memory
    kept = (memory.parameters, memory.gradients, memory.optimizer, memory.gathered)
    kinds = (*kept, memory.activations, memory.inputs, memory.temporaries)
    assert plan.peak_memory_bytes == memory.total == sum(kinds)
    assert all(kind >= 0 for kind in kinds)
    timeline = timeline_of(planned.annotated, planned.pricer)
    totals = timeline.totals(planned.choices)
    assert memory.total == pytest.approx(totals.max(), abs=len(kinds))  # each kind is rounded
    assert memory.moment == timeline.name(int(totals.argmax()))
    # float32, AdamW: what the shards of the storage layouts take, a gradient and two states each.
    stored = {
        row.path: row
        for row in plan.tensors
        if row.kind == "parameter" and row.path != "lm_head.weight"  # tied to wte
    }
    sizes = [4 * torch.Size(row.local_shape).numel() for row in stored.values()]
    assert memory.parameters == sum(sizes)
    assert memory.optimizer == 2 * memory.parameters
    assert 0 <= memory.gradients <= memory.parameters + memory.gathered
    last = timeline.at(planned.choices, timeline.num_moments - 1).kinds
    assert last["gradients"] == last["parameters"] == memory.parameters


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("momentum", 1), ("adam", 2)])
def test_optimizer_state(blocks: Any, optimizer: str, states: int) -> None:
    memory = plan_within(blocks, optimizer=optimizer).memory
    assert memory.optimizer == states * memory.parameters


def test_inference_keeps_no_gradients() -> None:
    ids = token_ids(16, 32)
    captured = capture(gpt2(), (ids,), {"labels": ids}, training=False)
    plan = plan_within(captured, training=False)
    assert plan.memory.gradients == plan.memory.optimizer == 0
    assert (
        plan.memory.activations
        < plan_within(capture(gpt2(), (ids,), {"labels": ids})).memory.activations
    )
    assert not any(row.direction == "backward" for row in plan.collectives)


def test_on_one_device_everything_is_whole() -> None:
    plan = autoplan.plan(MLP(8, 16), (torch.randn(4, 8),), devices=1, cluster="cpu")
    numbers = 2 * 8 * 16 + 16 + 8
    assert plan.memory.parameters == 4 * numbers
    assert plan.memory.gathered == 0


def _sweep(captured: Any, axes: Any, limits: list[int]) -> list[Plan | InfeasibleError]:
    found: list[Plan | InfeasibleError] = []
    for limit in limits:
        try:
            found.append(plan_within(captured, limit, axes))
        except InfeasibleError as error:
            found.append(error)
    return found


def _check_sweep(captured: Any, axes: Any, parts: list[float]) -> None:
    """Limits from wide to narrow: kept, never faster when narrower, and no gap in what works."""
    free = plan_within(captured, axes=axes)
    limits = [int(part * free.peak_memory_bytes) for part in parts]
    found = _sweep(captured, axes, limits)
    times = [free.step_time_s]
    for limit, plan in zip(limits, found, strict=True):
        if isinstance(plan, Plan):
            assert plan.peak_memory_bytes <= limit
            assert plan.step_time_s >= times[-1] * (1 - 1e-9), f"limit {limit} is faster"
            times.append(plan.step_time_s)
    works = [isinstance(plan, Plan) for plan in found]
    assert works == sorted(works, reverse=True), dict(zip(limits, works, strict=True))


@pytest.mark.parametrize("axes", [AXES[0], pytest.param(AXES[1], marks=pytest.mark.slow)], ids=str)
def test_a_tighter_limit_never_gives_a_faster_plan(blocks: Any, axes: Any) -> None:
    _check_sweep(blocks, axes, [2.0, 1.01, 0.9, 0.7, 0.5, 0.3])


@pytest.mark.slow
def test_nor_does_a_wider_limit_give_none(small: Any) -> None:
    assert plan_within(small, 3_200_000, AXES[1]).peak_memory_bytes <= 3_200_000
    plan_within(small, 3_400_000, AXES[1])


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_a_limit_above_the_free_plans_peak_changes_nothing(blocks: Any, axes: Any) -> None:
    """What fits without a limit fits with one that is wider."""
    free = plan_within(blocks, axes=axes)
    same = plan_within(blocks, int(1.01 * free.peak_memory_bytes), axes)
    assert same.step_time_s == pytest.approx(free.step_time_s, rel=1e-9)


def _least(error: InfeasibleError) -> int:
    match = re.search(r"the least that a plan was found for is ([\d.]+ \w+)", str(error))
    assert match, str(error)
    return read_bytes(match.group(1))


def test_too_little_memory_says_how_much_would_do(blocks: Any) -> None:
    with pytest.raises(InfeasibleError, match="memory of 1 kB a device is too small") as caught:
        plan_within(blocks, 1000)
    assert "on mesh d 4" in str(caught.value)
    assert re.search(r"of which [a-z ]+ take [\d.]+ kB", str(caught.value))
    limit = 1.01 * _least(caught.value)
    assert plan_within(blocks, limit).peak_memory_bytes <= limit


def test_the_least_is_less_than_what_a_plan_takes(small: Any) -> None:
    free = plan_within(small)
    with pytest.raises(InfeasibleError) as caught:
        plan_within(small, 1_000_000)
    assert _least(caught.value) <= 1.001 * free.peak_memory_bytes  # written with four digits


def test_no_proof_is_claimed_where_a_faster_plan_fits(blocks: Any) -> None:
    free = plan_within(blocks)
    plan = plan_within(blocks, int(1.01 * free.peak_memory_bytes))
    if plan.certificate.status == "optimal" and plan.certificate.gap == 0.0:
        assert plan.step_time_s <= free.step_time_s * (1 + 1e-9)


def test_what_is_proven_under_a_limit_is_true(blocks: Any) -> None:
    """No plan that the solver finds under any other limit may fit here and beat the bound."""
    mesh = Mesh.of(**AXES[0])
    request = make_request(4, "cpu", {"mesh": AXES[0]})
    annotated = annotate(blocks, mesh, RULES)
    pricer = Pricer(mesh, Roofline(request.cluster, mesh), request.setting)
    problem = formulate(annotated, pricer, False)
    timeline = timeline_of(annotated, pricer)
    peak = timeline.peak(solve(problem).choices)
    limit = int(0.97 * peak.total)
    bound = plan_within(blocks, limit).certificate.bound
    fitted = 0
    for part in (0.7, 0.8, 0.9, 0.97, 1.1):
        less = replace(problem, limits=(timeline.limit(peak.moment, part * peak.total),))
        other = solve(less)
        if timeline.totals(other.choices).max() <= limit:
            fitted += 1
            assert other.certificate.objective >= bound * (1 - 1e-9), part
    assert fitted
