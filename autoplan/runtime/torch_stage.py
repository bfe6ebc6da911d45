"""Real pipeline ranks: torch.distributed.pipelining's schedules, run on our stages.

The only file that knows private names of torch's pipelining: the stage base class and what its
schedules ask of a stage, `_step_microbatches` and `_initialize_stage(s)` of a schedule. Written for
torch 2.11 to 2.13. Torch infers nothing: shapes are the programs', and memory for what arrives is
made when it is about to arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining.schedules import (
    PipelineScheduleSingle,
    get_schedule_class,
)
from torch.distributed.pipelining.stage import _PipelineStageBase

from autoplan.pipelining.schedules import Event, Kind, Schedule
from autoplan.runtime.links import Place, as_wire, check_sent, room_for, start_send, wait
from autoplan.runtime.stage_step import StageStep


class RankRunner:
    """Runs steps of `schedule` on this rank; knows torch's schedule of each microbatch count."""

    def __init__(self, schedule: Schedule, place: Place) -> None:
        self._schedule, self._place = schedule, place
        self._built: dict[int, tuple[list[_Stage], Any]] = {}

    def run(
        self,
        steps: Sequence[StageStep],
        microbatches: int,
        forward_only: bool = False,
        trace: list[Event] | None = None,
    ) -> None:
        """This rank's events of a step, on the stages that it holds.

        steps: in order of the stages; their `end` is the caller's. trace: gets the events.
        Raises what a stage raises, and RuntimeError where another rank is gone, or silent for the
        group's timeout; the process groups cannot be used after that.
        """
        if microbatches not in self._built:
            self._built[microbatches] = self._build(microbatches)
        stages, torch_schedule = self._built[microbatches]
        for stage, step in zip(stages, steps, strict=True):
            assert stage.stage_index == step.number
            stage.load(step, forward_only, trace)
        try:
            torch_schedule._step_microbatches()
            for stage in stages:
                wait(stage.sending)
        except Exception as error:
            numbers = ", ".join(str(step.number) for step in steps)
            error.add_note(
                f"pipeline rank {self._place.rank} of {self._place.size} (stage {numbers}) stopped "
                "in a step; if another rank failed first, its own error says why."
            )
            raise
        finally:
            for stage in stages:
                stage.unload()

    def _build(self, microbatches: int) -> tuple[list[_Stage], Any]:
        schedule, place = self._schedule, self._place
        schedule.check(place.size, microbatches)
        numbers = schedule.stages_of(place.rank, place.size)
        stages = [_Stage(number, schedule, place) for number in numbers]
        cls = get_schedule_class(schedule.torch_name)
        single = issubclass(cls, PipelineScheduleSingle)
        built = cls(stages[0] if single else stages, microbatches, scale_grads=False)
        # It would exchange shapes, which we know, and warm up connections.
        built._initialize_stage = built._initialize_stages = _skip
        return stages, built


def _skip(*_: Any, **__: Any) -> None:
    pass


