"""The table of published runs: what is read, what is priced, and what is said of a failure."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from autoplan.cost_models import load_profile
from benchmarks import published, published_row
from benchmarks.published_runs import Run, read_runs

RUNS = read_runs()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_whole(name: str) -> None:
    """Its batch divides, its hardware is described, and its throughput comes back in its unit."""
    run = RUNS[name]
    assert run.batch % run.data == 0
    assert all(count >= 1 for count in run.microbatch_counts)
    assert load_profile(run.source.cluster).memory_bytes.value > 30e9
    given = run.samples_per_s or run.tflops_per_gpu or run.tokens_per_s_per_gpu
    assert run.in_own_unit(run.measured_samples_per_s) == pytest.approx(given, rel=1e-12)


def test_microbatches_are_those_of_the_source() -> None:
    assert RUNS["bert-24-2x2x1-ac"].microbatch_counts == (8,)  # 2048 / (128 * 2)
    assert RUNS["gpt-1_7b"].microbatch_counts == (16, 4, 1)  # 16 for each of 32 data ranks


def test_flops_count_recomputation() -> None:
    """Narayanan et al. 2021: about 8 flops for each parameter and token, and attention's."""
    run = RUNS["gpt-7_5b"]
    tokens = run.batch * run.sequence
    assert 8.0 < run.flops / (7.5e9 * tokens) < 9.0


@pytest.fixture
def small() -> Run:
    run = RUNS["gpt2-24-4x1x1"]
    sizes = {"layers": 2, "hidden": 64, "heads": 4, "sequence": 16, "vocabulary": 100}
    return replace(run, name="small", batch=8, microbatch=1, tensor=2, data=2, **sizes)


def test_a_setting_is_priced_as_it_ran(small: Run) -> None:
    found = published_row.price(small, 20.0)
    assert found["scheme"] == "DDP 2 × Megatron-TP 2"
    assert found["microbatches"] == 4
    assert found["fits"]
    assert found["samples_per_s"] == pytest.approx(8 / found["step_s"])


def test_a_pipeline_with_recomputation_is_priced(small: Run) -> None:
    run = replace(small, tensor=1, data=1, pipeline=2, recompute="all", microbatch=2)
    found = published_row.price(run, 20.0)
    assert found["scheme"] == "pipeline 2 (1F1B, 4 microbatches)"
    assert found["recomputed"] == 2


def test_the_table_tells_ratios_and_failures(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "samples_per_s": 2 * small.measured_samples_per_s, "peak_bytes": 40e9, "fits": False,
        "scheme": "DDP 4", "departures": ["x"],
    }  # fmt: skip

    def run(command: list[str], **_: Any) -> Any:
        class Done:
            returncode = int("search" in command)
            stdout, stderr = json.dumps(figures), "Traceback\nConfigError: no such thing"

        return Done()

    monkeypatch.setattr(published.subprocess, "run", run)
    found = {"small": {each: published.ask(small, each, 10) for each in ("published", "search")}}
    text = io.StringIO()
    Console(width=200, file=text).print(published.table_of([small], found))
    line = next(each for each in text.getvalue().splitlines() if "small" in each)
    assert "2.00" in line
    assert "40.0 GB" in line
    said = list(published.notes([small], found))
    assert said == [
        "small, published: 40.0 GB are more than the device has",
        "small, search: ConfigError: no such thing",
    ]
    (about,) = published.summary([small], found)
    assert "1 settings priced, 2.00 x measured" in about
