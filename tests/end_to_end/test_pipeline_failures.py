"""A rank of a pipeline that dies, or does something else than the others: nobody waits for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

import autoplan
from autoplan.runtime.stage_step import StageStep
from tests.capabilities.pipeline_ranks import batch, blocks, piped
from tests.runtime.launch import run_ranks, start_process

TIMEOUT_S = 30.0
"""Long enough for the planner on a busy machine, on which the others wait, too."""
CULPRIT = 2


def dies(*_: Any, **__: Any) -> None:
    os._exit(3)


def in_a_backward(module: autoplan.ParallelModule) -> None:
    """Dies at its first backward, while others wait for its gradient, and it has sent values."""
    with patch.object(StageStep, "backward", dies if dist.get_rank() == CULPRIT else run_backward):
        module.train_step(*batch())


run_backward = StageStep.backward


def between_calls(module: autoplan.ParallelModule) -> None:
    """Dies between a call and the backward of its loss, which goes over all stages."""
    loss = module(*batch()[0])["loss"]
    if dist.get_rank() == CULPRIT:
        dies()
    loss.backward()


MOMENTS: dict[str, Callable[[autoplan.ParallelModule], None]] = {
    "in a backward": in_a_backward,
    "between calls": between_calls,
}


def train(rank: int, folder: str, moment: str) -> None:
    """One good step, and one in which a rank dies: its error, and the seconds until it came."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    init, timeout = f"file://{folder}/rendezvous", timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=4, timeout=timeout)
    module = piped(blocks(), {"size": 4, "schedule": "1f1b"}, 4, devices=4)
    module.train_step(*batch())
    start = time.monotonic()
    try:
        MOMENTS[moment](module)
    except Exception as error:
        said = f"{time.monotonic() - start} {error!r} {getattr(error, '__notes__', '')}"
        (Path(folder) / f"{rank}.txt").write_text(said)
        raise SystemExit(1) from None  # as an uncaught error ends a process


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_rank_that_dies_stops_the_others_in_time(tmp_path: Path, moment: str) -> None:
    processes = []
    try:
        for rank in range(4):
            processes.append(start_process(rank, train, rank, str(tmp_path), moment))
        deadline = time.monotonic() + 150.0
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
        told = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
        assert codes == [3 if rank == CULPRIT else 1 for rank in range(4)], told
        for rank in set(range(4)) - {CULPRIT}:
            seconds, said = (tmp_path / f"{rank}.txt").read_text().split(" ", 1)
            assert float(seconds) < TIMEOUT_S + 10.0
            assert "RuntimeError" in said
            if moment == "in a backward":
                assert f"pipeline rank {rank} of 4 (stage {rank}) stopped in a step" in said
    finally:
        for process in processes:
            process.kill()
            process.join()


# -- ranks that differ ----------------------------------------------------------------------------


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except autoplan.InputError as error:
        return str(error)
    return "no error"


def differing(rank: int) -> dict[str, str]:
    """What every rank is told when rank 2 does something else; the last step is a good one."""
    module = piped(blocks(), {"size": 4}, 4, devices=4)
    args, _ = batch()
    odd = rank == CULPRIT
    half = tuple(each[:4] for each in args)
    other = (args[0][:6] + odd, args[1][:6])

    def called() -> Any:
        with torch.set_grad_enabled(not odd):
            return module(*args)

    found = {
        "shapes": said(lambda: module.train_step(half if odd else args)),
        "contents": said(lambda: module(*other)),
        "microbatches": said(lambda: module.train_step(args, microbatches=8 if odd else 4)),
        "forward_only": said(lambda: module.train_step(args, forward_only=odd)),
        "outputs": said(lambda: module.train_step(args, outputs=odd)),
        "gradients": said(called),
        "method": said(lambda: module(*args) if odd else module.verify(args)),
        "not divisible": said(lambda: module.train_step(tuple(each[:6] for each in args))),
    }
    module.train(not odd)
    found["mode"] = said(lambda: module.train_step(args))
    module.train()
    found["after"] = said(lambda: module.train_step(args))
    return found


def test_ranks_that_differ_are_told_so_at_once() -> None:
    start = time.monotonic()
    ranks = run_ranks(differing, 4, timeout_s=150.0)
    expected = {
        "shapes": r"different arguments: (int64[2, 4], int64[2, 4]), .*",
        "contents": "different contents",
        "microbatches": "different arguments",
        "forward_only": "train_step(microbatches=4, outputs=False, forward_only=True)",
        "outputs": "train_step(microbatches=4, outputs=True, forward_only=False)",
        "gradients": "a call without gradients",
        "method": "different things: verify(precision='float64', steps=0); verify(",
        "not divisible": "a batch of 6 cannot be cut into 4 equal microbatches",
        "mode": "differ in the train or eval mode",
        "after": "no error",
    }
    for found in ranks:
        assert found == ranks[0]
        for name, text in expected.items():
            assert text.removesuffix(", .*") in found[name], (name, found[name])
    assert time.monotonic() - start < 120.0
