"""The main job, end to end: plan GPT-2 for 4 devices, train it on 4 processes, compare with one.

python examples/demo.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

SCRIPT = Path(__file__).with_name("train_gpt2.py")
DEVICES, STEPS = 4, 20


def run(title: str, command: list[str], losses: Path) -> list[float]:
    """Run one training as a process of its own, its output shown, and read its losses."""
    Console().rule(title)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run(
        [*command, "--steps", str(STEPS), "--losses", str(losses)], check=True, env=environment
    )
    result: list[float] = json.loads(losses.read_text())
    return result


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        many = run(
            f"GPT-2 on {DEVICES} processes",
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(DEVICES)),
                *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(SCRIPT)),
            ],
            Path(folder, "many.json"),
        )
        one = run(
            "the plain model on one device",
            [sys.executable, str(SCRIPT), "--one-device"],
            Path(folder, "one.json"),
        )
    table = Table("step", f"loss, {DEVICES} processes", "loss, one device", "difference", box=None)
    differences = [abs(a - b) for a, b in zip(many, one, strict=True)]
    for step, (a, b, difference) in enumerate(zip(many, one, differences, strict=True), 1):
        table.add_row(str(step), f"{a:.6f}", f"{b:.6f}", f"{difference:.1e}")
    console = Console()
    console.rule("the same training")
    console.print(table)
    console.print(
        f"largest difference of the loss in {STEPS} steps: {max(differences):.2e} (float32)"
    )
    if max(differences) > 1e-3:
        sys.exit("the losses differ by more than rounding explains.")


if __name__ == "__main__":
    main()