class _Stage(_PipelineStageBase):
    """What torch's schedules call, on a `StageStep`."""

    def __init__(self, number: int, schedule: Schedule, place: Place) -> None:
        total = schedule.num_stages(place.size)
        super().__init__(nn.Module(), number, total, place.device, place.group)
        self._place = place
        self._peers = {
            near: schedule.rank_of(near, place.size)
            for near in (number - 1, number + 1)
            if 0 <= near < total
        }
        # On NCCL, 1F1B must start what it sends and receives as one batch, as torch does: of two
        # neighbours that send first, each would block the other. Elsewhere we send ourselves, since
        # torch holds what it sends for longer, in most schedules until the end of the step.
        self._batches = schedule.torch_name == "1F1B" and place.device.type == "cuda"
        self.sending: list[dist.Work] = []
        self._forget()

    def _forget(self) -> None:
        self._step: StageStep | None = None
        self._forward_only = False
        self._trace: list[Event] | None = None
        self._received: dict[int, list[Any]] = {}
        self._sent: dict[int, list[Any]] = {}
        self._gradients: dict[int, list[Any]] = {}
        self._returned: dict[int, list[Any]] = {}
        self._given: list[dist.P2POp] = []

    def load(self, step: StageStep, forward_only: bool, trace: list[Event] | None) -> None:
        """Get ready for a step."""
        self._step, self._forward_only, self._trace = step, forward_only, trace

    def unload(self) -> None:
        """Hold nothing of the step any more."""
        self.sending.clear()
        self._forget()

    @property
    def _running(self) -> StageStep:
        assert self._step is not None
        return self._step

    def _begin(self, kind: Kind, microbatch: int) -> None:
        """Before a computation: what torch was given has been started, and is torch's no more."""
        for op in self._given:
            op.tensor = None  # type: ignore[assignment]
        self._given.clear()
        if kind != "backward_weight":  # which fills the time until it arrives
            wait(self.sending)  # at most one value is held because of its way
        if self._trace is not None:
            self._trace.append(Event(kind, self.stage_index, microbatch))

    # -- computation ------------------------------------------------------------------------

    def forward_one_chunk(self, fwd_chunk_id: int, *_: Any, **__: Any) -> Any:
        self._begin("forward", fwd_chunk_id)
        received = self._received.pop(fwd_chunk_id, None)
        self._sent[fwd_chunk_id] = self._running.forward(fwd_chunk_id, received)
        return self  # for `set_local_fwd_input`; torch would hold what was sent itself

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Any = None,
        full_backward: bool = True,
        last_backward: Any = False,
    ) -> None:
        if self._forward_only:
            return
        self._begin("backward" if full_backward else "backward_input", bwd_chunk_id)
        run = self._running.backward if full_backward else self._running.backward_input
        self._returned[bwd_chunk_id] = run(bwd_chunk_id, self._gradients.pop(bwd_chunk_id, None))

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: Any = False) -> None:
        if self._forward_only:
            return
        self._begin("backward_weight", bwd_chunk_id)
        self._running.backward_weight(bwd_chunk_id)

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """Gradients of microbatches are scaled where they start."""

    # -- between two stages of this rank ----------------------------------------------------

    def set_local_fwd_input(self, prev_stage_outputs: Any, mb_index: int) -> None:
        self._received[mb_index] = prev_stage_outputs._sent.pop(mb_index)

    def get_local_bwd_output(self, mb_index: int) -> Any:
        return self._returned.pop(mb_index, None)

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        if next_stage_bwd_outputs is not None:
            self._gradients[mb_index] = next_stage_bwd_outputs

    # -- between ranks ----------------------------------------------------------------------

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        if self.is_first:
            return []
        step = self._running
        rooms = [room_for(spec, step.program, self._place.device) for spec in step.received]
        self._received[fwd_chunk_id] = list(rooms)
        return self._receive(rooms, self.stage_index - 1)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        sent = self._sent.pop(fwd_chunk_id)
        check_sent(sent, self._running.program)
        return [] if self.is_last else self._send(sent, self.stage_index + 1)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        if self.is_last or self._forward_only:
            return []
        step = self._running
        rooms = [
            room_for(spec, step.program, self._place.device) if spec.trains else None
            for spec in step.sent
        ]
        self._gradients[bwd_chunk_id] = list(rooms)
        return self._receive([room for room in rooms if room is not None], self.stage_index + 1)

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        if self._forward_only:
            return []
        returned = self._returned.pop(bwd_chunk_id)
        if self.is_first:
            return []
        step = self._running
        grads = [
            # The other side waits for it, whether there is one or not.
            room_for(spec, step.program, self._place.device).zero_() if grad is None else grad
            for grad, spec in zip(returned, step.received, strict=True)
            if spec.trains
        ]
        return self._send(grads, self.stage_index - 1)

    def _receive(self, rooms: Sequence[Tensor], stage: int) -> list[dist.P2POp]:
        return self._ops(dist.irecv, rooms, stage)

    def _send(self, tensors: Sequence[Tensor], stage: int) -> list[dist.P2POp]:
        if self._batches:
            return self._ops(dist.isend, tensors, stage)
        self.sending += start_send(tensors, self._peers[stage], self._place)
        return []

    def _ops(self, op: Any, tensors: Sequence[Tensor], stage: int) -> list[dist.P2POp]:
        peer, group = self._peers[stage], self._place.group
        ops = [
            dist.P2POp(op, as_wire(tensor), group=group, group_peer=peer)
            for tensor in tensors
            if tensor.numel()
        ]
        self._given += ops
        return ops

    # -- what torch would infer -------------------------------------------------------------

    def _prepare_forward_infra(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def _prepare_backward_infra(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def _create_grad_recv_info(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError
