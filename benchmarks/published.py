"""Published training runs: the published setting and the search's plan, priced by one model.

python -m benchmarks.published [--runs 'bert-*'] [--no-search] [--limit SECONDS] [--json FILE]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.published_runs import Run, read_runs

ABOUT = """\
For each run: what its source measured, what the cost model says of the setting that it ran, and of
the plan that the search finds for the same model, batch and devices. Ratios are predicted over
measured. One profile for each kind of device; no constant of a run. Every figure comes from a
process of its own."""
LIMIT_S = 600
"""Seconds that one figure may take."""
Figures = Mapping[str, Any]


def main() -> None:
    runs = read_runs()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--runs",
        nargs="+",
        default=["*"],
        help=f"names, or patterns as 'bert-*': {', '.join(runs)}",
    )
    parser.add_argument("--no-search", action="store_true", help="price published settings alone")
    parser.add_argument("--limit", type=int, default=LIMIT_S, help="seconds for each figure")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    for pattern in arguments.runs:
        if not fnmatch.filter(runs, pattern):
            parser.error(f"no run is called {pattern!r}; the runs are {', '.join(runs)}")
    chosen = [run for run in runs.values() if any(map(_matches(run), arguments.runs))]
    asked = ("published",) if arguments.no_search else ("published", "search")
    console = Console(width=200)
    console.print(ABOUT)
    found = {run.name: {each: ask(run, each, arguments.limit) for each in asked} for run in chosen}
    console.print(table_of(chosen, found))
    for line in (*notes(chosen, found), *summary(chosen, found), *sources(chosen)):
        console.print(line, markup=False, highlight=False)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def _matches(run: Run) -> Any:
    return lambda pattern: fnmatch.fnmatch(run.name, pattern)


def ask(run: Run, what: str, limit_s: int) -> dict[str, Any]:
    """Figures of a run, from a process of its own; a failure is {"error": text}."""
    print(f"{run.name}: {what}", file=sys.stderr, flush=True)
    planning_s = str(max(1, limit_s // 2))
    command = [sys.executable, "-m", "benchmarks.published_row", run.name, what, planning_s]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": f"given up after {limit_s} s"}
    if done.returncode:
        return {"error": (done.stderr.splitlines() or ["no message"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table_of(runs: Sequence[Run], found: Mapping[str, Mapping[str, Figures]]) -> Table:
    """One line a run: measured, the published setting priced, the search's plan, ratios."""
    table = Table(
        "run", "GPUs", "unit", "measured", "setting priced", "ratio", "memory", "search's plan",
        "over the setting", "memory", "its scheme", box=None,
    )  # fmt: skip
    for run in runs:
        published, searched = (found[run.name].get(each, {}) for each in ("published", "search"))
        table.add_row(
            run.name,
            str(run.devices),
            run.unit,
            _number(run.in_own_unit(run.measured_samples_per_s)),
            _throughput(run, published),
            _ratio(ratio(run, published)),
            _memory(published),
            _throughput(run, searched),
            _ratio(_gain(published, searched)),
            _memory(searched),
            str(searched.get("scheme", "")),
        )
    return table


def ratio(run: Run, figures: Figures) -> float | None:
    """Predicted over measured throughput."""
    if "samples_per_s" not in figures:
        return None
    return float(figures["samples_per_s"]) / run.measured_samples_per_s


def _gain(published: Figures, searched: Figures) -> float | None:
    if "samples_per_s" not in published or "samples_per_s" not in searched:
        return None
    return float(searched["samples_per_s"]) / float(published["samples_per_s"])


def notes(runs: Sequence[Run], found: Mapping[str, Mapping[str, Figures]]) -> Iterator[str]:
    """What failed, settings that this model of memory has no room for, and departures."""
    for run in runs:
        for what, figures in found[run.name].items():
            if "error" in figures:
                yield f"{run.name}, {what}: {figures['error']}"
            elif not figures["fits"]:
                yield f"{run.name}, {what}: {_memory(figures)} are more than the device has"
            for line in figures.get("departures", ()):
                if what == "search":
                    yield f"{run.name}, {figures['scheme']}: but {line}"


def summary(runs: Sequence[Run], found: Mapping[str, Mapping[str, Figures]]) -> Iterator[str]:
    """How far the priced settings are from what was measured, by source."""
    by_source: dict[str, list[float]] = {}
    for run in runs:
        each = ratio(run, found[run.name].get("published", {}))
        if each is not None:
            by_source.setdefault(run.source.title, []).append(each)
    for title, ratios in by_source.items():
        off = sorted(abs(each - 1) for each in ratios)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        yield (
            f"{title}: {len(ratios)} settings priced, {mean:.2f} x measured in the geometric mean, "
            f"{min(ratios):.2f} to {max(ratios):.2f}; half are off by {off[len(off) // 2]:.0%} or "
            "less"
        )


def sources(runs: Sequence[Run]) -> Iterator[str]:
    for source in dict.fromkeys(run.source for run in runs):
        yield f"{source.title}, {source.url}: {source.hardware}"


def _throughput(run: Run, figures: Figures) -> str:
    if "samples_per_s" not in figures:
        return "-"
    return _number(run.in_own_unit(float(figures["samples_per_s"])))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _memory(figures: Figures) -> str:
    return f"{figures['peak_bytes'] / 1e9:.1f} GB" if "peak_bytes" in figures else "-"


if __name__ == "__main__":
    main()
