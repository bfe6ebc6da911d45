"""`autoplan show` and `autoplan diff`: saved plans, read without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoplan.cli.arguments import FileOptions, ModelCommand, ModelOptions, OptionalModel
from autoplan.cli.command import DONE, NO, Result, described
from autoplan.cli.documents import summary
from autoplan.cli.plan import shown
from autoplan.cli.planned import check_files, plan_of_file
from autoplan.progress import waiting

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.", show_default=False)]


@described(
    (
        "autoplan show plan.toml",
        "autoplan show plan.toml --json | python -m json.tool | less",
        "autoplan show plan.toml --model model.py:build --html plan.html",
    ),
    "0 shown",
    ModelCommand,
)
def show(
    plan: PlanFile, files: FileOptions, built: ModelOptions, model: OptionalModel = None
) -> Result:
    """Print the report of a saved plan.

    With --model the plan is loaded on its model: the report says what no longer fits, and pages
    and traces show what a file alone does not know.
    """
    check_files(files)
    found = plan_of_file(plan, model, built)
    for what, path in (("trace", files.trace), ("program", files.program)):
        if path is not None and model is None:
            from autoplan.errors import ConfigError

            raise ConfigError(f"--{what} is made of a plan on its model; add --model MODEL.")
    return shown("show", found, files)


@described(
    (
        "autoplan diff before.toml after.toml",
        "autoplan diff before.toml after.toml --json",
    ),
    "0 no difference; 1 the plans differ",
)
def diff(one: PlanFile, other: PlanFile) -> Result:
    """Compare two saved plans by meaning: what was asked, decided and predicted.

    Decisions of repeated blocks are one line, first plan -> second plan; spelling is no difference.
    """
    with waiting("reading"):
        from autoplan.plan import load_plan

        first, second = load_plan(one), load_plan(other)
        text = first.diff(second)
    same = text == "no difference"
    lines = [] if same else text.splitlines()
    document = {
        "command": "diff",
        "equal": same,
        "differences": lines,
        "first": summary(first),
        "second": summary(second),
    }

    def print_lines(console: Console) -> None:
        console.print(text, markup=False, highlight=console.is_terminal, soft_wrap=True)

    return Result(document, print_lines, DONE if same else NO)
