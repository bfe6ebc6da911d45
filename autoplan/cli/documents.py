"""Plans as plain data for `--json`: the keys that `docs/command_line.md` lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from autoplan.plan import Plan


def summary(plan: Plan) -> dict[str, Any]:
    """What a table shows of a plan: its mesh, scheme, time, memory, traffic."""
    return {
        "devices": plan.mesh.num_devices,
        "mesh": dict(zip(plan.axes, plan.sizes, strict=True)),
        "scheme": plan.scheme,
        "step_time_s": plan.step_time_s,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "memory_limit_bytes": plan.memory_limit_bytes,
        "communication": communication(plan),
    }


def communication(plan: Plan) -> dict[str, Any]:
    """Collectives of a step, without those of outputs that only a call returns."""
    from autoplan.repeated import moved_in_a_step

    return dataclasses.asdict(moved_in_a_step(plan))


def plan_document(plan: Plan, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All that the report says, with numbers in seconds and bytes."""
    from autoplan.report_pipeline import located_tensors

    certificate = msgspec.to_builtins(plan.certificate)
    tensors = [
        {**msgspec.to_builtins(row), **({"stage": stage} if plan.stages else {})}
        for row, stage in located_tensors(plan)
    ]
    return {
        "model": plan.model,
        "cluster": plan.cluster,
        "training": plan.training,
        "optimizer": plan.optimizer,
        "microbatches": plan.microbatches,
        **summary(plan),
        "departures": list(plan.departures),
        "memory": {**msgspec.to_builtins(plan.memory), "total": plan.memory.total},
        "certificate": certificate,
        "baselines": msgspec.to_builtins(plan.baselines),
        "tensors": tensors,
        "collectives": msgspec.to_builtins(plan.collectives),
        "pipeline": msgspec.to_builtins(plan.pipeline),
        "recomputed": list(plan.recomputed),
        "operations_without_rule": [row.key for row in plan.operations_without_rule],
        "hints": list(plan.hints),
        "pins": msgspec.to_builtins(plan.pins),
        "shapes": msgspec.to_builtins(plan.shapes),
        "notes": list(plan.notes),
        "config": plan.config,
        "files": dict(files or {}),
    }
