"""Where a command prints: results on standard output, messages and progress on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

Say = Callable[[str], None]
"""Called with what is being done now."""

_NO_TERMINAL_WIDTH = 118


def output() -> Console:
    """Standard output; where it is no terminal, wide enough for tables."""
    return _console(stderr=False)


def messages() -> Console:
    """Standard error."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(stderr=stderr, width=_NO_TERMINAL_WIDTH)
    return console


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[Say]:
    """A spinner with the seconds so far; nothing where standard error is no terminal."""
    console = messages()
    if not _is_live(console):
        yield silent
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), Elapsed())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda now: progress.update(task, description=now)


@contextlib.contextmanager
def counting(total: int) -> Iterator[Say]:
    """A bar over `total` steps, one further with every call but the first."""
    console = messages()
    if not _is_live(console):
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


def _is_live(console: Console) -> bool:
    return sys.stderr.isatty() and console.is_terminal


def silent(now: str) -> None:
    """Shows nothing."""


@contextlib.contextmanager
def nothing_printed() -> Iterator[None]:
    """What is printed meanwhile, by this process or those it starts, goes to standard error."""
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            target = sys.__stderr__.fileno() if sys.__stderr__ is not None else None
            kept = os.dup(1) if target is not None else None
        except (OSError, ValueError):
            target = kept = None
        if target is not None and kept is not None:
            os.dup2(target, 1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
        yield
