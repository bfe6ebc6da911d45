"""Where a command prints: results on standard output, messages on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console

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
