"""The planner's table: it measures what it says, and says what is over a limit."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from rich.console import Console

from benchmarks import measure, planner
from benchmarks.rows import ROWS, Row, Shape

TINY = Shape(
    "tiny",
    "Llama",
    {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
    },
)


def figures(**given: Any) -> dict[str, Any]:
    """What a row within all limits measures, but for what is given."""
    seconds = dict.fromkeys(planner.PASSES, 0.5)
    usual = {"seconds": seconds, "cpu_seconds": dict(seconds), "process_peak_bytes": 5e8}
    return {**usual, "gap": 0.0, "step_s": 0.1, **given}


def over(plan_s: float, cpu_s: float) -> dict[str, Any]:
    usual = figures()
    return figures(
        seconds=usual["seconds"] | {"plan": plan_s},
        cpu_seconds=usual["cpu_seconds"] | {"plan": cpu_s},
    )


def test_a_row_is_measured_pass_by_pass() -> None:
    row = Row("tiny", TINY.with_layers(2), (2, 2), 60.0)
    found = json.loads(json.dumps(measure.measure(row)))
    assert set(found["seconds"]) == set(planner.PASSES)
    assert all(seconds > 0.0 for seconds in found["seconds"].values())
    assert found["gap"] == 0.0
    assert 0 < found["core"] <= found["classes"] <= found["sites"]
    assert found["parameters"] == 2 * 128 * 64 + 64 + 2 * (3 * 64 * 96 + 3 * 64 * 64 + 2 * 64)
    assert found["process_peak_bytes"] > 1e8  # torch alone
    assert planner.broken_limits(row, found) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (figures(), []),
        (over(9.0, 9.0), ["plan over 2 s"]),
        (over(9.0, 1.0), []),
        (figures(gap=0.001), ["gap over 0%"]),
        (figures(process_peak_bytes=2.1e9), ["memory over 2 GB"]),
        (figures(gap=0.5, process_peak_bytes=9e9), ["memory over 2 GB", "gap over 0%"]),
        ({"error": "no module"}, ["failed, see below"]),
    ],
    ids=["within", "slow", "busy machine", "unproven", "large", "both", "failed"],
)
def test_verdicts(found: dict[str, Any], words: list[str]) -> None:
    assert planner.broken_limits(Row("a", TINY, (8,), 2.0), found) == words


def test_the_limits_are_those_that_planning_promises() -> None:
    limits = {name: (row.limit_s, row.gap) for name, row in ROWS.items()}
    assert limits["8b-8"] == (2.0, 0.0)
    assert limits["8b-2x4"] == limits["8b-8x8"] == limits["8b-32x8"] == (6.0, 0.0)
    assert limits["8b-2x2x4"] == (90.0, 0.01)
    assert limits["70b-8x8"] == (10.0, 0.0)
    assert limits["deepseek-v3-32x8"] == (60.0, 0.0)
    assert {*planner.GROWTH, *planner.DEVICES} <= set(ROWS)


def run_main(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], measured: dict[str, Any]
) -> None:
    monkeypatch.setattr(planner, "run", lambda row: measured[row.name])
    monkeypatch.setattr(sys, "argv", ["planner", *arguments])
    planner.main()


def test_the_table_ends_in_its_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    measured = dict.fromkeys(planner.GROWTH, figures())
    file = tmp_path / "figures.json"
    run_main(monkeypatch, ["--rows", *planner.GROWTH, "--json", str(file)], measured)
    text = capsys.readouterr().out
    assert "96 layers takes 1.00 times what 12 take: sublinear" in text
    assert "all within their limits" in text
    written = json.loads(file.read_text())
    assert written["rows"] == measured
    assert written["broken"] == {name: [] for name in planner.GROWTH}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (over(9.0, 8.5), "NOT SUBLINEAR"),
        ({"error": "ValueError: [red] is no markup"}, "ValueError: [red] is no markup"),
    ],
)
def test_a_broken_limit_is_an_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any],
    words: str,
) -> None:
    large, small = planner.GROWTH
    with pytest.raises(SystemExit) as caught:
        run_main(monkeypatch, ["--rows", large, small], {large: found, small: figures()})
    assert caught.value.code == 1
    text = capsys.readouterr().out
    assert words in text
    assert "A LIMIT IS BROKEN" in text


def test_unknown_rows_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_main(monkeypatch, ["--rows", "9b-*"], {})
    assert "'9b-*'; the rows are 8b-8, 8b-2x4" in capsys.readouterr().err


def test_the_table_is_wide_enough_for_its_columns() -> None:
    rows = list(ROWS.values())
    table = planner.table_of(
        rows, {row.name: figures() for row in rows}, {row.name: [] for row in rows}
    )
    console = Console(width=170)
    assert console.measure(table).maximum <= 170
