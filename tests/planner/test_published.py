"""The table of published runs: what is read, what is priced, and what is said of a failure."""

from __future__ import annotations

import io
import json
import subprocess
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
    assert load_profile(run.source.cluster).memory_bytes.value in (16e9, 32e9, 80e9, 96e9)
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


def test_flops_of_a_llama_are_the_models() -> None:
    """Grattafiori et al. 2024: 405 billion parameters, 6 flops for each and token; attention's."""
    run = RUNS["llama-405b-8k"]
    tokens = run.batch * run.sequence
    assert tokens == 2**24
    assert 6.0 < run.flops / (405e9 * tokens) < 6.6


def test_what_runs_without_being_asked_for_is_of_every_kind() -> None:
    quick = published.chosen_of(RUNS, None, False)
    assert {run.source.title for run in quick} >= {RUNS["gpt-7_5b"].source.title}
    assert {run.tensor > 1 for run in quick} == {run.pipeline > 1 for run in quick} == {True, False}
    assert len(published.chosen_of(RUNS, None, True)) == len(RUNS)
    assert [run.name for run in published.chosen_of(RUNS, ["llama-8b-fsdp"], False)] == [
        "llama-8b-fsdp"
    ]


@pytest.fixture
def small() -> Run:
    return replace(
        RUNS["gpt2-24-4x1x1"], name="small", batch=8, microbatch=1, tensor=2, data=2, layers=2,
        hidden=64, heads=4, sequence=16, vocabulary=100,
    )  # fmt: skip


def test_a_setting_is_priced_as_it_ran(small: Run) -> None:
    found = published_row.price(small, 20.0)
    assert found["scheme"] == "DDP 2 × Megatron-TP 2"
    assert found["microbatches"] == 4
    assert found["fits"]
    assert found["samples_per_s"] == pytest.approx(8 / found["step_s"])


@pytest.mark.parametrize("model", ["GPT", "BERT"])
def test_norms_dropouts_and_sums_run_on_every_tensor_rank(small: Run, model: Any) -> None:
    """In twelve blocks, so that numbers of blocks have one digit and two."""
    run = replace(small, model=model, layers=12, data=1, hidden=256, sequence=64)
    plan = published_row.setting_of(run, 1, 20.0)
    ops = ("layer_norm", "dropout", "add.Tensor")
    rows = [each for each in plan.operations if each.op.startswith(tuple(f"aten.{o}" for o in ops))]
    between = [each for each in rows if each.shape == (run.batch, run.sequence, run.hidden)]
    inside = ("embeddings", "transformer.drop", "model.transformer", "predictions.transform")
    kept = [e for e in between if not e.path.endswith(inside) and "embeddings" not in e.path]
    assert len(kept) >= 6 * run.layers
    assert {each.choice for each in kept if "predictions" not in each.path} == {"B"}
    split = [each for each in plan.operations if each.choice not in ("B", "B/P")]
    assert len(split) > 10 * run.layers  # the products are split nevertheless


def test_a_pipeline_with_recomputation_is_priced(small: Run) -> None:
    run = replace(small, tensor=1, data=1, pipeline=2, recompute="all", microbatch=2)
    found = published_row.price(run, 20.0)
    assert found["scheme"] == "pipeline 2 (1F1B, 4 microbatches)"
    assert found["recomputed"] == 2


def test_an_interleaved_pipeline_of_tensor_ranks_is_priced(small: Run) -> None:
    """Hints on blocks that only one of the stages has are hints of that stage."""
    run = replace(small, data=1, pipeline=2, chunks=2, layers=4, microbatch=2)
    assert run.setting == "1x2x2, 2 chunks"
    found = published_row.price(run, 20.0)
    scheme = "pipeline 2 (interleaved 1F1B, 4 stages, 4 microbatches) × Megatron-TP 2"
    assert found["scheme"] == scheme


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

    monkeypatch.setattr(subprocess, "run", run)
    found = {"small": {each: published.ask(small, each, 10) for each in ("published", "search")}}
    text = io.StringIO()
    Console(width=240, file=text).print(published.table_of([small], found))
    line = next(each for each in text.getvalue().splitlines() if "small" in each)
    assert "2.00" in line
    assert "40.0 (over)" in line
    said = list(published.notes([small], found))
    assert said == [
        "small, published: 40.0 GB are more than the device has",
        "small, search: ConfigError: no such thing",
    ]
    (about,) = published.summary([small], found)
    assert "1 settings priced, 2.00 x measured" in about


def test_a_search_behind_the_setting_is_told(small: Run) -> None:
    """With whether the setting itself fits; and the gain is of throughput."""
    rate = small.measured_samples_per_s
    step = {"step_s": small.batch / rate, "peak_bytes": 1e9, "microbatches": 1, "departures": []}
    setting = {**step, "samples_per_s": rate, "scheme": "DDP 4", "fits": True}
    slower = {**setting, "samples_per_s": 0.5 * rate, "scheme": "FSDP 4"}
    found: dict[str, dict[str, dict[str, Any]]] = {
        "small": {"published": setting, "search": slower}
    }
    (said,) = published.notes([small], found)
    assert said == "small, search: 0.50 x the published setting, which fits: the search missed it"
    cells = dict(zip(published.COLUMNS, *published.rows_of([small], found), strict=True))
    assert (cells["ratio"], cells["gain"], cells["setting"]) == ("1.00", "0.50", "2x2x1")
    assert (cells["search's plan"], cells["measured s"]) == ("FSDP 4", cells["priced s"])
    lines = published.markdown_of([small], found).splitlines()
    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1
    assert not list(published.notes([small], {"small": {"published": setting, "search": setting}}))
