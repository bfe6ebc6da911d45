"""Parameters gathered per step and per microbatch: as one device, and with the traffic planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import autoplan
from tests.end_to_end import peaks
from tests.end_to_end.gathering import (
    HSDP,
    PIPELINES,
    ZERO,
    cases,
    everything,
    pipelined,
)
from tests.end_to_end.training import Case, Outcome, batch_of, build
from tests.runtime.launch import run_ranks

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("states"))
    return run_ranks(everything, 4, 4, folder, timeout_s=280.0)


def _check(outcome: Outcome, first: Outcome) -> None:
    assert outcome.losses == first.losses  # every rank sees the same loss
    assert outcome.loss_error <= TOLERANCE
    assert max(outcome.gradient_errors.values()) <= TOLERANCE, outcome.gradient_errors
    assert outcome.norm_error <= TOLERANCE
    assert max(outcome.weight_errors.values()) <= TOLERANCE, outcome.weight_errors


@pytest.mark.parametrize("case", list(map(str, cases())))
def test_three_steps_equal_one_device(results: list[dict[str, Any]], case: str) -> None:
    for result in results:
        _check(result[case], results[0][case])
        assert result[case].verified.startswith("equal" if " in " not in case else "")


@pytest.mark.parametrize("case", list(map(str, cases())))
def test_collectives_are_those_predicted(results: list[dict[str, Any]], case: str) -> None:
    for predicted, seen in (results[0][case].step_traffic, results[0][case].call_traffic):
        assert seen == predicted


def test_a_checkpoint_goes_from_one_policy_to_another(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert max(result["resumed"].values()) <= TOLERANCE, result["resumed"]


@pytest.mark.slow
def test_inside_the_stages_of_pipelines() -> None:
    results = run_ranks(pipelined, 4, 4, tuple(PIPELINES), timeout_s=280.0)
    for name in PIPELINES:
        seen: set[str] = set()
        for result in results:
            errors = result[name].gradient_errors
            here = {path: each for path, each in errors.items() if each < float("inf")}
            seen |= here.keys()
            _check(replace(result[name], gradient_errors=here), results[0][name])
        assert seen == errors.keys()


def _peaks(presets: tuple[str, ...], models: tuple[str, ...]) -> list[peaks.Case]:
    return [
        peaks.Case(
            model,
            size,
            {"preset": preset, "microbatches": count},
            f"{preset} in {count}",
            batches=count,
        )
        for model in models
        for size in ("activations", "weights")
        for preset in presets
        for count in (1, 4)
    ]


def _check_peaks(cases: list[peaks.Case], world_size: int) -> None:
    ranks = run_ranks(peaks.measure, world_size, cases, world_size, timeout_s=570.0)
    for case, *outcomes in zip(cases, *ranks, strict=True):
        for outcome in outcomes:
            assert abs(outcome.error) <= 0.1, f"{case}: {outcome.error:+.1%}\n{outcome.what}"


def test_peak_memory_is_as_predicted() -> None:
    _check_peaks(_peaks(("zero3",), ("gpt2",)), 2)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_peak_memory_of_every_policy(model: str, world_size: int) -> None:
    _check_peaks(_peaks(("zero2", "zero3"), (model,)), world_size)


def _module(preset: str, devices: int = 4, **options: Any) -> autoplan.ParallelModule:
    case = Case("gpt2", options)
    chosen = options if "parallel" in options else {"preset": preset, **options}
    return autoplan.parallelize(build(case), *batch_of(case), devices=devices, **chosen)


@pytest.mark.parametrize("name", [*ZERO, "hsdp"])
def test_eight_simulated_ranks(name: str) -> None:
    axes = {"parallel": {"data": {**HSDP["parallel"]["data"], "size": 8}}}
    module = _module(name, 8, **(axes if name == "hsdp" else {}))
    check = module.verify(*batch_of(Case("gpt2")), steps=3)
    assert check.ok, check


def test_the_program_says_what_it_gathers() -> None:
    body = _module("zero3").code.split("def body")[1].split("def epilogue")[0]
    weight = "transformer.h.0.mlp.c_fc.weight"
    (line,) = [each for each in body.splitlines() if f"# {weight}: " in each]
    assert "comm.gather(" in line
    assert "all_gather here and again in backward, reduce_scatter of" in line
    assert "comm.gather(" not in _module("fsdp").code
    reducing = _module("zero2").code.splitlines()
    (line,) = [each for each in reducing if "comm.reduce(" in each and f"# {weight}: " in each]
    assert "backward reduce_scatter of" in line
