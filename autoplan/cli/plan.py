"""`autoplan plan`: find the fastest plan of a model, print its report, and write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from autoplan.cli.arguments import (
    FileOptions,
    Model,
    ModelCommand,
    ModelOptions,
    RequestOptions,
)
from autoplan.cli.command import Result, described
from autoplan.cli.documents import plan_document
from autoplan.cli.planned import built_for, check_files, planned, write_files

if TYPE_CHECKING:
    from autoplan.plan import Plan


@described(
    (
        "autoplan plan hf:gpt2 --devices 8 --cluster h100",
        "autoplan plan model.py:build --devices 4 --memory 40GB --save plan.toml",
        "autoplan plan model.py:build --config plan.toml parallel.tensor.size=4 memory=40GB",
        "autoplan plan hf:llama -d 16 -c h100 --set num_hidden_layers=8 --tokens 2048",
        "autoplan plan hf:gpt2 -d 4 --hint 'lm_head.weight=S(0)' --html plan.html",
    ),
    "0 a plan; 1 there is none",
    ModelCommand,
)
def plan(model: Model, built: ModelOptions, asked: RequestOptions, files: FileOptions) -> Result:
    """Plan a model for a number of devices: its layouts, its collectives, and the proof.

    No device and no weights are needed. The model is a function of a Python file that returns it
    (with example arguments, or beside a function example_inputs), or a type of transformers.
    """
    check_files(files)
    made, options = built_for(model, built, asked)
    return shown("plan", planned(made, options), files)


def shown(command: str, plan: Plan, files: FileOptions) -> Result:
    """A plan's report or document, with what was written of it."""
    written = write_files(plan, files)

    def show(console: Console) -> None:
        print_report(console, plan.report())
        for path in written.values():
            console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)

    return Result({"command": command, **plan_document(plan, written)}, show)


def print_report(console: Console, text: str) -> None:
    """A report as it is, whatever the width; numbers in colours on a terminal."""
    console.print(text.rstrip("\n"), markup=False, highlight=console.is_terminal, soft_wrap=True)
