import math
from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.errors import ConfigError
from autoplan.pipelining.events import Run, Timed, Times, simulate
from autoplan.pipelining.gantt import gantt
from autoplan.pipelining.schedules import read_schedule


def run_of(name: str, p: int, m: int, unit_s: float = 1e-3, wrap_s: float = 0.0) -> Run:
    schedule = read_schedule(name)
    n = schedule.num_stages(p)
    times = Times(
        (unit_s,) * n, (2 * unit_s,) * n, before_s=(wrap_s,) * p, after_s=(2 * wrap_s,) * p
    )
    return simulate(schedule.orders(p, m), times)


def test_1f1b() -> None:
    assert gantt(run_of("1f1b", 4, 4, wrap_s=1e-3)) == (
        "4 ranks, 4 stages, 4 microbatches: 24 ms, 38% idle, 500 us a column\n"
        "        0 s         6 ms        12 ms       18 ms  24 ms\n"
        "rank 0  <<00112233............aaaa..bbbb..cccc..dddd>>>>\n"
        "rank 1  <<..001122........aaaa33bbbb..cccc..dddd>>>>....\n"
        "rank 2  <<....0011....aaaa22bbbb33cccc..dddd>>>>........\n"
        "rank 3  <<......00aaaa11bbbb22cccc33dddd>>>>............\n"
        "0-3 forward, a-d backward, < before, > after, . idle"
    )


def test_split_backward() -> None:
    assert gantt(run_of("zbv", 2, 4), width=40) == (
        "2 ranks, 4 stages, 4 microbatches: 25\n"
        "ms, 4% idle, 1 ms a column\n"
        "        0 s         12 ms   25 ms\n"
        "rank 0  0120aA1bB3aA2cCbB3dDcCdD.\n"
        "rank 1  .0011aA2aA2bB3bB3cCcddCDD\n"
        "0-3 forward, a-d backward, A-D its\n"
        "weight half, . idle"
    )


def test_many_microbatches_are_named_by_kind() -> None:
    assert gantt(run_of("1f1b", 4, 64, unit_s=1.0, wrap_s=10.0), width=48) == (
        "4 ranks, 4 stages, 64 microbatches: 231 s, 4%\n"
        "idle, 5.78 s a column\n"
        "        0 s         69.3 s      139 s      231 s\n"
        "rank 0  <*.********************************B*>>>\n"
        "rank 1  <<.B*******************************B>>>>\n"
        "rank 2  <<*********************************B>>>.\n"
        "rank 3  <<**********************************>>>.\n"
        "F forward, B backward, * several, < before, >\n"
        "after, . idle"
    )


def test_one_microbatch() -> None:
    assert gantt(run_of("naive", 2, 1), width=32) == (
        "2 ranks, 2 stages, 1 microbatch:\n"
        "6 ms, 50% idle, 250 us a column\n"
        "        0 s         3 ms    6 ms\n"
        "rank 0  0000............aaaaaaaa\n"
        "rank 1  ....0000aaaaaaaa........\n"
        "0 forward, a backward, . idle"
    )


def test_a_step_that_takes_no_time() -> None:
    text = gantt(simulate(read_schedule("gpipe").orders(2, 2), Times((0.0, 0.0), (0.0, 0.0))))
    assert text.splitlines()[0].startswith("2 ranks, 2 stages, 2 microbatches: 0 s, 0% idle")


MARKS = {"forward": "F", "backward": "B", "backward_input": "B", "backward_weight": "W"}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("gpipe", "1f1b", "interleaved", "zero-bubble", "zbv", "dualpipev")),
    st.integers(2, 12),
    st.integers(1, 3),
    st.floats(1e-6, 1e-1),
    st.floats(1e-6, 1e-1),
    st.integers(32, 160),
)
def test_marks_are_what_runs_there(
    name: str, p: int, rounds: int, forward_s: float, backward_s: float, width: int
) -> None:
    schedule = read_schedule(name)
    n, m = schedule.num_stages(p), 2 * p * rounds
    run = simulate(schedule.orders(p, m), Times((forward_s,) * n, (backward_s,) * n))
    lines = gantt(run, width).splitlines()
    assert all(len(line) <= width for line in lines)
    rows = [line.split()[2] for line in lines if line.startswith("rank ")]
    assert len(rows) == p
    columns = len(rows[0])
    step_s = run.makespan_s / columns
    assert {len(row) for row in rows} == {columns}
    if any(line.startswith("F forward") for line in lines):
        assert len(list(run)) * step_s > math.fsum(run.busy_s) * (1 - 1e-9)
        assert_kinds_are_most_of_their_columns(run, rows, step_s)
    else:
        assert_numbers_stand_at_the_middle_of_their_columns(run, rows, step_s)


def assert_numbers_stand_at_the_middle_of_their_columns(
    run: Run, rows: list[str], step_s: float
) -> None:
    seam_s = 1e-3 * step_s  # where two events meet at a middle, either may stand
    for row, events in zip(rows, run.events, strict=True):
        for column, mark in enumerate(row):
            middle = (column + 0.5) * step_s
            at = bisect_right(events, middle, key=lambda timed: timed.start_s) - 1
            near = [t for t in events[max(at, 0) : at + 2] if t.start_s <= middle + seam_s]
            marks = {number_of(timed) for timed in near if timed.end_s >= middle - seam_s}
            inside = any(t.start_s + seam_s < middle < t.end_s - seam_s for t in near)
            assert mark in (marks if inside else marks | {"."}), (row, column)


def number_of(timed: Timed) -> str:
    kind = MARKS[timed.event.kind]
    numbers = {"F": "0123456789", "B": "abcdefghij", "W": "ABCDEFGHIJ"}[kind]
    return numbers[timed.event.microbatch % 10]


def assert_kinds_are_most_of_their_columns(run: Run, rows: list[str], step_s: float) -> None:
    edges = np.arange(len(rows[0]) + 1) * step_s
    for row, events in zip(rows, run.events, strict=True):
        spent = {
            kind: sum(
                np.diff(np.clip(edges, timed.start_s, timed.end_s))
                for timed in events
                if MARKS[timed.event.kind] == kind
            )
            / step_s
            for kind in {MARKS[timed.event.kind] for timed in events}
        }
        work = sum(spent.values())
        for column, mark in enumerate(row):
            if mark == ".":
                assert work[column] <= 0.5 + 1e-6
                continue
            assert work[column] >= 0.5 - 1e-6
            most = max(spent, key=lambda kind: spent[kind][column])
            share = spent[most][column] / work[column]
            assert share <= 0.75 + 1e-6 if mark == "*" else share >= 0.75 - 1e-6
            assert mark in ("*", most)


def test_width_is_bounded_below() -> None:
    with pytest.raises(ConfigError, match="a width of at least 32, got 20"):
        gantt(run_of("1f1b", 2, 2), width=20)
