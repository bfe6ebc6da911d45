"""The plan's peak memory is within a tenth of what a step of the emitted program holds."""

from __future__ import annotations

import pytest

from tests.end_to_end.peaks import MODELS, Case, Outcome, measure, measure_one
from tests.runtime.launch import run_ranks

TOLERANCE = 0.1

SIZES = ("activations", "weights")
SCHEMES = {name: {"preset": name} for name in ("ddp", "fsdp", "megatron")} | {"own plan": {}}

ALL = [
    Case(model, size, options, name)
    for model in MODELS
    for size in SIZES
    for name, options in SCHEMES.items()
]
WITHOUT_DROPOUT = [Case(model, "activations", dropout=0.0) for model in MODELS]
IN_MICROBATCHES = [
    Case(model, size, {"preset": name, "microbatches": 2}, f"{name} in 2 microbatches")
    for model in ("gpt2", "llama")
    for size in SIZES
    for name in ("ddp", "fsdp")
]
FEW = [
    Case("gpt2", "activations", {"preset": "megatron"}, "megatron"),
    Case("bert", "weights", {"preset": "ddp"}, "ddp"),
    Case("vit", "activations"),
    Case("llama", "weights", {"preset": "fsdp"}, "fsdp"),
]
LARGE = [Case(model, "activations", {"preset": "fsdp"}, "fsdp", scale=4) for model in MODELS]


def _wrong(case: Case, outcomes: list[Outcome]) -> str:
    """What to read where a prediction is off."""
    worst = max(outcomes, key=lambda each: abs(each.error))
    return f"{case}: off by {worst.error:+.1%}\n{worst.what}"


def _check(cases: list[Case], world_size: int) -> None:
    ranks = run_ranks(measure, world_size, cases, world_size, timeout_s=570.0)
    wrong = []
    for case, *outcomes in zip(cases, *ranks, strict=True):
        if max(abs(each.error) for each in outcomes) > TOLERANCE:
            wrong.append(_wrong(case, outcomes))
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_on_one_device(model: str, size: str) -> None:
    case = Case(model, size)
    outcome = measure_one(case, 1)
    assert abs(outcome.error) <= TOLERANCE, _wrong(case, [outcome])


def test_on_two_ranks() -> None:
    _check(FEW, 2)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_scheme(model: str, world_size: int) -> None:
    _check([case for case in ALL if case.model == model], world_size)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_without_dropout(world_size: int) -> None:
    _check(WITHOUT_DROPOUT, world_size)


@pytest.mark.slow
def test_in_microbatches() -> None:
    _check(IN_MICROBATCHES, 2)


@pytest.mark.slow
def test_of_larger_models() -> None:
    _check(LARGE, 2)
