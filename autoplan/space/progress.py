"""Progress: a live table of the shapes that a search has seen, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autoplan.progress import is_live, terminal
from autoplan.space.tried import Tried
from autoplan.units import seconds

Show = Callable[[str, Sequence[Tried], float], None]
"""Called with what the search is doing, all shapes so far, and the bound of all."""

_ROWS = 12
_EVERY_S = 0.2


def silent(doing: str, tried: Sequence[Tried], bound: float) -> None:
    """Shows nothing."""


@contextmanager
def live_table(wanted: bool | None) -> Iterator[Show]:
    """A table that follows the search; None: where standard error is a terminal."""
    console = terminal()
    if wanted is False or (wanted is None and not is_live(console)):
        yield silent
        return
    started, last = time.perf_counter(), 0.0
    doing, table = "capturing the model", Table(box=None)

    def render() -> Group:
        took = f"{time.perf_counter() - started:.0f} s"
        stop = "; Ctrl-C takes the best so far" if table.columns else ""
        return Group(table, Text(f"{doing}, {took}{stop}"))

    with Live(console=console, transient=True, get_renderable=render) as live:

        def show(now: str, tried: Sequence[Tried], bound: float) -> None:
            nonlocal doing, table, last
            doing = now
            if tried and time.perf_counter() - last >= _EVERY_S:
                last, table = time.perf_counter(), table_of(tried, bound)

        live.refresh()  # from here on by its own thread, which Ctrl-C does not interrupt
        yield show


def table_of(tried: Sequence[Tried], bound: float) -> Table:
    """The best shapes first, solved ones before those that are only estimated."""
    best = min((each.step_time_s for each in tried if each.step_time_s is not None), default=None)
    table = Table("shape", "at least", "about", "step", "", box=None)
    for each in sorted(tried, key=Tried.rank)[:_ROWS]:
        table.add_row(
            str(each.shape),
            seconds(each.floor_s),
            "" if each.estimate_s is None else seconds(each.estimate_s),
            "" if each.step_time_s is None else seconds(each.step_time_s),
            each.status,
        )
    solved = sum(each.step_time_s is not None for each in tried)
    found = "none yet" if best is None else seconds(best)
    table.caption = f"{len(tried)} shapes, {solved} solved; best {found}, bound {seconds(bound)}"
    return table
