"""How long planning takes: seconds of every pass for a Llama-3-8B shape, from meta weights.

python -m benchmarks.planner
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.cost_models import Roofline, load_cluster
from autoplan.emit import emit
from autoplan.formulate import formulate, repeated_blocks
from autoplan.mesh import Mesh
from autoplan.pricing import Pricer, Setting
from autoplan.solver import fold, reduce, solve
from autoplan.strategies import RULES

MESHES = (Mesh.of(x=8), Mesh.of(x=2, y=4))
LIMIT_S = 5.0
"""What planning on one axis of 8 may take after capture, on 2 cores."""


def build(layers: int) -> LlamaForCausalLM:
    """Llama-3-8B's widths with `layers` layers, bf16, on the meta device."""
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


class Clock:
    """Seconds since the last reading."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def read(self) -> float:
        now = time.perf_counter()
        passed, self.at = now - self.at, now
        return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    ids = torch.empty(arguments.batch, arguments.tokens, dtype=torch.long, device="meta")
    clock = Clock()
    captured = capture(build(arguments.layers), (ids,), {"labels": ids})
    capture_s = clock.read()
    columns = (
        "mesh",
        "capture",
        "annotate",
        "formulate",
        "fold",
        "reduce",
        "solve, all",
        "emit a rank",
    )
    table = Table(*columns, "after capture", "step", "gap", "sites", box=None)
    slowest = 0.0
    for mesh in MESHES:
        clock = Clock()
        annotated = annotate(captured, mesh, RULES)
        annotate_s = clock.read()
        cluster = load_cluster("h100", mesh.num_devices, default="h100")
        pricer = Pricer(mesh, Roofline(cluster, mesh), Setting())
        problem = formulate(annotated, pricer, float(cluster.memory_bytes), whole_outputs=False)
        formulate_s = clock.read()
        classes = repeated_blocks(annotated)
        folded = fold(problem, classes)
        fold_s = clock.read()
        reduce(folded.problem)
        reduce_s = clock.read()
        solution = solve(problem, classes, time_limit_s=60.0)
        solve_s = clock.read()
        emit(annotated, solution.choices, pricer.routers, rank=0)
        emit_s = clock.read()
        planning_s = annotate_s + formulate_s + solve_s
        if mesh.ndim == 1:
            slowest = planning_s
        seconds = (
            capture_s,
            annotate_s,
            formulate_s,
            fold_s,
            reduce_s,
            solve_s,
            emit_s,
            planning_s,
        )
        proof = solution.certificate
        table.add_row(
            str(mesh),
            *(f"{each:.2f} s" for each in seconds),
            f"{proof.objective * 1e3:.1f} ms",
            f"{proof.gap:.2%}",
            str(len(annotated.sites)),
        )
    console = Console(width=160)
    console.print(
        f"Llama-3-8B shape, {arguments.layers} layers, {arguments.batch} x {arguments.tokens} "
        "tokens, bf16, training on H100; 'solve, all' contains fold and reduce"
    )
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"peak memory of this process: {peak:.0f} MB")
    verdict = "within" if slowest <= LIMIT_S else "OVER"
    console.print(
        f"one axis of 8 after capture: {slowest:.2f} s, {verdict} the limit of {LIMIT_S:g} s"
    )
    if slowest > LIMIT_S:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
