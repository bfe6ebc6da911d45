"""What is being done now, on standard error; nothing where that is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

Say = Callable[[str], None]
"""Called with what is being done now."""


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[Say]:
    """A spinner with the seconds so far."""
    console = terminal()
    if not is_live(console):
        yield silent
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), Elapsed())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda now: progress.update(task, description=now)


@contextlib.contextmanager
def counting(total: int) -> Iterator[Say]:
    """A bar over `total` steps, one further with every call but the first."""
    console = terminal()
    if not is_live(console):
        yield silent
        return
    columns = (BarColumn(), MofNCompleteColumn(), Elapsed(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        begun = False

        def say(now: str) -> None:
            nonlocal begun
            progress.update(task, description=now, advance=1 if begun else 0)
            begun = True

        yield say


def terminal() -> Console:
    """Standard error as it is now: capturing a model puts another in its place for a while."""
    return Console(file=sys.stderr)


def is_live(console: Console) -> bool:
    """Whether a console on standard error can be drawn on again."""
    return sys.stderr.isatty() and console.is_terminal


def silent(now: str) -> None:
    """Shows nothing."""
