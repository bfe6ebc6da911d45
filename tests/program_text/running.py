"""Runs saved programs as scripts, a process for each rank, and reads what they found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import autoplan
from autoplan.layouts import Layout, local_ranges
from autoplan.plan import Plan
from tests.models import ideal_cluster
from tests.planner.models import Residual

_RANK = """\
import runpy, sys, types
package = types.ModuleType("autoplan")  # without its __init__, which imports the planner
package.__path__ = [{path!r}]
sys.modules["autoplan"] = package
runpy.run_path({file!r}, run_name="__main__")
print("modules", *(name for name in sys.modules if name.startswith("autoplan.")))
"""
PLANNER = (
    "annotate", "capture", "cost_models", "emit", "formulate", "module", "parallel", "plan",
    "planned", "planning", "pricing", "program_text", "search", "sites", "solver", "space",
    "strategies",
)  # fmt: skip
"""Modules of autoplan that a saved program does without."""


MEGATRON = {"layers.*.up.weight": "S(0)", "layers.*.down.weight": "S(1)"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "split by hand, uneven": (
        "residual, uneven",
        {"devices": 2, "microbatches": 2, "parallel": {"mesh": {"x": 2}}, "hints": MEGATRON},
    ),
    "zero3, recomputed": (
        "residual",
        {"devices": 2, "preset": "zero3", "microbatches": 2, "recompute": ["layers.0"]},
    ),
    "1f1b, data": (
        "residual",
        {"devices": 4, "microbatches": 2, "parallel": {"pipeline": 2, "data": 2}},
    ),
    "interleaved, tied, recomputed": (
        "tied",
        {
            "devices": 2,
            "microbatches": 4,
            "parallel": {"pipeline": {"size": 2, "chunks": 2}},
            "recompute": ["blocks.layers.1"],
        },
    ),
}


class Tied(nn.Module):
    """Blocks between an embedding and a head that is the same weight, and a loss."""

    def __init__(self, words: int = 10, width: int = 8, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = Residual(blocks, width)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks.layers:
            x = block(x)
        logits = x @ self.embed.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def model_of(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    if name == "tied":
        return Tied().double(), tuple(torch.randint(0, 10, (2, 8, 6)))
    width = 9 if "uneven" in name else 8
    x = torch.randn(8, width, dtype=torch.float64)
    return Residual(2, width).double(), (x,)


def save_on_rank(rank: int, case: str, folder: str) -> list[str]:
    """Save a case's programs from a real rank; what it wrote."""
    name, options = CASES[case]
    model, args = model_of(name)
    cluster = ideal_cluster(options["devices"])
    module = autoplan.parallelize(model, args, cluster=cluster, **options)
    return [str(path) for path in module.save_program(folder, args)]


def run_files(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Run rank N's file as a script of its own; results by rank.

    AssertionError with what was written to stderr where one fails, or has imported the planner.
    """
    programs: dict[int, str] = {}
    text = (folder / "run.py").read_text()
    scope: dict[str, Any] = {"__name__": "imported"}
    exec(compile(text, "run.py", "exec"), scope)
    programs = scope["PROGRAMS"]
    assert sorted(programs) == list(range(ranks))
    path = str(Path(autoplan.__file__).parent)
    port = _free_port()
    processes = []
    for rank in range(ranks):
        code = _RANK.format(path=path, file=str(folder / programs[rank]))
        env = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code], env=env, cwd=folder, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    try:
        for process in processes:
            out, error = process.communicate(timeout=200)
            assert process.returncode == 0, error
            modules = out.split("modules ")[1].split()
            used = {f"autoplan.{name}" for name in PLANNER}
            assert not used.intersection(modules), used.intersection(modules)
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"result_{rank}.pt") for rank in range(ranks)]


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def whole_gradients(plan: Plan, results: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Logical gradients of the shards that ranks found; AssertionError where copies differ."""
    found: dict[str, Tensor] = {}
    stages = plan.stages or (plan,)
    each = plan.mesh.num_devices if plan.pipeline is None else len(plan.pipeline.stages[0].ranks)
    for number, stage in enumerate(stages):
        first = 0 if plan.pipeline is None else plan.pipeline.stages[number].ranks[0]
        for row in stage.tensors:
            if row.kind != "parameter":
                continue
            layout, seen = Layout.parse(row.layout), torch.zeros(row.shape, dtype=torch.bool)
            whole = found.setdefault(row.path, torch.full(row.shape, torch.nan).double())
            for at in range(each):
                part = results[first + at]["gradients"].get(row.path)
                if part is None:
                    continue
                ranges = local_ranges(row.shape, layout, stage.mesh, stage.mesh.coordinates(at))
                place = tuple(slice(*one) for one in ranges)
                before = whole[place]
                if not before.isnan().any():
                    torch.testing.assert_close(part, before, rtol=1e-12, atol=1e-15)
                whole[place] = part
                seen[place] = True
            assert seen.all(), row.path
    return found


def reference(model: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Loss and gradients of the original on the whole batch."""
    loss = model(*args)
    loss.backward()
    grads = {path: p.grad for path, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads
