"""The launcher of real processes: results in rank order, and failures with their traceback."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.runtime.launch import RankError, run_ranks


def summed(rank: int, offset: int) -> tuple[int, int, float, int]:
    total = torch.tensor(float(rank + offset))
    dist.all_reduce(total)
    return rank, dist.get_world_size(), total.item(), torch.get_num_threads()


def one_raises(rank: int) -> None:
    if rank == 1:
        raise ValueError("rank one has had enough")
    dist.barrier()  # the others wait for it


def one_dies(rank: int) -> None:
    if rank == 1:
        os._exit(3)
    dist.barrier()


def one_hangs(rank: int) -> int:
    if rank == 1:
        time.sleep(1000)
    return rank


def leaves_something(rank: int) -> None:
    os.environ["LEFT_BY_A_RANK"] = "here"
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    dist.left_by_a_rank = True  # type: ignore[attr-defined]


def finds(rank: int) -> tuple[Any, ...]:
    left = os.environ.get("LEFT_BY_A_RANK"), getattr(dist, "left_by_a_rank", None)
    return (*left, torch.get_default_dtype(), os.environ["SET_BY_A_TEST"])


def draws(rank: int) -> tuple[int, float, float]:
    return hash("a text"), random.random(), float(torch.rand((), dtype=torch.float64))


def test_every_rank_returns_its_result() -> None:
    assert run_ranks(summed, 2, 10) == [(rank, 2, 21.0, 1) for rank in range(2)]


def test_every_job_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    run_ranks(leaves_something, 2)
    monkeypatch.setenv("SET_BY_A_TEST", "now")
    assert run_ranks(finds, 2) == [(None, None, torch.float32, "now")] * 2


def test_ranks_differ_in_what_processes_differ_in() -> None:
    """Or else an order of a set, alike everywhere by chance, would go unnoticed."""
    hashes, *numbers = zip(*run_ranks(draws, 4), strict=True)
    assert [len(set(each)) for each in numbers] == [4, 4]
    if os.environ.get("PYTHONHASHSEED", "random") == "random":
        for rank in range(4):
            assert hashes[rank] != hashes[rank ^ 1]
            assert hashes[rank] != hashes[rank ^ 2]


def test_the_traceback_of_the_rank_that_raised_comes_first() -> None:
    started = time.monotonic()
    with pytest.raises(RankError) as caught:
        run_ranks(one_raises, 2)
    assert str(caught.value).startswith("rank 1: Traceback")
    assert "in one_raises" in str(caught.value)
    assert "ValueError: rank one has had enough" in str(caught.value)
    assert time.monotonic() - started < 30  # not the 60 s of the collective


def test_a_rank_that_dies_is_named() -> None:
    with pytest.raises(RankError, match="rank 1: its process died"):
        run_ranks(one_dies, 2)


def test_a_rank_that_hangs_is_named_and_killed() -> None:
    with pytest.raises(RankError, match=r"1\] did not finish"):
        run_ranks(one_hangs, 2, timeout_s=6)
