"""The options that several commands share, and how `--set a=1 b=2` is read.

Each dataclass is a group of options: a command that takes one has all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)
_MODEL, _REQUEST, _FILES = "Model", "What to plan for", "Files to write"


class ModelCommand(TyperCommand):
    """Reads every `name=value` that follows `--set` as one more of it, up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _spread_sets(args))


def _spread_sets(args: list[str]) -> list[str]:
    spread: list[str] = []
    setting = False
    for at, each in enumerate(args):
        if each == "--":
            return [*spread, *args[at:]]
        follows = at > 0 and args[at - 1] == "--set"
        setting = follows or (setting and _ASSIGNMENT.fullmatch(each) is not None)
        if setting and not follows:
            spread.append("--set")
        spread.append(each)
    return spread


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="path.py:function that builds the model, or hf:TYPE such as hf:gpt2.",
        show_default=False,
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model of a plan file: path.py:function or hf:TYPE.",
        rich_help_panel=_MODEL,
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """How a model and its example arguments are built."""

    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE...",
            help="Arguments of the function, or sizes of an hf: config; up to the next option.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of the batch (hf: 8).", rich_help_panel=_MODEL),
    ] = None
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a sequence (hf: 128).", rich_help_panel=_MODEL),
    ] = None
    arg: Annotated[
        list[str] | None,
        typer.Option(
            "--arg",
            metavar="[NAME=]TYPE[SHAPE]",
            help="An example argument where the file has none: 'float32[8,16]', 'y=int64[8]'.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Type of the weights, such as bfloat16.", rich_help_panel=_MODEL
        ),
    ] = None
    meta: Annotated[
        bool,
        typer.Option(
            "--meta", help="Build without weights (hf: models always are).", rich_help_panel=_MODEL
        ),
    ] = False


@dataclass(frozen=True)
class RequestOptions:
    """What is planned for: options of `autoplan.plan`. None is left out."""

    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Options as a config file has them: parallel.tensor.size=4 memory=40GB.",
            show_default=False,
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            help="A .toml or .yaml file of options; KEY=VALUE replace what it says.",
            rich_help_panel=_REQUEST,
        ),
    ] = None
    devices: Annotated[
        int | None,
        typer.Option("--devices", "-d", help="How many devices.", rich_help_panel=_REQUEST),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            "-c",
            metavar="NAME|FILE",
            help="Hardware: h100, a100, cpu, ... or a .toml file. [default: this machine's]",
            rich_help_panel=_REQUEST,
        ),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(help="Limit a device, such as 40GB.", rich_help_panel=_REQUEST),
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="Force a scheme: ddp, fsdp, hsdp, zero1, zero2, zero3, megatron, megatron-sp, "
            "2d, 2.5d, 3d, ulysses, ring, expert.",
            rich_help_panel=_REQUEST,
        ),
    ] = None
    hint: Annotated[
        list[str] | None,
        typer.Option(
            "--hint",
            metavar="GLOB=LAYOUT",
            help="Pin what matches: 'lm_head.weight=S(0)', 'h.*.mlp.c_fc=tensor=S(2)'. Repeats.",
            rich_help_panel=_REQUEST,
        ),
    ] = None
    microbatches: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Parts of the batch.", rich_help_panel=_REQUEST),
    ] = None
    recompute: Annotated[
        list[str] | None,
        typer.Option(
            "--recompute",
            metavar="auto|all|none|PATH",
            help="Blocks that backward computes again; paths repeat.",
            rich_help_panel=_REQUEST,
        ),
    ] = None
    optimizer: Annotated[
        str | None,
        typer.Option(help="adamw, adam, sgd, momentum or none.", rich_help_panel=_REQUEST),
    ] = None
    inference: Annotated[
        bool, typer.Option("--inference", help="No backward.", rich_help_panel=_REQUEST)
    ] = False
    time_limit: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Of the search.", rich_help_panel=_REQUEST),
    ] = None
    gap: Annotated[
        float | None,
        typer.Option(help="How near to the optimum is enough.", rich_help_panel=_REQUEST),
    ] = None


@dataclass(frozen=True)
class FileOptions:
    """What is written of a plan."""

    save: Annotated[
        Path | None,
        typer.Option("--save", "-o", help="The plan as text.", rich_help_panel=_FILES),
    ] = None
    html: Annotated[
        Path | None, typer.Option(help="The plan as a page to look at.", rich_help_panel=_FILES)
    ] = None
    trace: Annotated[
        Path | None,
        typer.Option(
            help="The predicted step for a trace viewer, as JSON.", rich_help_panel=_FILES
        ),
    ] = None
    program: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The emitted program as a folder.", rich_help_panel=_FILES
        ),
    ] = None
