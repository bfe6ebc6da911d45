"""Small plans for the tests of the HTML report."""

from __future__ import annotations

from functools import cache

import msgspec
import torch

import autoplan
from autoplan.hints.pins import PinPrice
from autoplan.plan import Plan
from tests.models import gpt2
from tests.planner.models import Residual, token_ids

HOSTILE = "</script><script>window.hit=1</script><img src=x onerror='window.hit=1'>\"&{{body}}"


@cache
def small() -> Plan:
    """Five blocks on four devices, their batch split; the third is asked to differ."""
    parallel = {"data": {"mode": "fsdp", "size": 2}, "tensor": {"size": 2, "mode": "free"}}
    hints = {"transformer.h.2.mlp.c_fc": "op: tensor=o"}
    ids = token_ids()
    return autoplan.plan(
        gpt2(n_layer=5), (ids,), {"labels": ids}, devices=4, parallel=parallel, hints=hints
    )


@cache
def residual() -> Plan:
    """Three layers on two devices."""
    return autoplan.plan(Residual(3), (torch.zeros(8, 16),), devices=2, parallel={"mesh": {"x": 2}})


@cache
def piped() -> Plan:
    """Eight layers on four pipeline stages."""
    parallel = {"pipeline": {"size": 4, "schedule": "1f1b"}}
    return autoplan.plan(
        Residual(8), (torch.zeros(16, 16),), devices=4, microbatches=4, parallel=parallel
    )


@cache
def inference() -> Plan:
    """Four layers on two pipeline stages, forward alone."""
    parallel = {"pipeline": {"size": 2, "schedule": "gpipe"}}
    return autoplan.plan(
        Residual(4), (torch.zeros(16, 16),), devices=2, microbatches=4, parallel=parallel,
        training=False,
    )  # fmt: skip


def hostile() -> Plan:
    """`residual` with names and texts that try to be markup."""
    plan = residual()
    operations = tuple(
        msgspec.structs.replace(
            row,
            path=f"{row.path}.{HOSTILE}",
            key=f"{row.path}.{HOSTILE}/{row.key.rpartition('/')[2]}",
            choice=HOSTILE,
        )
        for row in plan.operations
    )
    collectives = tuple(msgspec.structs.replace(row, path=HOSTILE) for row in plan.collectives)
    return msgspec.structs.replace(
        plan,
        model=HOSTILE,
        operations=operations,
        collectives=collectives,
        notes=(HOSTILE,),
        hints=(HOSTILE,),
        pins=(PinPrice(HOSTILE, 1e-3, 5, HOSTILE),),
    )
