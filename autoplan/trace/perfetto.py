"""Traces as files: Chrome's Trace Event Format in JSON, which ui.perfetto.dev opens.

Google, "Trace Event Format" (2016): complete events "X", counters "C", metadata "M"; times are
microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autoplan.errors import PlanFileError
from autoplan.trace.spans import Group, Span


def trace(groups: Sequence[Group]) -> dict[str, Any]:
    """The groups as processes of one trace, each beginning at time 0, its tracks as threads."""
    return {
        "traceEvents": [
            event for number, g in enumerate(groups, 1) for event in _events(number, g)
        ],
        "displayTimeUnit": "ms",
        "otherData": {group.name: dict(group.notes) for group in groups},
    }


def save_trace(path: str | Path, groups: Sequence[Group]) -> None:
    """Write the trace of `groups`; PlanFileError where the file cannot be written."""
    try:
        with Path(path).open("w", encoding="utf-8", newline="\n") as file:
            json.dump(trace(groups), file, separators=(",", ":"), allow_nan=False)
    except OSError as error:
        raise PlanFileError(f"cannot write trace {str(path)!r}: {error.strerror}.") from error


def _events(process: int, group: Group) -> Iterator[dict[str, Any]]:
    yield _named(process, 0, "process_name", name=group.name)
    yield _named(process, 0, "process_sort_index", sort_index=process)
    threads = {track: number for number, track in enumerate(group.tracks, start=1)}
    for track, number in threads.items():
        yield _named(process, number, "thread_name", name=track)
        yield _named(process, number, "thread_sort_index", sort_index=number)
    for span in sorted(group.spans, key=lambda each: (each.start_s, -each.time_s)):
        yield _complete(process, threads[span.track], span)
    for level in group.levels:
        yield {
            "ph": "C",
            "pid": process,
            "name": level.counter,
            "ts": 1e6 * level.start_s,
            "args": {"bytes": round(level.total)},
        }


def _complete(process: int, thread: int, span: Span) -> dict[str, Any]:
    # To the picosecond: ends of neighbours, rounded apart, would cross otherwise.
    start, end = round(1e6 * span.start_s, 6), round(1e6 * span.end_s, 6)
    return {
        "ph": "X",
        "pid": process,
        "tid": thread,
        "name": span.name,
        "cat": span.category,
        "ts": start,
        "dur": round(end - start, 6),
        "args": dict(span.args),
    }


def _named(process: int, thread: int, what: str, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": what, "args": args}
