"""Profiles: what ranks did in a step of `train_step(..., profile=True)`, beside the plan's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from autoplan.launch import distributed
from autoplan.mesh import Mesh
from autoplan.plan import Plan
from autoplan.runtime.executor import Executor
from autoplan.trace.perfetto import save_trace
from autoplan.trace.predicted import predicted
from autoplan.trace.recorder import Recorder, clock_of, recording
from autoplan.trace.spans import Group, Span, rank_name

MEASURED = "measured"
_TRACKS = ("compute", "communication")


@dataclass(frozen=True)
class Profile:
    """One measured step: `spans` of every rank's tracks, in seconds from the step's start.

    ranks: of the tracks, in order: real ranks by number, simulated ones of a mesh together, which
    run one after the other in one process.
    """

    plan: Plan
    device: str
    simulated: bool
    ranks: tuple[str, ...]
    spans: tuple[Span, ...]

    def __repr__(self) -> str:
        where = f"{len(self.ranks)} {'tracks' if len(self.ranks) > 1 else 'track'}"
        return f"Profile({self.step_time_s:.4g} s on {self.device}, {where})"

    @property
    def step_time_s(self) -> float:
        """Seconds until the last rank was through, all of them having begun together."""
        return self.group().end_s

    def group(self) -> Group:
        """As the side of a trace."""
        notes = {
            "device": self.device,
            "start": "all ranks begin at 0, where a barrier let them go",
            "backward": "each autograd node is named after the line of the program that made it",
        }
        if self.simulated:
            notes["simulated"] = (
                "ranks run one after the other in one process, so that a span is of all ranks"
            )
        tracks = tuple(f"{rank} {track}" for rank in self.ranks for track in _TRACKS)
        return Group(MEASURED, tracks, self.spans, notes=notes)

    def save_trace(self, path: str | Path) -> None:
        """Write the predicted step and this one beside each other; see `Plan.save_trace`."""
        save_trace(path, [predicted(self.plan), self.group()])


class Profiling:
    """Makes the profile of one step; collective."""

    def __init__(
        self, plan: Plan, meshes: tuple[Mesh, ...], executors: dict[int, Executor]
    ) -> None:
        self._plan, self._meshes, self._executors = plan, meshes, executors
        self._device = next(iter(executors.values())).device
        self.recorder = Recorder(clock_of(self._device))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What runs inside is recorded; all ranks begin together."""
        if distributed():
            dist.barrier()
        with recording(self.recorder, self._executors):
            yield

    def profile(self) -> Profile:
        """What was recorded, of all ranks, on every one of them."""
        found = [
            Span(f"{self._name(rank)} {track}", s.name, s.category, s.start_s, s.time_s, s.args)
            for (rank, track), spans in self.recorder.spans().items()
            for s in spans
        ]
        names = [self._name(rank) for rank in self._executors]
        mine: tuple[list[str], list[Span]] = names, found
        everyone: list[Any] = [mine]
        if distributed():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
        return Profile(
            self._plan,
            str(self._device),
            not distributed(),
            tuple(name for ranks, _ in everyone for name in ranks),
            tuple(span for _, spans in everyone for span in spans),
        )

    def _name(self, pipeline_rank: int) -> str:
        """Of what runs here of a pipeline rank."""
        mesh = self._meshes[pipeline_rank]
        at = {"pipeline": pipeline_rank} if len(self._meshes) > 1 else {}
        first = pipeline_rank * mesh.num_devices
        if not distributed():
            if mesh.num_devices == 1:
                return rank_name(first, at)
            return f"ranks {first} to {first + mesh.num_devices - 1}, simulated"
        rank = dist.get_rank()
        own = mesh.coordinates(rank - first)
        return rank_name(rank, {**at, **dict(zip(mesh.axes, own, strict=True))})
