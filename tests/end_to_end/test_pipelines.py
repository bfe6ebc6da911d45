"""Pipelines on real ranks train as one device does: every schedule, alone and with others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.end_to_end.piping import Case, Outcome, everything, train
from tests.runtime.launch import run_ranks

pytestmark = pytest.mark.timeout(900)  # many processes, on machines of two cores

TOLERANCE = 1e-9
MODELS = ("gpt2", "bert", "t5", "resnet")
SCHEDULES = (
    "naive",
    "gpipe",
    "1f1b",
    "interleaved-1f1b",
    "zero-bubble",
    "zbv",
    "dualpipev",
)
FAST = {
    "gpt2": SCHEDULES,
    "bert": ("gpipe", "interleaved-1f1b", "zbv"),
    "t5": ("1f1b", "zero-bubble", "dualpipev"),
    "resnet": ("naive", "interleaved-1f1b", "zbv"),
}
"""What is not slow: every schedule on GPT-2, and on another model."""
CLIPPED = ("gpt2", "resnet")
TENSOR = {"size": 2, "mode": "free"}
BESIDE: dict[str, dict[str, Any]] = {
    "alone": {"data": 1},
    "with data": {"data": 2},
    "with tensor": {"tensor": TENSOR},
}


def case(model: str, schedule: str, size: int, beside: str) -> Case:
    """As many microbatches as the schedule needs."""
    microbatches = 1 if schedule == "naive" else 8 if schedule == "dualpipev" and size > 2 else 4
    pipeline = {"size": size, "schedule": schedule}
    name = f"{schedule} on {size} {beside}"
    return Case(model, {"pipeline": pipeline, **BESIDE[beside]}, microbatches, name=name)


def on_four(model: str) -> list[Case]:
    """A model under schedules, in turns alone, with data and with tensor parallelism."""
    turns = [(4, "alone"), (2, "with data"), (2, "with tensor")]
    first = MODELS.index(model)
    cases = [case(model, name, *turns[(first + n) % 3]) for n, name in enumerate(FAST[model])]
    return [replace(each, calls=n in (0, 2)) for n, each in enumerate(cases)]


def clipped(model: str) -> Case:
    return replace(case(model, "1f1b", 2, "with data"), clip=0.5)


def check(case: Case, outcomes: list[Outcome]) -> None:
    """Every rank is where one device is."""
    for each in outcomes:
        assert max(each.loss_errors) < TOLERANCE, case
        assert max(each.gradient_errors.values()) < TOLERANCE, (case, each.gradient_errors)
        assert max(each.norm_errors, default=0.0) < TOLERANCE, case
        assert max(each.state_errors.values()) < TOLERANCE, (case, each.state_errors)
        assert each.call_error < TOLERANCE, case


class Results(dict[str, list[tuple[Case, list[Outcome]]]]):
    """By model what every rank finds of every case, on one set of processes, when asked for."""

    def __missing__(self, model: str) -> list[tuple[Case, list[Outcome]]]:
        cases = [*on_four(model), *([clipped(model)] if model in CLIPPED else [])]
        ranks = run_ranks(everything, 4, cases, timeout_s=600.0)
        self[model] = [(case, list(each)) for case, *each in zip(cases, *ranks, strict=True)]
        return self[model]


@pytest.fixture(scope="module")
def results() -> Results:
    return Results()


@pytest.mark.parametrize("model", MODELS)
def test_four_ranks_train_as_one_device_does(results: Results, model: str) -> None:
    for each, outcomes in results[model][: len(FAST[model])]:
        check(each, outcomes)
        held = [set(rank.held) for rank in outcomes]
        assert held[0] != held[-1]  # parameters of other stages are not here


@pytest.mark.parametrize("model", MODELS)
def test_simulated_ranks_train_as_one_device_does(model: str) -> None:
    each = replace(case(model, "zbv", 2, "with data"), calls=True, clip=0.5)
    check(each, [train(each)])


@pytest.mark.parametrize("model", CLIPPED)
def test_gradients_are_clipped_over_all_stages(results: Results, model: str) -> None:
    each, outcomes = results[model][-1]
    assert each == clipped(model)
    assert outcomes[0].norm_errors
    check(each, outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", MODELS)
def test_every_schedule_in_every_company(model: str, schedule: str) -> None:
    company = [(4, "alone"), (2, "with data"), (2, "with tensor")]
    cases = [case(model, schedule, *each) for each in company]
    for each, outcomes in zip(
        cases, zip(*run_ranks(everything, 4, cases), strict=True), strict=True
    ):
        check(each, list(outcomes))
    two = [case(model, schedule, 2, "alone")]
    check(two[0], [rank[0] for rank in run_ranks(everything, 2, two)])
