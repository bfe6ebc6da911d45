"""The command line `autoplan`: one file for each command or family, a thin face of the library.

command.py turns a function into a command; `app.py` lists them. torch is imported where a command
needs it, so that `autoplan --help` answers at once.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line on this process's arguments; ends the process with its exit code."""
    try:
        from autoplan.cli.app import app

        app(prog_name="autoplan")
    except KeyboardInterrupt:
        sys.exit(130)
