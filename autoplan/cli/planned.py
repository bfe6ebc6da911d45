"""Planning with progress, and what is written of a plan."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.cli.arguments import FileOptions, ModelOptions, RequestOptions
from autoplan.cli.models import Built, build
from autoplan.cli.request import make, options_of
from autoplan.progress import waiting

if TYPE_CHECKING:
    from autoplan.plan import Plan


def built_for(
    model: str, model_options: ModelOptions, request: RequestOptions, values: bool = False
) -> tuple[Built, dict[str, Any]]:
    """The model, and the options of `autoplan.plan`, which are checked first."""
    with waiting("loading autoplan") as say:
        options = options_of(request)
        say(f"building {model}")
        training = options.get("training", True)
        return build(model, model_options, training, values), options


def planned(built: Built, options: Mapping[str, Any], doing: str = "planning") -> Plan:
    """`autoplan.plan` with progress: a search shows its own table, the rest a spinner."""
    import autoplan

    shows_itself = make(options).space is not None
    with contextlib.nullcontext() if shows_itself else waiting(doing):
        return autoplan.plan(built.model, built.args, built.kwargs, config=options)


def plan_of_file(path: Path, model: str | None, model_options: ModelOptions) -> Plan:
    """The plan of a file: alone, or loaded on its model, which it then knows."""
    with waiting("loading autoplan") as say:
        import autoplan

        given = autoplan.load_plan(path)
        if model is None:
            if model_options != ModelOptions():
                raise autoplan.ConfigError("options of a model go with --model.")
            return given
        say(f"building {model}")
        built = build(model, model_options, given.training)
        say("loading the plan on the model")
        return autoplan.parallelize(built.model, built.args, built.kwargs, plan=given).plan


def check_files(files: FileOptions) -> None:
    """Raise ConfigError for a file that cannot be written, before there is anything to write."""
    from autoplan.errors import ConfigError

    for option in ("save", "html", "trace", "program"):
        path: Path | None = getattr(files, option)
        if path is None:
            continue
        said, is_folder = f"--{option} {str(path)!r}", option == "program"
        if not path.parent.is_dir():
            raise ConfigError(
                f"{said} cannot be written: {str(path.parent)!r} is no folder; make it first."
            )
        if path.exists() and path.is_dir() != is_folder:
            kinds = ("a file", "a folder") if is_folder else ("a folder", "a file in it")
            raise ConfigError(f"{said} is {kinds[0]}; name {kinds[1]}.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"{said} may not be written; name another place.")


def write_files(plan: Plan, files: FileOptions) -> dict[str, str]:
    """Write what was asked for; the path of each, by kind."""
    written: dict[str, str] = {}
    wanted = {
        "plan": (files.save, plan.save),
        "html": (files.html, getattr(plan, "save_html", None)),
        "trace": (files.trace, getattr(plan, "save_trace", None)),
        "program": (files.program, getattr(plan, "save_program", None)),
    }
    for kind, (path, save) in wanted.items():
        if path is None:
            continue
        if save is None:
            from autoplan.errors import ConfigError

            raise ConfigError(f"this version of autoplan writes no {kind}; leave --{kind} out.")
        with waiting(f"writing {path}"):
            save(path)
        written[kind] = str(path)
    return written
