"""A rank that dies, hangs or raises in a step: every other rank stops with an error, in time."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.runtime.launch import start_process

TIMEOUT_S = 8.0
CULPRIT = 2


def train(rank: int, folder: str, schedule: str, how: str) -> None:
    """Steps until an error, which goes into a file with the seconds that it took to come."""
    from tests.runtime import pipeline_steps
    from tests.runtime.stage_programs import Batches

    class Failing(Batches):
        def inputs(self, microbatch: int) -> list[Any]:
            if rank == CULPRIT and microbatch == 3:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "hangs":
                    time.sleep(1000)
                raise ValueError("no memory left.")
            return super().inputs(microbatch)

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    init, timeout = f"file://{folder}/rendezvous", timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=4, timeout=timeout)
    case = pipeline_steps.Case(schedule, 4, 8)
    pipeline_steps.on_ranks(rank, [case], TIMEOUT_S)
    pipeline_steps.Batches = Failing  # type: ignore[misc]
    start = time.monotonic()
    try:
        pipeline_steps.on_ranks(rank, [case], TIMEOUT_S)
    except Exception as error:
        text = f"{time.monotonic() - start} {error!r} {getattr(error, '__notes__', '')}"
        (Path(folder) / f"{rank}.txt").write_text(text)
        raise SystemExit(1) from None  # as an uncaught error ends a process


@pytest.mark.parametrize(
    ("schedule", "how"),
    [("1f1b", "killed"), ("dualpipev", "raises"), ("interleaved-1f1b", "hangs")],
)
def test_nobody_waits_for_ever(tmp_path: Path, schedule: str, how: str) -> None:
    args = (str(tmp_path), schedule, how)
    processes = []
    try:
        for rank in range(4):
            processes.append(start_process(rank, train, rank, *args))
        others = [process for rank, process in enumerate(processes) if rank != CULPRIT]
        deadline = time.monotonic() + 60.0
        for process in others:
            process.join(deadline - time.monotonic())
        assert [process.exitcode for process in others] == [1, 1, 1]
        for rank in set(range(4)) - {CULPRIT}:
            seconds, text = (tmp_path / f"{rank}.txt").read_text().split(" ", 1)
            assert float(seconds) < TIMEOUT_S + 10.0
            assert f"pipeline rank {rank} of 4" in text
            assert "no memory left" not in text
        assert (how == "raises") == (tmp_path / f"{CULPRIT}.txt").exists()
    finally:
        for process in processes:
            process.kill()
            process.join()
