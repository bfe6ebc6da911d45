"""Row G: one plan over layout, stage, schedule, recomputation, ZeRO and microbatches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autoplan
from autoplan.errors import AutoplanError
from tests.planner.models import Residual

HAND_MADE: list[dict[str, Any]] = [
    *({"preset": name} for name in ("ddp", "fsdp", "megatron", "megatron-sp", "zero3")),
    {"parallel": {"tensor": {"size": 4, "mode": "2d"}}},
    {"parallel": {"data": {"size": 4, "mode": "hsdp", "shard": 2}}},
    {"parallel": {"data": 2, "tensor": {"size": 2, "mode": "1d"}}},
    {"parallel": {"data": 2, "pipeline": {"size": 2, "schedule": "gpipe"}}},
    {"parallel": {"data": 2, "pipeline": {"size": 2, "schedule": "1f1b"}}},
    {"parallel": {"pipeline": {"size": 2, "schedule": "zero-bubble", "chunks": 2}, "data": 2}},
]


def hand_made(args: tuple[Any, ...], **options: Any) -> dict[str, autoplan.Plan]:
    """Every hand-made plan that can be made and fits, with and without recomputation."""
    found = {}
    for given in HAND_MADE:
        for count in (1, 4):
            for again in (False, True):
                asked = {**options, **given, "microbatches": count, "recompute": again}
                try:
                    plan = autoplan.plan(Residual(3), args, devices=4, time_limit_s=2.0, **asked)
                except AutoplanError:
                    continue
                found[f"{given}, {count} microbatches, recompute={again}"] = plan
    return found


@pytest.mark.parametrize("memory", [None, 90_000])
def test_row_g_never_worse_than_the_best_hand_made_plan(memory: int | None) -> None:
    args, options = (torch.randn(64, 16),), {"cluster": "h100", "memory": memory}
    plan = autoplan.plan(
        Residual(3), args, devices=4, microbatches="auto", time_limit_s=30.0, **options
    )
    others = hand_made(args, **options)
    assert len(others) > 10
    for name, other in others.items():
        assert plan.step_time_s <= other.step_time_s * (1 + 1e-9), name
        assert other.step_time_s >= plan.certificate.bound * (1 - 1e-9), name
    if memory is not None:
        assert plan.peak_memory_bytes <= memory
