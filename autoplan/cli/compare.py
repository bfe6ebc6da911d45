"""`autoplan compare`: known schemes and the planner's own plan side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from autoplan.cli.arguments import Model, ModelCommand, ModelOptions, RequestOptions
from autoplan.cli.command import DONE, NO, Result, described
from autoplan.cli.documents import summary
from autoplan.cli.models import Built
from autoplan.cli.planned import built_for, planned
from autoplan.progress import counting, silent

if TYPE_CHECKING:
    from autoplan.plan import Plan

OWN = "search"
"""What the planner finds when nothing is forced."""

_USUAL = (
    *("ddp", "zero1", "zero2", "zero3", "fsdp", "hsdp", "megatron", "megatron-sp"),
    *("2d", "2.5d", "3d", "ulysses", "ring", "expert"),
)

_Presets = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="Compare these instead of all: presets by name, and search for the planner's own.",
    ),
]


@dataclass(frozen=True)
class _Row:
    name: str
    plan: Plan | None
    note: str = ""

    def document(self) -> dict[str, Any]:
        if self.plan is None:
            return {"name": self.name, "possible": False, "reason": self.note}
        return {"name": self.name, "possible": True, **summary(self.plan)}


@described(
    (
        "autoplan compare hf:gpt2 --devices 8 --cluster h100",
        "autoplan compare model.py:build -d 4 --memory 16GB --presets ddp,fsdp,megatron,search",
    ),
    "0 compared; 1 nothing has a plan",
    ModelCommand,
)
def compare(
    model: Model, asked: RequestOptions, built: ModelOptions, presets: _Presets = None
) -> Result:
    """Plan a model with each known scheme on all devices, and freely, and compare.

    Every scheme is the best of its kind: what it leaves open the planner chooses. One that cannot
    run here, or does not fit in memory, says why.
    """
    from autoplan.errors import ConfigError

    names = _names(presets)
    made, options = built_for(model, built, asked)
    for key in ("preset", "parallel"):
        if key in options:
            raise ConfigError(
                f"compare forces one scheme after the other, and {key} says another; leave it out."
            )
    # A search shows a table of its own, and two of them cannot share a terminal.
    quiet = options.get("microbatches") == "auto"
    found = {}
    with contextlib.nullcontext(silent) if quiet else counting(len(names)) as say:
        for name in names:
            if name != OWN:
                say(f"planning {name}")
                found[name] = _row(name, lambda forced: _plan(made, forced), options)
    if OWN in names:
        found[OWN] = _row(OWN, lambda free: planned(made, free), options)
    rows = [found[name] for name in names]
    best = min((r.plan.step_time_s for r in rows if r.plan is not None), default=None)
    document = {
        "command": "compare",
        "model": type(made.model).__name__,
        "devices": options["devices"],
        "rows": [row.document() for row in rows],
        "best": next((r.name for r in rows if r.plan and r.plan.step_time_s == best), None),
    }
    return Result(
        document, lambda console: _show(console, rows, best), NO if best is None else DONE
    )


def _names(presets: str | None) -> Sequence[str]:
    from autoplan.parallel import check_name
    from autoplan.strategies.presets import PRESETS

    if presets is None:
        return (*_USUAL, OWN)
    known = (OWN, *dict.fromkeys((*_USUAL, *(each for each in PRESETS if "-" not in each))))
    return [check_name(each.strip(), known, "the scheme") for each in presets.split(",") if each]


def _plan(made: Built, options: Mapping[str, Any]) -> Plan:
    import autoplan

    return autoplan.plan(made.model, made.args, made.kwargs, config=options)


def _row(name: str, plan: Callable[[Mapping[str, Any]], Plan], options: Mapping[str, Any]) -> _Row:
    from autoplan.errors import ConfigError, HintError, InfeasibleError

    forced = {} if name == OWN else {"preset": name}
    try:
        return _Row(name, plan({**options, **forced}))
    except (ConfigError, HintError, InfeasibleError) as error:
        return _Row(name, None, str(error))


def _show(console: Console, rows: Sequence[_Row], best: float | None) -> None:
    from autoplan.units import seconds, size

    table = Table(box=None, pad_edge=False)
    for column in ("scheme", "step time", "x best", "memory a device", "sent a step", "what it is"):
        right = column not in ("scheme", "what it is")
        table.add_column(column, justify="right" if right else "left", no_wrap=right)
    for row in rows:
        if row.plan is None:
            table.add_row(row.name, "-", "", "-", "-", row.note)
            continue
        found = summary(row.plan)
        ratio = row.plan.step_time_s / best if best else 1.0
        table.add_row(
            row.name,
            seconds(row.plan.step_time_s),
            f"{ratio:.2f}",
            size(row.plan.peak_memory_bytes),
            size(found["communication"]["bytes"]),
            f"{row.plan.mesh}: {row.plan.scheme}",
            style="bold" if ratio == 1.0 else None,
        )
    console.print(table, markup=False, highlight=False)
