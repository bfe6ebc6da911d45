"""Peak memory of pipelines: every rank's is predicted, and 1F1B holds less than GPipe."""

from __future__ import annotations

from typing import Any

import pytest

from tests.end_to_end.peaks import Case
from tests.end_to_end.pipeline_peaks import StageOutcome, measure_stages, pipeline
from tests.runtime.launch import run_ranks

pytestmark = pytest.mark.timeout(900)  # many processes, on machines of two cores

TOLERANCE = 0.1

MODELS = ("gpt2", "llama")
SIZES = ("activations", "weights")
SINGLE = ("gpipe", "1f1b")
LOOPED = ("interleaved-1f1b", "zero-bubble", "zbv")
DATA: dict[str, Any] = {"data": 2}
TENSOR: dict[str, Any] = {"tensor": {"size": 2, "mode": "1d"}}

# One cut for both schedules, so that their peaks compare.
HALVES = [0, 0, 1, 1]  # of four layers
GPIPE, ONE_F_ONE_B = (pipeline("gpt2", "activations", each, 2, 6, cut=HALVES) for each in SINGLE)
ON_TWO = [
    GPIPE,
    ONE_F_ONE_B,
    pipeline("llama", "weights", "gpipe", 2, 4),
    pipeline("llama", "activations", "interleaved-1f1b", 4, 4),
    pipeline("gpt2", "activations", "zero-bubble", 4, 4),
    pipeline("gpt2", "weights", "zbv", 4, 4),
    pipeline("gpt2", "activations", "zbv", 4, 4, recompute=True),
]
ON_FOUR = [
    pipeline("llama", "activations", "1f1b", 4, 8),
    pipeline("llama", "weights", "zbv", 4, 4, DATA, preset="fsdp"),
]

ALL_ON_TWO = [
    pipeline(model, size, schedule, 2 if schedule in SINGLE else 4, 4)
    for model in MODELS
    for size in SIZES
    for schedule in (*SINGLE, *LOOPED)
]
ALL_ON_FOUR = [
    pipeline(model, size, schedule, 4, 8)
    for model in MODELS
    for size in SIZES
    for schedule in SINGLE
]
LOOPED_ON_FOUR = [
    pipeline(model, "activations", schedule, 8, 8) for model in MODELS for schedule in LOOPED
]
BESIDE = [
    pipeline(model, size, "1f1b", 2, 4, beside, **options)
    for model in MODELS
    for size in SIZES
    for beside, options in ((DATA, {"preset": "ddp"}), (DATA, {"preset": "fsdp"}), (TENSOR, {}))
]
LOOPED_BESIDE = [
    pipeline(model, size, schedule, 4, 4, DATA, preset="fsdp")
    for model in MODELS
    for size in SIZES
    for schedule in LOOPED
]
RECOMPUTED = [
    pipeline(model, "activations", schedule, 2 if schedule in SINGLE else 4, 4, recompute=True)
    for model in MODELS
    for schedule in (*SINGLE, *LOOPED)
]

Outcomes = dict[str, list[StageOutcome]]
"""By case, of all ranks."""


def outcomes(cases: list[Case], world_size: int) -> Outcomes:
    ranks = run_ranks(measure_stages, world_size, cases, timeout_s=570.0)
    return {str(case): list(each) for case, *each in zip(cases, *ranks, strict=True)}


def check(found: Outcomes) -> None:
    """Peaks are as predicted, and as many microbatches are in flight as planned."""
    wrong = []
    for case, ranks in found.items():
        for rank, each in enumerate(ranks):
            if abs(each.error) > TOLERANCE:
                wrong.append(f"{case}, rank {rank}: off by {each.error:+.1%}\n{each.what}")
            assert each.in_flight == each.planned_in_flight, case
    assert not wrong, "\n\n".join(wrong)


@pytest.fixture(scope="module")
def two_ranks() -> Outcomes:
    return outcomes(ON_TWO, 2)


def test_on_two_ranks(two_ranks: Outcomes) -> None:
    check(two_ranks)


def test_on_four_ranks() -> None:
    found = outcomes(ON_FOUR, 4)
    check(found)
    for stage, each in enumerate(found[str(ON_FOUR[0])]):
        assert each.in_flight == {stage: 4 - stage}


def test_1f1b_holds_at_most_as_many_microbatches_as_stages_follow(two_ranks: Outcomes) -> None:
    for stage, each in enumerate(two_ranks[str(ONE_F_ONE_B)]):
        assert each.in_flight == {stage: 2 - stage}
    for stage, each in enumerate(two_ranks[str(GPIPE)]):
        assert each.in_flight == {stage: 6}


def test_1f1b_takes_less_memory_than_gpipe(two_ranks: Outcomes) -> None:
    pairs = zip(two_ranks[str(ONE_F_ONE_B)], two_ranks[str(GPIPE)], strict=True)
    for less, more in pairs:
        assert less.measured < 0.6 * more.measured
        assert less.predicted < 0.6 * more.predicted


SLOW = {
    "every schedule on two ranks": (ALL_ON_TWO, 2),
    "four stages on four ranks": (ALL_ON_FOUR, 4),
    "eight stages on four ranks": (LOOPED_ON_FOUR, 4),
    "beside data and tensor parallelism": (BESIDE, 4),
    "looped beside data parallelism": (LOOPED_BESIDE, 4),
    "recomputed": (RECOMPUTED, 2),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SLOW)
def test_every_case(name: str) -> None:
    check(outcomes(*SLOW[name]))
