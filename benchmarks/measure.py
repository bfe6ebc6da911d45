"""Measure one row of the planner's table in a process of its own: seconds by pass, peak memory.

python -m benchmarks.measure ROW     prints JSON
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

from autoplan.annotate import annotate
from autoplan.capture import Captured, capture
from autoplan.cost_models import Roofline
from autoplan.emit import emit
from autoplan.formulate import formulate, repeated_blocks
from autoplan.planning import Planned, plan_captured
from autoplan.pricing import Pricer
from autoplan.registry import rules_in_force
from autoplan.request import Request, make_request
from autoplan.solver import fold, reduce, solve
from benchmarks.rows import ROWS, TOKENS, Row, Shape


class Seconds(dict[str, float]):
    """Wall-clock seconds by name; `cpu`: the seconds that this process computed meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        start, start_cpu = time.perf_counter(), time.process_time()
        yield
        self[name] = time.perf_counter() - start
        self.cpu[name] = time.process_time() - start_cpu


def build(shape: Shape) -> nn.Module:
    """The model on the meta device, in bf16."""
    config = getattr(transformers, f"{shape.family}Config")(**shape.config)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, f"{shape.family}ForCausalLM")(config)
    return model.to(torch.bfloat16)


def measure(row: Row) -> dict[str, Any]:
    """Capture, every pass by itself, then `plan` as a whole and a program of its result."""
    ids = torch.empty(1, TOKENS, dtype=torch.long, device="meta")
    seconds = Seconds()
    model = build(row.shape)
    with seconds.of("capture"):
        captured = capture(model, (ids,), {"labels": ids})
    sizes = dict(zip("xyzw", row.mesh, strict=False))
    request = make_request(
        torch.Size(row.mesh).numel(), cluster="h100", parallel={"mesh": sizes}, time_limit_s=300.0
    )
    sizes_of_problem = run_passes(captured, request, seconds)
    with seconds.of("plan"):
        planned = plan_captured(captured, request, row.shape.title)
    with seconds.of("emit"):
        emit_first_rank(planned)
    proof = planned.plan.certificate
    return {
        "row": row.name,
        "seconds": seconds,
        "cpu_seconds": seconds.cpu,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **sizes_of_problem,
        "step_s": proof.objective,
        "gap": proof.gap,
        "plan_peak_bytes": planned.plan.peak_memory_bytes,
        "process_peak_bytes": peak_bytes(),
        "load": os.getloadavg()[0],
    }


def run_passes(captured: Captured, request: Request, seconds: Seconds) -> dict[str, int]:
    """The passes of planning on one mesh, one after another; `solve` folds and reduces again."""
    mesh = request.meshes[0].mesh
    with seconds.of("annotate"):
        annotated = annotate(captured, mesh, rules_in_force())
    pricer = Pricer(mesh, Roofline(request.cluster, mesh), request.setting)
    with seconds.of("build"):
        problem = formulate(annotated, pricer, request.whole_outputs)
    with seconds.of("fold"):
        classes = repeated_blocks(annotated)
        folded = fold(problem, classes)
    with seconds.of("reduce"):
        reduced = reduce(folded.problem)
    with seconds.of("solve"):
        solve(problem, classes, request.time_limit_s)
    return {
        "sites": len(annotated.sites),
        "classes": len(folded.problem.variables),
        "core": len(reduced.problem.variables),
    }


def emit_first_rank(planned: Planned) -> None:
    """The program of rank 0."""
    emit(planned.annotated, planned.choices, planned.pricer.routers, rank=0)


def peak_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(measure(ROWS[sys.argv[1]])))
