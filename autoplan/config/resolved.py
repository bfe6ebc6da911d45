"""The resolved config: every option as a plan has it, as plain data that asks for it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from autoplan.cost_models import Cluster, describe_cluster, load_cluster, load_profile
from autoplan.hints.text import text_of
from autoplan.parallel import MeshChoice

if TYPE_CHECKING:
    from autoplan.plan import Plan
    from autoplan.request import Request


def resolved_config(request: Request, plan: Plan, meshes: Sequence[MeshChoice]) -> dict[str, Any]:
    """What `plan` resolved of `request`: its mesh, schedule, microbatches and recomputed blocks in
    the place of what was left out. `autoplan.plan(model, args, **config)` asks for the same.

    `meshes`: that of the plan, or one for each pipeline rank. Of a pipeline, `request` has the
    schedule that was chosen.
    """
    config = {
        "devices": request.devices,
        "cluster": describe_cluster(request.cluster),
        "parallel": _parallel(request, meshes),
        "hints": {pattern: text_of(value) for pattern, value in request.hints.items()},
        "memory": request.memory_bytes,
        "training": plan.training,
        "optimizer": plan.optimizer,
        "microbatches": plan.microbatches,
        "time_limit_s": float(request.time_limit_s),
        "gap": float(request.gap),
        "local_inputs": plan.local_inputs,
        "outputs": "whole" if plan.whole_outputs else "loss",
        "recompute": list(plan.recomputed) or "none",
    }
    if math.isinf(request.time_limit_s):
        config["time_limit_s"] = _LONGEST_S
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    return {key: value for key, value in plain.items() if value != {}}


_LONGEST_S = 1e9
"""Instead of no limit at all, which neither JSON nor a plan file holds."""


def _parallel(request: Request, meshes: Sequence[MeshChoice]) -> dict[str, Any]:
    choices = [choice.as_parallel() for choice in meshes]
    pipeline = request.pipeline
    if pipeline is None:
        return dict(choices[0])
    entry: dict[str, Any] = {"size": pipeline.size, "schedule": pipeline.schedule}
    if pipeline.chunks > 1:
        entry["chunks"] = pipeline.chunks
    if pipeline.stage_map is not None:
        entry["stage_map"] = list(pipeline.stage_map)
    if all(choice == choices[0] for choice in choices):
        return {**choices[0], "pipeline": entry}
    return {"pipeline": {**entry, "stages": choices}}


def cluster_of(plan: Plan, num_devices: int) -> Cluster:
    """The cluster that a plan was made for, with `num_devices` devices; ConfigError where it is
    neither a shipped profile nor in the plan's config."""
    held = plan.config.get("cluster")
    if isinstance(held, Mapping):
        return load_cluster({**held, "devices": num_devices}, num_devices, plan.cluster)
    return Cluster(load_profile(plan.cluster), num_devices, plan.devices_per_node)
