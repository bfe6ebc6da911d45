"""How long planning takes: seconds of every pass and peak memory, from meta weights.

python -m benchmarks.planner [--rows '8b-*'] [--json FILE]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import EMIT_LIMIT_S, GROWTH_LIMIT, MEMORY_LIMIT_BYTES, ROWS, TOKENS, Row

PASSES = ("capture", "annotate", "build", "fold", "reduce", "solve", "plan", "emit")
ABOUT = f"""\
One sequence of {TOKENS} tokens, bf16, training with AdamW, H100 profile, no weights.
Every row runs in a process of its own. 'solve' folds and reduces again; 'plan' is all that planning
does after capture, reports and comparisons included, and what the limit is for. Seconds are of the
wall clock; where a busy machine makes them more than those of the CPU, the CPU's count."""
GIVEN_UP_AFTER_S = 600
GROWTH = ("8b-96-layers", "8b-12-layers")
DEVICES = ("8b-32x8", "8b-8x8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--rows", nargs="+", default=["*"], help=f"names, or patterns as '8b-*': {', '.join(ROWS)}"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    for pattern in arguments.rows:
        if not fnmatch.filter(ROWS, pattern):
            parser.error(f"no row is called {pattern!r}; the rows are {', '.join(ROWS)}")
    names = {name for pattern in arguments.rows for name in fnmatch.filter(ROWS, pattern)}
    chosen = [row for row in ROWS.values() if row.name in names]
    console = Console(width=170)
    console.print(ABOUT)
    console.print(machine())
    measured = {row.name: run(row) for row in chosen}
    broken = {row.name: broken_limits(row, measured[row.name]) for row in chosen}
    console.print(table_of(chosen, measured, broken))
    for line in (*failures(measured), *comparisons(measured)):
        console.print(line, markup=False)
    grown = ratio(measured, *GROWTH)
    failed = any(broken.values()) or (grown is not None and grown >= GROWTH_LIMIT)
    console.print("A LIMIT IS BROKEN" if failed else "all within their limits")
    if arguments.json is not None:
        figures = {"machine": machine(), "rows": measured, "broken": broken}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if failed:
        raise SystemExit(1)


def machine() -> str:
    """What the figures depend on."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, load {load:.1f} at the start, Python "
        f"{platform.python_version()}, torch {version('torch')}, "
        f"transformers {version('transformers')}"
    )


def run(row: Row) -> dict[str, Any]:
    """Measure `row` in a process of its own; a failure is {"error": text}."""
    print(f"measuring {row.name}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.measure", row.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIVEN_UP_AFTER_S)
    except subprocess.TimeoutExpired:
        return {"error": f"given up after {GIVEN_UP_AFTER_S} s"}
    if done.returncode:
        return {"error": "\n".join(done.stderr.splitlines()[-15:]) or "no message"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def broken_limits(row: Row, figures: Mapping[str, Any]) -> list[str]:
    """What `figures` break of the row's limits, in words.

    Where the wall clock took longer than the CPU, the machine was busy with something else, as
    planning waits for nothing: then the CPU's seconds count.
    """
    if "error" in figures:
        return ["failed, see below"]
    wall, cpu = figures["seconds"], figures["cpu_seconds"]
    checks = (
        (min(wall["plan"], cpu["plan"]), row.limit_s, "plan over {:g} s"),
        (min(wall["emit"], cpu["emit"]), EMIT_LIMIT_S, "emission over {:g} s"),
        (figures["process_peak_bytes"] / 1e9, MEMORY_LIMIT_BYTES / 1e9, "memory over {:g} GB"),
        (figures["gap"], row.gap, "gap over {:.0%}"),
    )
    return [text.format(limit) for value, limit, text in checks if value > limit]


def table_of(
    rows: Sequence[Row],
    measured: Mapping[str, Mapping[str, Any]],
    broken: Mapping[str, Sequence[str]],
) -> Table:
    """One line per row: figures, limit, verdict."""
    after = ("limit", "plan, CPU", "memory", "step", "gap", "verdict")
    table = Table("model", "mesh", *PASSES, *after, box=None)
    for row in rows:
        figures, verdict = measured[row.name], "; ".join(broken[row.name]) or "within"
        mesh = " x ".join(map(str, row.mesh))
        if "error" in figures:
            table.add_row(row.shape.title, mesh, *[""] * (len(PASSES) + len(after) - 1), verdict)
            continue
        table.add_row(
            row.shape.title,
            mesh,
            *(f"{figures['seconds'][name]:.2f} s" for name in PASSES),
            f"{row.limit_s:g} s",
            f"{figures['cpu_seconds']['plan']:.2f} s",
            f"{figures['process_peak_bytes'] / 1e6:.0f} MB",
            f"{figures['step_s'] * 1e3:.1f} ms",
            f"{figures['gap']:.2%}",
            verdict,
        )
    return table


def failures(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the rows that failed said."""
    return [f"{name}: {each['error']}" for name, each in measured.items() if "error" in each]


def comparisons(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the table says about layers and devices."""
    lines = []
    grown = ratio(measured, *GROWTH)
    if grown is not None:
        verdict = "sublinear" if grown < GROWTH_LIMIT else "NOT SUBLINEAR"
        lines.append(f"planning 96 layers takes {grown:.2f} times what 12 take: {verdict}")
    spread = ratio(measured, *DEVICES)
    if spread is not None:
        lines.append(f"planning for 256 devices takes {spread:.2f} times what 64 take")
    return lines


def ratio(measured: Mapping[str, Mapping[str, Any]], one: str, other: str) -> float | None:
    """CPU seconds of `plan` of one row over those of another; None where either is missing.

    Two rows run at different times: what else the machine does must not count.
    """
    if not all("cpu_seconds" in measured.get(name, {}) for name in (one, other)):
        return None
    seconds = [float(measured[name]["cpu_seconds"]["plan"]) for name in (one, other)]
    return seconds[0] / seconds[1]


if __name__ == "__main__":
    main()
