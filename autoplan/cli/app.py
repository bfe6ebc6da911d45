"""The application: every command by name, `--version`, and errors of usage."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autoplan.cli.command import USAGE, add, fail
from autoplan.cli.compare import compare
from autoplan.cli.demo import demo
from autoplan.cli.doctor import doctor
from autoplan.cli.explain import explain
from autoplan.cli.plan import plan
from autoplan.cli.run import run
from autoplan.cli.saved import diff, show
from autoplan.cli.verify import verify

EPILOG = "\n\n".join(
    (
        "Examples:",
        "  autoplan demo",
        "  autoplan plan hf:gpt2 --devices 8 --cluster h100 --save plan.toml",
        "  autoplan show plan.toml",
        "Exit codes: 0 done; 1 the answer is no (no plan exists, plans differ, not equal, "
        "something is missing); 2 something that was written has to be corrected; 3 an error that "
        "nobody foresaw; 130 stopped by Ctrl-C. run ends with its script's own code.",
    )
)


class Commands(TyperGroup):
    """The group of all commands: what typer refuses is one message, and the exit code 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            message = _usage_message(error)
            if message:  # without any argument, typer has printed the help instead
                fail(message, USAGE, "UsageError", as_json="--json" in given)
            code = USAGE
        if not standalone_mode:
            return code
        sys.exit(code)


def _usage_message(error: Any) -> str:
    """What typer says, with the command that it is about."""
    said = error.format_message().strip()
    context = getattr(error, "ctx", None)
    if not said or context is None:
        return str(said)
    ended = said if said.endswith((".", "?", ")")) else f"{said}."
    return f"{ended} See {context.command_path} --help."


app = typer.Typer(
    cls=Commands,
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from autoplan import __version__

        print(f"autoplan {__version__}")
        raise typer.Exit(0)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Decide how a PyTorch model runs on many devices, prove the decision, and run it."""


COMMANDS = (plan, show, explain, diff, verify, compare, run, demo, doctor)
for _command in COMMANDS:
    add(app, _command)
