"""Reads traces as viewers do, knowing their format and nothing of autoplan."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).parent / "trace_event_format.json").read_text())


@dataclass(frozen=True)
class Slice:
    """A complete event, in microseconds; `depth`: how many slices of its track it lies inside."""

    name: str
    category: str
    start_us: float
    duration_us: float
    args: dict[str, Any]
    depth: int

    @property
    def end_us(self) -> float:
        return self.start_us + self.duration_us


@dataclass(frozen=True)
class Process:
    """Slices by the name of their thread, and (microseconds, value) by the name of a counter."""

    threads: dict[str, list[Slice]]
    counters: dict[str, list[tuple[float, float]]]

    @property
    def end_us(self) -> float:
        return max(each.end_us for slices in self.threads.values() for each in slices)


def read_trace(path: Path) -> dict[str, Process]:
    """The processes of a trace by name; ValueError where its file is not as its format says.

    The schema is checked by `jsonschema`, and that slices of a thread nest, which viewers need.
    """
    import jsonschema

    data = json.loads(path.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(data)
    events = data["traceEvents"]
    processes: dict[int, str] = {}
    threads: dict[tuple[int, int], str] = {}
    for event in events:
        if event["ph"] == "M" and event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        if event["ph"] == "M" and event["name"] == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
    if len(set(processes.values())) != len(processes):
        raise ValueError("two processes have one name")
    result = {name: Process({}, defaultdict(list)) for name in processes.values()}
    for (pid, tid), name in threads.items():
        own = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, tid)]
        if name in result[processes[pid]].threads:
            raise ValueError(f"two threads are called {name!r}")
        result[processes[pid]].threads[name] = nested(own)
    for event in events:
        if event["ph"] == "X" and (event["pid"], event["tid"]) not in threads:
            raise ValueError(f"a slice on a thread without a name: {event}")
        if event["ph"] == "C":
            (value,) = event["args"].values()
            result[processes[event["pid"]]].counters[event["name"]].append((event["ts"], value))
    for process in result.values():
        for levels in process.counters.values():
            if levels != sorted(levels, key=lambda level: level[0]):
                raise ValueError("a counter goes back in time")
    return result


def nested(events: list[dict[str, Any]]) -> list[Slice]:
    """The slices of a thread in order; ValueError where two overlap and neither holds the other."""
    slices: list[Slice] = []
    open_ends: list[float] = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        start, end = event["ts"], event["ts"] + event["dur"]
        while open_ends and open_ends[-1] <= start + 1e-5:
            open_ends.pop()
        if open_ends and end > open_ends[-1] + 1e-5:
            raise ValueError(f"{event['name']!r} at {start} ends after what it lies in")
        slices.append(
            Slice(
                event["name"], event["cat"], start, event["dur"], event.get("args", {}),
                len(open_ends),
            )
        )  # fmt: skip
        open_ends.append(end)
    return slices
