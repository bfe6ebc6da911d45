"""The steps of a pipeline: a schedule's events on stages, on real ranks or all in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from autoplan.pipelining.schedules import Event, Orders, Schedule
from autoplan.runtime.links import Place
from autoplan.runtime.stage_step import StageStep


def pipeline_place(
    size: int, ranks_per_stage: int, device: torch.device, timeout: timedelta | None = None
) -> Place:
    """This process's place among `size` groups of `ranks_per_stage` ranks that follow each other.

    Rank i of every group is in one process group, in which `timeout` (by default that of the whole
    job) ends waiting for a rank that died. Every rank of the job must call this.
    """
    timeout = _timeout_of_job(device) if timeout is None else timeout
    rank, own = dist.get_rank(), None
    for index in range(ranks_per_stage):
        members = [number * ranks_per_stage + index for number in range(size)]
        group = dist.new_group(members, timeout=timeout)
        if rank in members:
            own = group
    assert own is not None
    place = Place(own, size, rank // ranks_per_stage, device)
    if device.type == "cuda":
        # NCCL connects a group on its first collective; messages between two are too late for it.
        dist.all_reduce(torch.zeros(1, device=device), group=own)
    return place


def _timeout_of_job(device: torch.device) -> timedelta | None:
    """Of the default group; a new group would have half an hour. Private, as of torch 2.11."""
    try:
        backend: Any = dist.distributed_c10d._get_default_group()._get_backend(device)
        timeout: timedelta = backend.options._timeout
    except (AttributeError, RuntimeError):
        return None
    return timeout


def run_in_memory(
    schedule: Schedule,
    steps: Sequence[StageStep],
    num_ranks: int,
    microbatches: int,
    forward_only: bool = False,
    trace: list[Event] | None = None,
) -> None:
    """The events of `schedule` on all stages in this process, values handed over in memory.

    steps: of all stages, in order; their `end` is the caller's. trace: gets the events.
    """
    pending: dict[tuple[str, int, int], Any] = {}
    for event in in_sequence(schedule.orders(num_ranks, microbatches, forward_only)):
        step, stage, number = steps[event.stage], event.stage, event.microbatch
        if event.kind == "forward":
            sent = step.forward(number, pending.pop(("forward", stage, number), None))
            if stage + 1 < len(steps):
                pending["forward", stage + 1, number] = sent
        elif event.kind == "backward_weight":
            step.backward_weight(number)
        else:
            run = step.backward if event.kind == "backward" else step.backward_input
            gradients = run(number, pending.pop(("backward", stage, number), None))
            if stage:
                pending["backward", stage - 1, number] = gradients
        if trace is not None:
            trace.append(event)


def in_sequence(orders: Orders) -> Iterator[Event]:
    """The events of all ranks as one sequence that keeps every order and what events wait for."""
    waiting = [deque(order) for order in orders]
    last = max((event.stage for order in orders for event in order), default=0)
    done: set[tuple[str, int, int]] = set()

    def ready(event: Event) -> bool:
        if event.kind == "forward":
            return event.stage == 0 or ("forward", event.stage - 1, event.microbatch) in done
        if event.kind == "backward_weight" or event.stage == last:
            return True
        return ("backward", event.stage + 1, event.microbatch) in done

    while any(waiting):
        before = len(done)
        for queue in waiting:
            while queue and ready(queue[0]):
                event = queue.popleft()
                kind = "backward" if event.kind == "backward_input" else event.kind
                done.add((kind, event.stage, event.microbatch))
                yield event
        if len(done) == before:
            heads = ", ".join(str(queue[0]) for queue in waiting if queue)
            raise RuntimeError(f"the schedule's orders wait for each other at: {heads}.")
