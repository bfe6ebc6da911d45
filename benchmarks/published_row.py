"""One published run in a process of its own: its setting priced, and what the search finds.

python -m benchmarks.published_row RUN published|search SECONDS     prints JSON
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import autoplan
from autoplan.cost_models import load_profile
from autoplan.plan import Plan
from benchmarks.published_models import batch_of, build, replicated
from benchmarks.published_runs import Run, read_runs

UNLIMITED = "100 TB"
"""A published setting is priced also where this model of memory finds no room for it.

But not one with selective recomputation, of which only this is known: that it fits.
"""


_FREE: dict[str, Any] = {"microbatches": "auto"}
"""What leaves mesh, modes, microbatches, schedule and recomputation to the search."""


def parallel_of(run: Run) -> dict[str, Any]:
    """The published setting: what each axis is for, and how it works.

    Beside a pipeline, gradients and optimizer state are sharded, and parameters gathered once a
    step, not again for each microbatch (Dubey et al. 2024, section 3.3.2).
    """
    sharded: dict[str, Any] = {"zero": 2} if run.pipeline > 1 else {"mode": "fsdp"}
    pipeline: dict[str, Any] = {"size": run.pipeline, "schedule": "1f1b"}
    if run.chunks > 1:
        pipeline |= {"schedule": "interleaved-1f1b", "chunks": run.chunks}
    return {
        "data": {"size": run.data, **(sharded if run.sharded else {"mode": "ddp"})},
        "tensor": {"size": run.tensor, "mode": "1d", "sequence_parallel": run.sequence_parallel},
        "pipeline": pipeline if run.pipeline > 1 else 1,
    }


def price(run: Run, time_limit_s: float) -> dict[str, Any]:
    """The published setting; of several numbers of microbatches the fastest that fits."""
    counts = run.microbatch_counts
    found = [setting_of(run, count, time_limit_s / len(counts)) for count in counts]
    limit = _memory_bytes(run)
    fitting = [plan for plan in found if plan.peak_memory_bytes <= limit] or found
    return _figures(run, min(fitting, key=lambda plan: plan.step_time_s))


def setting_of(run: Run, microbatches: int, time_limit_s: float) -> Plan:
    """The plan of the published setting with so many microbatches."""
    return autoplan.plan(
        build(run),
        (),
        batch_of(run),
        devices=run.devices,
        cluster=run.source.cluster,
        parallel=parallel_of(run),
        microbatches=microbatches,
        hints=replicated(run),
        recompute="auto" if run.recompute == "selective" else run.recompute,
        memory=None if run.recompute == "selective" else UNLIMITED,
        time_limit_s=time_limit_s,
    )


def search(run: Run, time_limit_s: float) -> dict[str, Any]:
    """What autoplan chooses, given the model, the batch and the devices."""
    plan = autoplan.plan(
        build(run),
        (),
        batch_of(run),
        devices=run.devices,
        cluster=run.source.cluster,
        **_FREE,
        time_limit_s=time_limit_s,
    )
    return _figures(run, plan)


def _memory_bytes(run: Run) -> float:
    return load_profile(run.source.cluster).memory_bytes.value


def _figures(run: Run, plan: Plan) -> dict[str, Any]:
    return {
        "samples_per_s": run.batch / plan.step_time_s,
        "step_s": plan.step_time_s,
        "peak_bytes": plan.peak_memory_bytes,
        "fits": plan.peak_memory_bytes <= _memory_bytes(run),
        "microbatches": plan.microbatches,
        "scheme": plan.scheme,
        "departures": list(plan.departures),
        "recomputed": len(plan.recomputed),
        "gap": plan.certificate.gap,
        "shapes": plan.num_shapes,
    }


def main() -> None:
    name, what, seconds = sys.argv[1:]
    start = time.perf_counter()
    run = read_runs()[name]
    found = (price if what == "published" else search)(run, float(seconds))
    print(json.dumps({**found, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
