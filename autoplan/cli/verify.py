"""`autoplan verify`: the emitted program against the original, on simulated ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console

from autoplan.cli.arguments import Model, ModelCommand, ModelOptions, RequestOptions
from autoplan.cli.command import DONE, NO, Result, described
from autoplan.cli.models import build
from autoplan.cli.planned import planned
from autoplan.cli.request import options_of
from autoplan.progress import waiting

if TYPE_CHECKING:
    from autoplan.verify import Check

_Plan = Annotated[
    Path | None,
    typer.Option("--plan", "-p", help="The plan file to verify. [default: plan anew]"),
]
_Steps = Annotated[int, typer.Option(min=0, help="Compare the weights after so many steps.")]
_Precision = Annotated[str, typer.Option(help="float64, or model: the model's own types.")]
_Tolerance = Annotated[
    float | None,
    typer.Option(help="Largest relative difference. [default: 1e-9 in float64]"),
]


@described(
    (
        "autoplan verify model.py:build --plan plan.toml",
        "autoplan verify hf:gpt2 --plan plan.toml --set n_layer=2 n_embd=64 --steps 3",
        "autoplan verify model.py:build --devices 4 --cluster cpu",
    ),
    "0 equal; 1 different, or no plan",
    ModelCommand,
)
def verify(
    model: Model,
    asked: RequestOptions,
    built: ModelOptions,
    plan: _Plan = None,
    steps: _Steps = 0,
    precision: _Precision = "float64",
    tolerance: _Tolerance = None,
) -> Result:
    """Run a model and its planned program, all ranks simulated here, and compare.

    Outputs, every gradient and buffer, and with --steps the weights after an optimizer's steps, in
    float64. Where they differ, the first node that does is named.
    """
    with waiting("loading autoplan") as say:
        import autoplan

        given = None if plan is None else autoplan.load_plan(plan)
        if given is not None and asked != RequestOptions():
            raise autoplan.ConfigError(
                f"--plan {str(plan)!r} is made; options of planning go without --plan."
            )
        options = options_of(asked) if given is None else {}
        training = options.get("training", True) if given is None else given.training
        if precision not in ("float64", "model"):
            raise autoplan.ConfigError(f"--precision is float64 or model, got {precision!r}.")
        say(f"building {model}")
        made = build(model, built, training, values=True)
    chosen = planned(made, options) if given is None else given
    with waiting("loading the plan on the model") as say:
        module = autoplan.parallelize(made.model, made.args, made.kwargs, plan=chosen)
        say(f"comparing on {module.plan.mesh.num_devices} simulated ranks")
        check = module.verify(
            made.args,
            made.kwargs,
            tolerance=tolerance,
            precision=cast(Literal["float64", "model"], precision),
            steps=steps,
        )

    def show(console: Console) -> None:
        console.print(f"{module.plan.model} on {module.plan.mesh}", markup=False, highlight=False)
        for line in str(check).split("; "):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        for note in module.plan.notes:
            console.print(f"  note: {note}", markup=False, highlight=False, soft_wrap=True)

    return Result(_document(check, module.plan.mesh), show, DONE if check.ok else NO)


def _document(check: Check, mesh: Any) -> dict[str, Any]:
    """The check as plain data; numbers that are not finite as texts."""
    errors = {
        "outputs": {str(key): each for key, each in check.output_errors.items()},
        "gradients": check.gradient_errors,
        "arguments": {str(key): each for key, each in check.argument_errors.items()},
        "buffers": check.buffer_errors,
        "weights": check.weight_errors,
    }
    first = check.first_difference
    return {
        "command": "verify",
        "equal": check.ok,
        "devices": mesh.num_devices,
        "mesh": dict(zip(mesh.axes, mesh.sizes, strict=True)),
        "precision": check.precision,
        "tolerance": check.tolerance,
        "steps": check.steps,
        "errors": {
            kind: {key: _plain(error) for key, error in held.items()}
            for kind, held in errors.items()
        },
        "first_difference": None if first is None else str(first),
        "not_finite": check.not_finite,
    }


def _plain(error: float) -> float | str:
    return error if -1e300 < error < 1e300 else str(error)
