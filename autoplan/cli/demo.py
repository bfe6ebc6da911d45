"""`autoplan demo`: plan, train on processes of this machine, and compare with one device."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from autoplan.cli.command import DONE, NO, Result, described
from autoplan.cli.console import messages
from autoplan.cli.documents import plan_document
from autoplan.cli.run import Launch, launch
from autoplan.progress import counting, waiting

_LARGEST_DIFFERENCE = 1e-3
"""Of a loss, after some tens of steps in float32."""

_Devices = Annotated[int, typer.Option("--devices", "-d", min=1, help="Processes to train on.")]
_Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
_Report = Annotated[bool, typer.Option("--report", help="Print the whole report of the plan.")]


@described(
    ("autoplan demo", "autoplan demo --devices 2 --steps 10 --report", "autoplan demo --json"),
    "0 the trainings agree; 1 they do not",
)
def demo(devices: _Devices = 4, steps: _Steps = 20, report: _Report = False) -> Result:
    """Plan a small transformer, train it on processes of this machine, and compare with one.

    Nothing is downloaded, and no GPU is needed. The losses of both trainings agree but for
    rounding in float32.
    """
    with waiting("loading autoplan"):
        import autoplan
        from autoplan.cli import demo_training

    with waiting(f"planning for {devices} devices"):
        model, batch = demo_training.build()
        plan = autoplan.plan(model, batch, devices=devices, parallel={"mesh": {"devices": devices}})
    _say(plan.report() if report else f"the plan: {plan.scheme} on {plan.mesh}")
    _say(f"training on {devices} processes")
    with tempfile.TemporaryDirectory() as folder:
        path, losses = Path(folder, "plan.toml"), Path(folder, "losses.json")
        plan.save(path)
        script = Path(demo_training.__file__)
        code = launch(Launch(devices), path, script, [str(steps), str(losses)])
        if code != DONE:
            raise autoplan.AutoplanError(f"the training on {devices} processes ended with {code}.")
        many: list[float] = json.loads(losses.read_text())
    _say("training the plain model on one device")
    with counting(steps) as say:
        one = demo_training.losses(None, steps, lambda step, loss: say(f"loss {loss:.6f}"))
    differences = [abs(a - b) for a, b in zip(many, one, strict=True)]
    equal = max(differences) <= _LARGEST_DIFFERENCE

    def show(console: Console) -> None:
        table = Table("step", f"loss, {devices} processes", "loss, one device", "difference",
                      box=None)  # fmt: skip
        for step, (a, b, difference) in enumerate(zip(many, one, differences, strict=True), 1):
            table.add_row(str(step), f"{a:.6f}", f"{b:.6f}", f"{difference:.1e}")
        console.print(table, markup=False, highlight=False)
        verdict = "the same training" if equal else "NOT the same training"
        console.print(
            f"{verdict}: the losses differ by {max(differences):.1e} at most (float32)",
            highlight=False,
        )

    document = {
        "command": "demo",
        "equal": equal,
        "losses": {"many": many, "one": one},
        "largest_difference": max(differences),
        "plan": plan_document(plan),
    }
    return Result(document, show, DONE if equal else NO)


def _say(text: str) -> None:
    messages().print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
