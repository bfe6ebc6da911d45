"""A command: a function of options that returns a result; errors become messages and exit codes.

A command's function takes plain parameters and dataclasses of options, whose fields become
parameters of the command. It prints nothing on standard output: its `Result` is printed as text,
or with `--json` as one JSON document. Progress and messages go to standard error.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperCommand

from autoplan.cli.console import messages, nothing_printed, output

DONE, NO, USAGE, UNFORESEEN, STOPPED = 0, 1, 2, 3, 130
"""Exit codes: done; the answer is no; to be corrected; a defect; stopped by Ctrl-C."""

_NO = {"InfeasibleError", "HintError", "CaptureError", "VerificationError"}
"""Errors that say that there is no plan; the others say what to write instead."""

_WRITTEN = {"HintTextError"}
"""Of these, what is written wrongly all the same."""


@dataclass(frozen=True)
class Result:
    """What a command found. `document` is plain data, `show` prints the same for people."""

    document: Mapping[str, Any]
    show: Callable[[Console], None]
    code: int = DONE


@dataclass(frozen=True)
class Described:
    """A command's function with the examples of its help."""

    function: Callable[..., Result]
    examples: Sequence[str]
    exit_codes: str
    parser: type[TyperCommand]
    settings: Mapping[str, Any]


def described(
    examples: Sequence[str],
    exit_codes: str,
    parser: type[TyperCommand] = TyperCommand,
    settings: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Result]], Described]:
    """Mark a function as a command, whose arguments `parser` reads; `exit_codes` are in words."""

    def describe(function: Callable[..., Result]) -> Described:
        return Described(function, examples, exit_codes, parser, settings or {})

    return describe


def add(app: typer.Typer, command: Described) -> None:
    """Add a command to the application, with `--json` and `--debug`."""
    lines = ["Examples:", *(f"  {each}" for each in command.examples)]
    lines.append(f"Exit codes: {command.exit_codes}; 2 to be corrected.")
    name = command.function.__name__
    app.command(
        name,
        cls=command.parser,
        help=_joined(inspect.getdoc(command.function) or ""),
        epilog="\n\n".join(line.replace("[", r"\[") for line in lines),
        context_settings=dict(command.settings),
    )(_runner(command.function))


def _joined(text: str) -> str:
    """Paragraphs without their line breaks, which help would keep."""
    return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


_JSON = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")
]
_DEBUG = Annotated[bool, typer.Option("--debug", help="Show where in the code an error arose.")]


def _runner(function: Callable[..., Result]) -> Callable[..., None]:
    """The function as typer wants it: one parameter for each option."""
    groups = dict(_groups(function))

    def run(**given: Any) -> None:
        as_json, debug = given.pop("json_"), given.pop("debug")
        arguments = {
            name: kind(**{f.name: given.pop(f.name) for f in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        raise typer.Exit(_printed(lambda: function(**given, **arguments), as_json, debug))

    parameters = list(_parameters(function, groups))
    for name, kind in (("json_", _JSON), ("debug", _DEBUG)):
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__name__ = function.__name__
    return run


def _groups(function: Callable[..., Result]) -> Iterator[tuple[str, type[Any]]]:
    """Parameters that are dataclasses of options."""
    for name, kind in get_type_hints(function).items():
        if name != "return" and dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield name, kind


def _parameters(
    function: Callable[..., Result], groups: Mapping[str, type[Any]]
) -> Iterator[inspect.Parameter]:
    """The function's own parameters, and the fields of its dataclasses in their place."""
    hints = get_type_hints(function, include_extras=True)
    for each in inspect.signature(function).parameters.values():
        if each.name not in groups:
            yield each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        kind = groups[each.name]
        fields = get_type_hints(kind, include_extras=True)
        for option in dataclasses.fields(kind):
            yield inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=fields[option.name],
            )


# -- results and errors ---------------------------------------------------------------------------


def _printed(function: Callable[[], Result], as_json: bool, debug: bool) -> int:
    """Run a command, print its result, and return the exit code."""
    try:
        if as_json:
            with nothing_printed():
                result = function()
        else:
            result = function()
    except (typer.Exit, typer.Abort):
        raise
    except BaseException as error:
        if debug:
            traceback.print_exc(file=sys.stderr)
        message, code = said_of(error)
        fail(message, code, _kind(error), as_json)
        return code
    try:
        if as_json:
            print(json.dumps(result.document, indent=2, allow_nan=False))
        else:
            result.show(output())
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the reader has seen enough: `autoplan show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return result.code


def fail(message: str, code: int, kind: str, as_json: bool) -> None:
    """Say an error on standard error, and as a document where one was asked for."""
    messages().print(f"autoplan: {message}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": message}, "exit_code": code}))


def _kind(error: BaseException) -> str:
    """The error's class, or the one of the library's public errors that it is."""
    family = type(error).__mro__
    named = [each.__name__ for each in family if each.__module__ == "autoplan.errors"]
    return named[0] if named else family[0].__name__


def said_of(error: BaseException) -> tuple[str, int]:
    """The message and the exit code of an error."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C.", STOPPED
    if isinstance(error, SystemExit):
        return f"the model's code ended the process with exit({error.code!r}).", USAGE
    kinds = {each.__name__ for each in type(error).__mro__}
    if "AutoplanError" in kinds:
        return str(error), NO if kinds & _NO and not kinds & _WRITTEN else USAGE
    if isinstance(error, OSError):
        where = f" {str(error.filename)!r}" if error.filename is not None else ""
        return f"cannot use{where}: {error.strerror or error}; check the path.", USAGE
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"
    return f"unforeseen, {said} (--debug shows where it arose).", UNFORESEEN
