"""Published training runs: the published setting and the search's plan, priced by one model.

python -m benchmarks.published [--all | --runs 'bert-*' ...] [--no-search] [--search SECONDS]
                               [--limit SECONDS] [--json FILE] [--from FILE] [--markdown]
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
the plan that the search finds for the same model, batch and devices, within the device's memory and
with microbatches of its own. A setting is data x tensor x pipeline; "ac": all activations are
recomputed. "ratio" is predicted over measured throughput, "gain" the search's throughput over that
of the setting as priced. One profile for each kind of device; no constant of a run. Every figure
comes from a process of its own."""
LIMIT_S = 300
"""Seconds of the clock after which a figure is given up."""
SEARCH_S = 60
"""Seconds that the planner has for one search."""
COLUMNS = (
    "run", "GPUs", "setting", "microbatches", "measured", "unit", "measured s", "priced s", "ratio",
    "GB", "search's plan", "its microbatches", "its s", "gain", "its GB",
)  # fmt: skip
Figures = Mapping[str, Any]
Found = Mapping[str, Mapping[str, Figures]]
"""By run, then "published" and "search"."""


def main() -> None:
    runs = read_runs()
    arguments = _arguments(runs)
    chosen = chosen_of(runs, arguments.runs, arguments.all)
    asked = ("published",) if arguments.no_search else ("published", "search")
    console = Console(width=220)
    console.print(ABOUT)
    found: dict[str, dict[str, Figures]] = {}
    if arguments.read is not None:
        found = json.loads(arguments.read.read_text())
        chosen = [run for run in chosen if run.name in found]
    for run in chosen:
        kept = found.setdefault(run.name, {})
        for each in asked:
            if each not in kept and arguments.read is None:
                kept[each] = ask(run, each, arguments.limit, arguments.search)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.markdown:
        print(markdown_of(chosen, found))
    else:
        console.print(table_of(chosen, found))
    for line in (*notes(chosen, found), *summary(chosen, found), *sources(chosen)):
        console.print(line, markup=False, highlight=False)


def _arguments(runs: Mapping[str, Run]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--runs", nargs="+", help=f"names, or patterns as 'bert-*': {', '.join(runs)}"
    )
    parser.add_argument("--all", action="store_true", help="every run, not the quick ones alone")
    parser.add_argument("--no-search", action="store_true", help="price published settings alone")
    parser.add_argument("--search", type=int, default=SEARCH_S, help="seconds for each search")
    parser.add_argument("--limit", type=int, default=LIMIT_S, help="seconds for each figure")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--from", dest="read", type=Path, help="show the figures of such a file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    for pattern in arguments.runs or ():
        if not fnmatch.filter(runs, pattern):
            parser.error(f"no run is called {pattern!r}; the runs are {', '.join(runs)}")
    return arguments


def chosen_of(runs: Mapping[str, Run], patterns: Sequence[str] | None, every: bool) -> list[Run]:
    """The runs of these patterns; without any the quick ones, or all."""
    if patterns is None:
        return [run for run in runs.values() if every or run.quick]
    return [
        run for run in runs.values() if any(fnmatch.fnmatch(run.name, each) for each in patterns)
    ]


def ask(run: Run, what: str, limit_s: int, search_s: int = SEARCH_S) -> dict[str, Any]:
    """Figures of a run, from a process of its own; a failure is {"error": text}."""
    print(f"{run.name}: {what}", file=sys.stderr, flush=True)
    planning_s = str(search_s if what == "search" else max(1, limit_s // 4))
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


def rows_of(runs: Sequence[Run], found: Found) -> Iterator[tuple[str, ...]]:
    """The cells of one line a run, as `COLUMNS` calls them."""
    for run in runs:
        published, searched = (found[run.name].get(each, {}) for each in ("published", "search"))
        yield (
            run.name,
            f"{run.devices:,}",
            run.setting,
            str(published.get("microbatches", "-")),
            _number(run.in_own_unit(run.measured_samples_per_s)),
            run.unit,
            _seconds(run.batch / run.measured_samples_per_s),
            _seconds(published.get("step_s")),
            _ratio(ratio(run, published)),
            _memory(published) + ("" if published.get("fits", True) else " (over)"),
            _plan(searched),
            str(searched.get("microbatches", "-")),
            _seconds(searched.get("step_s")),
            _ratio(gain(published, searched)),
            _memory(searched),
        )


def table_of(runs: Sequence[Run], found: Found) -> Table:
    """One line a run: measured, the published setting priced, the search's plan, ratios."""
    table = Table(*COLUMNS, box=None)
    for row in rows_of(runs, found):
        table.add_row(*row)
    return table


def markdown_of(runs: Sequence[Run], found: Found) -> str:
    """The table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows_of(runs, found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio(run: Run, figures: Figures) -> float | None:
    """Predicted over measured throughput."""
    if "samples_per_s" not in figures:
        return None
    return float(figures["samples_per_s"]) / run.measured_samples_per_s


def gain(published: Figures, searched: Figures) -> float | None:
    """Throughput of the search's plan over that of the published setting, both as priced."""
    if "samples_per_s" not in published or "samples_per_s" not in searched:
        return None
    return float(searched["samples_per_s"]) / float(published["samples_per_s"])


def notes(runs: Sequence[Run], found: Found) -> Iterator[str]:
    """What failed, what does not fit, searches behind the published setting, and departures."""
    for run in runs:
        published = found[run.name].get("published", {})
        for what, figures in found[run.name].items():
            if "error" in figures:
                yield f"{run.name}, {what}: {figures['error']}"
            elif not figures["fits"]:
                yield f"{run.name}, {what}: {_memory(figures)} GB are more than the device has"
            for line in figures.get("departures", ()):
                if what == "search":
                    yield f"{run.name}, {figures['scheme']}: but {line}"
            over = gain(published, figures) if what == "search" else None
            if over is not None and over < 1 - 1e-9:
                why = "does not fit" if not published["fits"] else "fits: the search missed it"
                yield f"{run.name}, search: {over:.2f} x the published setting, which {why}"


def summary(runs: Sequence[Run], found: Found) -> Iterator[str]:
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


def _plan(figures: Figures) -> str:
    if "scheme" not in figures:
        return "-"
    again = figures.get("recomputed", 0)
    return str(figures["scheme"]) + (f", {again} blocks again" if again else "")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _memory(figures: Figures) -> str:
    return f"{figures['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in figures else "-"


if __name__ == "__main__":
    main()
