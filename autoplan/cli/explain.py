"""`autoplan explain`: why something lies as it does, what it moves, and what else would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoplan.cli.arguments import ModelCommand, ModelOptions, OptionalModel, RequestOptions
from autoplan.cli.command import Result, described
from autoplan.cli.models import is_model
from autoplan.cli.plan import print_report
from autoplan.cli.planned import built_for, plan_of_file, planned
from autoplan.progress import waiting

if TYPE_CHECKING:
    from autoplan.plan import Plan

_Subject = Annotated[
    str,
    typer.Argument(
        metavar="PLAN|MODEL", help="A plan file, or a model to plan.", show_default=False
    ),
]
_Path = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="Of a module, a parameter, an argument, or the key of an op.",
        show_default=False,
    ),
]


@described(
    (
        "autoplan explain plan.toml transformer.h.0.mlp.c_fc",
        "autoplan explain plan.toml transformer.h.0.mlp.c_fc --model hf:gpt2",
        "autoplan explain hf:gpt2 lm_head.weight --devices 4 --set n_layer=2",
    ),
    "0 explained",
    ModelCommand,
)
def explain(
    subject: _Subject,
    path: _Path,
    asked: RequestOptions,
    built: ModelOptions,
    model: OptionalModel = None,
) -> Result:
    """Explain what was chosen at a path, what it moves, and the next best.

    Of a plan file alone it is what the plan says; with --model, or of a model that is planned
    here, other choices are solved for, so that their step times are those of whole plans.
    """
    found = _plan_of(subject, model, built, asked)
    with waiting(f"solving for what else {path} could be"):
        text = found.explain(path)
    document = {
        "command": "explain",
        "path": path,
        "step_time_s": found.step_time_s,
        "solved_again": model is not None or is_model(subject),
        "text": text,
    }
    return Result(document, lambda console: print_report(console, text))


def _plan_of(subject: str, model: str | None, built: ModelOptions, asked: RequestOptions) -> Plan:
    """The plan of a file, of a file on its model, or of a model."""
    if is_model(subject):
        if model is not None:
            raise _twice(subject, model)
        return planned(*built_for(subject, built, asked))
    if asked != RequestOptions():
        from autoplan.errors import ConfigError

        raise ConfigError(
            f"{subject!r} is a plan that is made; options of planning go with a model."
        )
    return plan_of_file(Path(subject), model, built)


def _twice(subject: str, model: str) -> Exception:
    from autoplan.errors import ConfigError

    return ConfigError(
        f"{subject!r} is a model, and --model {model!r} names another; give a plan file, or leave "
        "--model out."
    )
