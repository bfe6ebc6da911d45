"""Run a function on real processes, one per rank, over gloo.

Ranks are forked from servers that have imported torch, autoplan and transformers and done nothing
else: each is as fresh as a new interpreter, without the seconds that its imports take. There are
two servers, so that ranks differ in the hashes of texts, which order sets, and in addresses.
"""

from __future__ import annotations

import os
import pickle
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from multiprocessing import Pipe, forkserver, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.forkserver import ForkServer  # python >= 3.4; undocumented
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist


class RankError(RuntimeError):
    """A rank raised, died or hung; the message holds each rank's traceback, the first one first."""


@cache
def _servers() -> tuple[ForkServer, ForkServer]:
    """Both import while the first process is waited for; they end with this one."""
    servers = ForkServer(), ForkServer()
    for server in servers:
        server.set_forkserver_preload(["tests.runtime.preload"])  # passed over if not found
        server.ensure_running()
    return servers


def start_process(rank: int, target: Callable[..., None], *args: Any) -> BaseProcess:
    """A new process on one thread that calls `target(*args)`, an importable function.

    Two ranks whose numbers differ in one bit come from two servers.
    """
    server = _servers()[rank.bit_count() % 2]
    process = get_context("forkserver").Process(
        target=_start_afresh,
        args=(dict(os.environ), target, *args),
        name=f"rank {rank}",
        daemon=True,
    )
    with patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process):
        process.start()
    return process


def _start_afresh(environment: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    """With the environment of this moment and random numbers of its own, as a new interpreter."""
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    torch.seed()
    torch.set_num_threads(1)
    target(*args)


def run_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0
) -> list[Any]:
    """`[fn(0, *args), fn(1, *args), ...]`, each in its own process with a gloo process group.

    `fn` must be a function at the top of an importable module; keep that module light, every rank
    imports it. Arguments and results travel by pickle. Raises RankError, with all processes
    killed, as soon as one rank fails or `timeout_s` have passed since the last one started. A
    collective gives up after 60 s.
    """
    call = pickle.dumps((fn, args))
    with tempfile.TemporaryDirectory(prefix="run_ranks_") as folder:
        init_method = f"file://{Path(folder) / 'rendezvous'}"
        processes, pipes = [], []
        try:
            for rank in range(world_size):
                ours, theirs = Pipe()
                process = start_process(rank, _run_rank, rank, world_size, init_method, theirs)
                theirs.close()
                ours.send_bytes(call)
                processes.append(process)
                pipes.append(ours)
            deadline = time.monotonic() + timeout_s
            results = _collect(pipes, deadline)
            for pipe, process in zip(pipes, processes, strict=True):
                pipe.send_bytes(b"done")
                process.join(max(0.0, deadline - time.monotonic()))
            return results
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    """Every rank's result; after the first failure the others have one second to say theirs."""
    results: dict[int, Any] = {}
    failures: list[tuple[float, str]] = []
    waiting = dict(zip(pipes, range(len(pipes)), strict=True))
    while waiting:
        ready: list[Any] = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            rank = waiting.pop(pipe)
            try:
                failed_at, content = pickle.loads(pipe.recv_bytes())
            except EOFError:
                failed_at, content = time.time(), "its process died without a word.\n"
            if failed_at is None:
                results[rank] = content
            else:
                failures.append((failed_at, f"rank {rank}: {content}"))
                deadline = min(deadline, time.monotonic() + 1.0)
    if failures:
        raise RankError("\n".join(text for _, text in sorted(failures)))
    if waiting:
        raise RankError(f"ranks {sorted(waiting.values())} did not finish in time.")
    return [results[rank] for rank in range(len(pipes))]


def _run_rank(rank: int, world_size: int, init_method: str, pipe: Connection) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        fn, args = pickle.loads(pipe.recv_bytes())
        dist.init_process_group(
            "gloo",
            init_method=init_method,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        message = pickle.dumps((None, fn(rank, *args)))
    except BaseException:
        message = pickle.dumps((time.time(), traceback.format_exc()))
    pipe.send_bytes(message)
    with suppress(EOFError):  # the parent is gone
        pipe.recv_bytes()  # leave together: a peer may still be inside a collective
    if dist.is_initialized():
        dist.destroy_process_group()
