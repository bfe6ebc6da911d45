"""Plans of small pipelines, by name: schedules, meshes, a stage map, recomputation."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import torch
from torch import nn

import autoplan
from autoplan.cost_models import Cluster
from autoplan.plan import Plan
from tests.models import Example, gpt2, ideal_cluster, language_batch
from tests.planner.models import Residual

CASES: dict[str, dict[str, Any]] = {
    "naive": {"devices": 2, "parallel": {"pipeline": 2}},
    "gpipe": {"devices": 4, "microbatches": 2, "parallel": {"pipeline": 4}},
    "1f1b": {"devices": 4, "microbatches": 4, "parallel": {"pipeline": 2, "data": 2}},
    "interleaved": {"devices": 4, "microbatches": 4,
                    "parallel": {"pipeline": {"size": 2, "chunks": 2}, "data": 2}},
    "zero-bubble": {"devices": 2, "microbatches": 4,
                    "parallel": {"pipeline": {"size": 2, "schedule": "zero-bubble"}}},
    "zbv": {"devices": 2, "microbatches": 4,
            "parallel": {"pipeline": {"size": 2, "schedule": "zbv"}}},
    "unlike": {"devices": 8, "microbatches": 4, "parallel": {"pipeline": {"size": 2, "stages": [
        {"mesh": {"a": 2, "b": 2}}, {"data": 4}]}}},
    "stage map": {"devices": 4, "microbatches": 4, "parallel": {
        "pipeline": {"size": 2, "stage_map": [0, 0, 0, 1]}, "data": 2}},
    "recomputed": {"devices": 2, "microbatches": 2, "parallel": {"pipeline": 2},
                   "recompute": ["layers.0"]},
}  # fmt: skip
"""What `autoplan.plan` is asked of four residual blocks."""


def residual() -> nn.Module:
    """Four blocks with weights that are the same every time."""
    torch.manual_seed(0)
    return Residual(4).double()


def batch() -> Example:
    """Rows for every number of microbatches and ranks above."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(32, 16, generator=generator, dtype=torch.float64),), {}


def microbatch(name: str) -> Example:
    """The first microbatch of a case: the form of arguments that its plan is for."""
    (x,), _ = batch()
    return (x[: len(x) // CASES[name].get("microbatches", 1)],), {}


def cluster_of(name: str) -> Cluster:
    """The devices that a case is planned for."""
    return ideal_cluster(CASES[name]["devices"])


@cache
def plan_of(name: str) -> Plan:
    """The plan of a case, made once."""
    options: dict[str, Any] = {"cluster": cluster_of(name), "time_limit_s": 20, **CASES[name]}
    return autoplan.plan(residual(), *batch(), **options)


def tied() -> nn.Module:
    """A GPT-2, whose head and embedding are one parameter."""
    torch.manual_seed(0)
    return gpt2(n_layer=2)


@cache
def tied_plan() -> Plan:
    """Its first stage has the embedding, its last one the head."""
    return autoplan.plan(
        tied(),
        *language_batch(),
        devices=4,
        cluster=ideal_cluster(4),
        microbatches=4,
        parallel={"pipeline": {"size": 2, "stage_map": [0, 1]}, "data": 2},
        time_limit_s=20,
    )


def unhurried(plan: Plan) -> Plan:
    """The plan without how long solvers took, which is no part of its file."""
    proof = msgspec.structs.replace(plan.certificate, seconds=0.0)
    stages = tuple(map(unhurried, plan.stages))
    return msgspec.structs.replace(plan, certificate=proof, stages=stages)
