"""A simulated step as text: one line per rank, time from left to right."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TypeAlias

from autoplan.errors import ConfigError
from autoplan.pipelining.events import Run, Timed
from autoplan.units import seconds

_LEAST_WIDTH = 32
_KINDS = {
    "forward": "F",
    "backward": "B",
    "backward_input": "B",
    "backward_weight": "W",
}
"""Marks where single events are too short to be told apart."""
_NUMBERS = {"F": "0123456789", "B": "abcdefghij", "W": "ABCDEFGHIJ"}
"""Marks of microbatches elsewhere, by their last digit."""

_Span: TypeAlias = tuple[float, float, str]
"""Start and end in seconds, and a mark."""


def gantt(run: Run, width: int = 72) -> str:
    """The chart of `run`, at most `width` characters wide: header, time scale, ranks, legend.

    Where events fill a column on average, a column shows what its rank does at the column's middle,
    and microbatches are numbered; where all times are multiples of the shortest one, columns divide
    it, so that equal events look equal. Shorter events share a column: it shows the kind of work
    that takes 3/4 of what the rank works there, or "*" for several, and is idle if half of it is.
    Raises ConfigError for a width below 32.
    """
    if width < _LEAST_WIDTH:
        raise ConfigError(f"a Gantt chart needs a width of at least {_LEAST_WIDTH}, got {width}.")
    labels = [f"rank {rank}" for rank in range(run.num_ranks)]
    margin = max(map(len, labels), default=0) + 2
    step_s = _step_s(run, width - margin)
    columns = math.ceil(run.makespan_s / step_s - 1e-6) if step_s else 0
    numbered = _mean_s(run) >= step_s
    draw = _at_middles if numbered else _by_kind
    rows = [draw(_spans(run, rank, numbered), step_s, columns) for rank in range(run.num_ranks)]
    lines = [
        *textwrap.wrap(_header(run, step_s), width),
        " " * margin + _scale(step_s, columns),
        *(f"{label:<{margin}}{row}" for label, row in zip(labels, rows, strict=True)),
        *textwrap.wrap(_legend(run, "".join(rows), numbered), width),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _header(run: Run, step_s: float) -> str:
    counts = [
        f"{count} {noun if count == 1 else several}"
        for count, noun, several in (
            (run.num_ranks, "rank", "ranks"),
            (run.num_stages, "stage", "stages"),
            (run.num_microbatches, "microbatch", "microbatches"),
        )
    ]
    return (
        f"{', '.join(counts)}: {seconds(run.makespan_s)}, {run.bubble_fraction:.0%} idle, "
        f"{seconds(step_s)} a column"
    )


def _step_s(run: Run, available: int) -> float:
    """Seconds of a column."""
    shortest = min((_length_s(timed) for timed in run if _length_s(timed) > 0), default=0.0)
    if shortest:
        moments = [m / shortest for timed in run for m in (timed.start_s, timed.end_s)]
        moments += [end / shortest for end in run.ends_s]
        per_event = int(available / (run.makespan_s / shortest) + 1e-9)
        if per_event and all(abs(m - round(m)) < 1e-6 for m in moments):
            return shortest / per_event
    return run.makespan_s / available


def _mean_s(run: Run) -> float:
    lengths = [_length_s(timed) for timed in run]
    return sum(lengths) / len(lengths) if lengths else 0.0


def _length_s(timed: Timed) -> float:
    return timed.end_s - timed.start_s


def _scale(step_s: float, columns: int) -> str:
    """Times over the columns at which they are, the last one at the right edge."""
    end = seconds(columns * step_s)
    every = max(12, -(-columns // 4))
    text = ""
    for column in range(0, columns, every):
        label = seconds(column * step_s)
        if column + len(label) + 2 <= columns - len(end):
            text = f"{text:<{column}}{label}"
    return f"{text:<{max(0, columns - len(end))}}{end}"


def _spans(run: Run, rank: int, numbered: bool) -> list[_Span]:
    """All that a rank does, in order."""
    end = run.ends_s[rank]
    return [
        (0.0, run.before_s[rank], "<"),
        *((timed.start_s, timed.end_s, _mark(timed, numbered)) for timed in run.events[rank]),
        (end - run.after_s[rank], end, ">"),
    ]


def _mark(timed: Timed, numbered: bool) -> str:
    kind = _KINDS[timed.event.kind]
    return _NUMBERS[kind][timed.event.microbatch % 10] if numbered else kind


def _at_middles(spans: Sequence[_Span], step_s: float, columns: int) -> str:
    text = ""
    at = 0
    for column in range(columns):
        middle = (column + 0.5) * step_s
        while at < len(spans) and spans[at][1] <= middle:
            at += 1
        text += spans[at][2] if at < len(spans) and spans[at][0] <= middle else "."
    return text


def _by_kind(spans: Sequence[_Span], step_s: float, columns: int) -> str:
    spent: list[dict[str, float]] = [{} for _ in range(columns)]
    for start_s, end_s, mark in spans:
        for column in range(int(start_s / step_s), columns):
            left_s, right_s = column * step_s, (column + 1) * step_s
            if end_s <= left_s:
                break
            within_s = max(0.0, min(right_s, end_s) - max(left_s, start_s))
            spent[column][mark] = spent[column].get(mark, 0.0) + within_s
    return "".join(_most(kinds, step_s) for kinds in spent)


def _most(kinds: dict[str, float], step_s: float) -> str:
    work = sum(kinds.values())
    if work < step_s / 2:
        return "."
    mark = max(kinds, key=lambda kind: kinds[kind])
    return mark if kinds[mark] >= 0.75 * work else "*"


def _legend(run: Run, drawn: str, numbered: bool) -> str:
    """What the marks mean, of those that this step can have."""
    names, note = {kind: kind for kind in _NUMBERS}, ""
    if numbered:
        last = min(run.num_microbatches, 10) - 1
        names = {
            kind: marks[0] if last < 1 else f"{marks[0]}-{marks[last]}"
            for kind, marks in _NUMBERS.items()
        }
        note = " (last digit of the microbatch)" if run.num_microbatches > 10 else ""
    kinds = {timed.event.kind for timed in run}
    parts = [f"{names['F']} forward{note}"]
    if kinds & {"backward", "backward_input"}:
        parts.append(f"{names['B']} backward")
    if "backward_weight" in kinds:
        parts.append(f"{names['W']} its weight half")
    parts += [text for text in ("* several", "< before", "> after", ". idle") if text[0] in drawn]
    return ", ".join(parts)
