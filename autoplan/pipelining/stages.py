"""Stages: the best layouts of every stage of a given cut, and the step that they make together."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from autoplan.capture import Captured
from autoplan.errors import InfeasibleError
from autoplan.found import Found
from autoplan.hints import Hint
from autoplan.hints.by_stage import hints_by_stage
from autoplan.layouts import B, Layout
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.pipelining.chains import chain_of, wires_of
from autoplan.pipelining.events import Run, Times, simulate
from autoplan.pipelining.pieces import Pieces, pieces_of
from autoplan.pipelining.prices import Sending, SiteTimes, common_wire, site_times
from autoplan.pipelining.rank_memory import rank_memory
from autoplan.pipelining.schedules import Schedule
from autoplan.pipelining.splitting import Split, split
from autoplan.plan import Memory
from autoplan.pricing import Setting
from autoplan.recompute.known import Known
from autoplan.recompute.pricing import SecondRuns
from autoplan.request import Request
from autoplan.search import find_with_hints, hints_on
from autoplan.sites import node_meta
from autoplan.solver.chain import Chain
from autoplan.solver.problem import FloatArray, UndecidedError
from autoplan.units import size

Kind = tuple[Mesh, tuple[tuple[str, str], ...]]
"""A mesh and its axes' schemes: what two pipeline ranks must agree in to be planned alike."""


def kind_of(choice: MeshChoice) -> Kind:
    """What of a mesh's choice decides the layouts on it."""
    return choice.mesh, tuple(choice.schemes.items())


@dataclass(frozen=True)
class Frame:
    """What all cuts of one model on one choice of meshes have in common.

    `wholes`: by kind of mesh, the model solved on the ranks of one stage, whatever its memory.
    `deadline`: of `time.perf_counter()`, by which the stages of a cut are solved.
    """

    captured: Captured
    request: Request
    pieces: Pieces
    schedule: Schedule
    size: int
    meshes: tuple[MeshChoice, ...]
    """Of each pipeline rank."""
    wholes: Mapping[Kind, Found]
    deadline: float
    _solved: dict[Any, Found | InfeasibleError] = field(default_factory=dict)
    _fastest: dict[Any, Found] = field(default_factory=dict)
    """Of stages that were solved, the best whatever the memory limit."""
    _equal: Known = field(default_factory=Known)

    @property
    def num_stages(self) -> int:
        return self.schedule.num_stages(self.size)

    @property
    def ranks_per_stage(self) -> int:
        return self.request.devices // self.size

    def rank_of(self, stage: int) -> int:
        """The pipeline rank that holds a stage."""
        return self.schedule.rank_of(stage, self.size)

    @property
    def alike(self) -> bool:
        """Whether all stages have one mesh."""
        return len({choice.mesh for choice in self.meshes}) == 1 and len(self.wholes) <= 1

    @cached_property
    def in_flight(self) -> tuple[int, ...]:
        """Of each stage, the most microbatches that it holds at once."""
        if not self.request.setting.training:
            return (1,) * self.num_stages
        return self.schedule.in_flight(self.size, self.request.setting.microbatches)

    def setting(self, stage: int) -> Setting:
        """How a stage is used."""
        return setting_of(self.request.setting, self.schedule, self.size, stage)

    @cached_property
    def sending(self) -> Sending:
        return Sending(self.request.cluster, self.size, self.ranks_per_stage)

    @cached_property
    def chain(self) -> Chain:
        """The pieces at the mean prices of the meshes that they may lie on; hints apart."""
        free = np.ones((1, self.num_stages), dtype=np.bool_)
        chains = [
            chain_of(whole, self.pieces, self.sending, free, self.request.whole_outputs)
            for whole in self.wholes.values()
        ]
        names = [n for n in Chain.__dataclass_fields__ if n not in ("allowed", "shared")]
        means = {name: np.mean([getattr(each, name) for each in chains], axis=0) for name in names}
        return replace(chains[0], **means)

    @cached_property
    def wires(self) -> Mapping[str, Layout] | None:
        """How values travel between stages of one mesh; None where meshes differ."""
        return wires_of(self.whole(0), self.pieces) if self.alike else None

    def whole(self, rank: int) -> Found:
        """The model solved on the mesh of a pipeline rank."""
        return self.wholes[kind_of(self.meshes[rank])]

    def wires_on(self, stage: Captured, mesh: Mesh) -> dict[str, Layout]:
        """How the values lie that a stage receives and sends."""
        nodes = {node.name: node for node in stage.graph.nodes}
        names = [*(each.node for each in stage.inputs_of("received")), *stage.sent]
        if self.wires is not None:
            return {name: self.wires[name] for name in names}
        return {
            name: common_wire(node_meta(nodes[name]), self.ranks_per_stage, mesh.ndim)
            for name in names
        }


def setting_of(setting: Setting, schedule: Schedule, size: int, stage: int) -> Setting:
    """How one stage of a pipeline is used, whose model is used as `setting` says."""
    if not setting.training:
        return setting
    most, later = schedule.in_flight_in_phases(size, setting.microbatches)[stage]
    return replace(setting, in_flight=most, in_flight_later=later)


@dataclass(frozen=True)
class Staged:
    """A cut with its stages solved. `run`: a step of it, event by event."""

    frame: Frame
    stage_of: tuple[int, ...]
    split: Split
    stages: tuple[Found, ...]
    times: tuple[SiteTimes, ...]
    run: Run

    @property
    def step_time_s(self) -> float:
        return self.run.makespan_s

    @cached_property
    def memories(self) -> tuple[Memory, ...]:
        """The peak of each pipeline rank, of all its stages together."""
        frame, setting = self.frame, self.frame.request.setting
        orders = frame.schedule.orders(frame.size, setting.microbatches, not setting.training)
        given = sum(each.meta.num_bytes for each in frame.captured.inputs_of("input"))
        return tuple(
            rank_memory(
                order,
                {s: self.stages[s].held for s in frame.schedule.stages_of(rank, frame.size)},
                float(given * setting.microbatches),
                setting.training,
            )
            for rank, order in enumerate(orders)
        )

    def alone(self, stage: int) -> Memory:
        """The peak of one stage, as if its rank held no other."""
        frame, setting = self.frame, self.frame.request.setting
        orders = frame.schedule.orders(frame.size, setting.microbatches, not setting.training)
        own = [event for event in orders[frame.rank_of(stage)] if event.stage == stage]
        return rank_memory(own, {stage: self.stages[stage].held}, training=setting.training)

    @property
    def memory_bytes(self) -> tuple[int, ...]:
        """Bytes at the peak of each pipeline rank."""
        return tuple(memory.total for memory in self.memories)

    def transfer_s(self, stage: int) -> tuple[float, float]:
        """Seconds of a microbatch from `stage` to the next: values ahead, gradients back."""
        frame, found = self.frame, self.stages[stage]
        if stage + 1 == frame.num_stages or frame.rank_of(stage) == frame.rank_of(stage + 1):
            return 0.0, 0.0
        sizes, grads = 0.0, 0.0
        for site, choice in zip(found.annotated.sites, found.solution.choices, strict=True):
            if site.kind == "sent":
                meta = site.outputs[0]
                bytes_sent = found.pricer.local_bytes(meta, site.candidates[choice].outputs[0])
                sizes += bytes_sent
                grads += bytes_sent * meta.requires_grad
        back = frame.sending.time_s(grads) if frame.request.setting.training else 0.0
        return frame.sending.time_s(sizes), back


def solve_stages(
    frame: Frame, stage_of: Sequence[int], parts_of_memory: Mapping[int, float] | None = None
) -> Staged:
    """Every stage's best layouts, within memory; InfeasibleError names the stage that has none.

    `parts_of_memory`: of pipeline ranks that may use no more than a part of theirs.
    """
    pieces = frame.pieces
    parts = split(frame.captured, pieces, stage_of)
    found: list[Found] = []
    for number, stage in enumerate(parts.stages):
        mine = tuple(i for i, at in enumerate(stage_of) if at == number)
        part = (parts_of_memory or {}).get(frame.rank_of(number), 1.0)
        share_bytes = int(part * _share_of_memory(frame, number, stage_of))
        left_s = frame.deadline - time.perf_counter()
        limit_s = max(_LEAST_TIME_S, left_s / (frame.num_stages - number))
        found.append(_solved(frame, parts, number, stage, mine, share_bytes, limit_s))
    return together(frame, stage_of, parts, found)


_LEAST_TIME_S = 0.5


def together(frame: Frame, stage_of: Sequence[int], parts: Split, found: Sequence[Found]) -> Staged:
    """Stages that are solved, with the step that they make together."""
    times = tuple(_times(each, frame.request) for each in found)
    without_run = Staged(frame, tuple(stage_of), parts, tuple(found), times, _NO_RUN)
    return replace(without_run, run=_run(without_run))


def _times(found: Found, request: Request) -> SiteTimes:
    """Seconds of a stage's sites; what runs again for backward counts to it."""
    choices = found.solution.choices
    times = site_times(found.annotated, choices, found.pricer, request.whole_outputs)
    again = SecondRuns.of(found.annotated, found.pricer).seconds(found.recomputed, choices)
    backward = times.backward_s.copy()
    backward[-1] += again / request.setting.microbatches
    return replace(times, backward_s=backward)


_NO_RUN = Run((), (), ())


def _run(staged: Staged) -> Run:
    frame, times = staged.frame, staged.times
    sent = [staged.transfer_s(stage) for stage in range(frame.num_stages - 1)]
    return _simulated(
        frame,
        [float(each.forward_s.sum()) for each in times],
        [float(each.backward_s.sum()) for each in times],
        [ahead for ahead, _ in sent],
        [back for _, back in sent],
        [float(each.once_s.sum()) for each in times],
    )


def about_s(frame: Frame, stage_of: Sequence[int]) -> float:
    """Seconds of a step of a cut at the prices of the model solved whole; nothing is solved."""
    chain, at = frame.chain, np.array(stage_of)
    forward, whole = chain.recompute_s, chain.time_s
    begins = [int(np.argmax(at == stage)) for stage in range(1, frame.num_stages)]
    far = [frame.rank_of(s) != frame.rank_of(s - 1) for s in range(1, frame.num_stages)]
    half_s = [float(chain.cut_s[i]) / 2 * crosses for i, crosses in zip(begins, far, strict=True)]

    def sums(values: FloatArray) -> list[float]:
        return [float(each) for each in np.bincount(at, values, frame.num_stages)]

    count = frame.request.setting.microbatches
    if frame.schedule.is_plain and count > SIMULATED:
        return plain_step_s(sums(whole), half_s, sums(chain.once_s), count)
    run = _simulated(
        frame, sums(forward), sums(whole - forward), half_s, half_s, sums(chain.once_s)
    )
    return run.makespan_s


SIMULATED = 64
"""Microbatches up to which cuts are priced by their events; a plain schedule has a closed form."""


def plain_step_s(
    stage_s: Sequence[float], half_s: Sequence[float], once_s: Sequence[float], count: int
) -> float:
    """Seconds of a step where each rank has one stage: the first microbatch's way there and back,
    and the slowest stage for each of the others (Narayanan et al. 2019, "PipeDream")."""
    return sum(stage_s) + (count - 1) * max(stage_s) + 2 * sum(half_s) + max(once_s)


def _simulated(
    frame: Frame,
    forward_s: list[float],
    backward_s: list[float],
    ahead_s: list[float],
    back_s: list[float],
    once_s: list[float],
) -> Run:
    """A step of stages that take so long: what is paid once comes after a rank's last event."""
    setting = frame.request.setting
    after = [0.0] * frame.size
    for stage, each in enumerate(once_s):
        after[frame.rank_of(stage)] += each
    orders = frame.schedule.orders(frame.size, setting.microbatches, not setting.training)
    return simulate(
        orders,
        Times(
            forward_s=forward_s,
            backward_s=backward_s,
            forward_transfer_s=ahead_s,
            backward_transfer_s=back_s,
            after_s=after,
        ),
    )


def _solved(
    frame: Frame,
    parts: Split,
    number: int,
    stage: Captured,
    mine: tuple[int, ...],
    memory_bytes: int,
    time_limit_s: float,
) -> Found:
    """One stage solved, once for all cuts that have it, and for all stages equal to it."""
    rank = frame.rank_of(number)
    choice = frame.meshes[rank]
    shared = tuple(path for path in parts.shared if number in parts.shared[path])
    first, last = number == 0, number == frame.num_stages - 1
    setting = frame.setting(number)
    alone = (mine, kind_of(choice), setting, shared, first, last)
    fastest = frame._fastest.get(alone)
    if fastest is not None and fastest.peak_memory_bytes <= memory_bytes:
        return fastest
    key = (*alone, memory_bytes)
    if key not in frame._solved:
        request = replace(
            frame.request,
            setting=setting,
            memory_bytes=memory_bytes,
            recompute=_recomputed_of(stage, frame.request),
            time_limit_s=time_limit_s,
        )
        (own,) = hints_by_stage(
            frame.captured, hints_on(frame.captured, frame.request, choice), [stage]
        )
        hints = (*own, *_tied(frame, choice.mesh, rank, shared))
        wires = frame.wires_on(stage, choice.mesh)
        try:
            frame._solved[key] = find_with_hints(
                stage, request, choice.mesh, hints, wires, frame._equal
            )
        except InfeasibleError as error:
            if _is_undecided(error):  # with more time there may be one
                raise _of_stage(frame, number, mine, error) from error
            frame._solved[key] = error
    result = frame._solved[key]
    if isinstance(result, InfeasibleError):
        raise _of_stage(frame, number, mine, result) from result
    if not result.limited:
        frame._fastest[alone] = result
    return result


def _is_undecided(error: InfeasibleError) -> bool:
    """Whether time ended a search that may have found something."""
    return isinstance(error, UndecidedError) or getattr(error, "bound", math.inf) < math.inf


def _of_stage(
    frame: Frame, number: int, mine: Sequence[int], error: InfeasibleError
) -> InfeasibleError:
    """The error of one stage, with what it holds."""
    names = frame.pieces.names
    return InfeasibleError(
        f"stage {number} ({names[mine[0]]} .. {names[mine[-1]]}, with up to "
        f"{frame.in_flight[number]} microbatches in flight): {error}"
    )


def _recomputed_of(stage: Captured, request: Request) -> str | tuple[str, ...]:
    """What is asked of a stage: of blocks that the user names, those that it has."""
    if isinstance(request.recompute, str):
        return request.recompute
    names = pieces_of(stage).names
    wanted = request.recompute
    return tuple(n for n in names if any(fnmatchcase(n, each) for each in wanted)) or "none"


def _share_of_memory(frame: Frame, number: int, stage_of: Sequence[int]) -> int:
    """The limit of a stage: the rank's, in the proportion of what its stages need."""
    together = frame.schedule.stages_of(frame.rank_of(number), frame.size)
    if len(together) == 1:
        return frame.request.memory_bytes
    needs = {stage: _need(frame, stage, stage_of) for stage in together}
    return int(frame.request.memory_bytes * needs[number] / sum(needs.values()))


def _need(frame: Frame, number: int, stage_of: Sequence[int]) -> float:
    """Bytes of a stage as the model solved whole has it."""
    chain, mine = frame.chain, np.array(stage_of) == number
    held = chain.resident_bytes + frame.in_flight[number] * chain.kept_bytes
    return float(held[mine].sum() + chain.transient_bytes[mine].max()) + 1.0


def _tied(frame: Frame, mesh: Mesh, rank: int, shared: Sequence[str]) -> tuple[Hint, ...]:
    """Parameters that several stages read are stored alike there, rank by rank."""
    whole = frame.whole(rank)
    stored = {
        site.path: site.candidates[choice].storage
        for site, choice in zip(whole.annotated.sites, whole.solution.choices, strict=True)
        if site.kind == "parameter"
    }
    result = []
    for path in shared:
        layout = stored[path] if frame.alike else Layout((B,) * mesh.ndim)
        assert layout is not None
        allowed = {axis: frozenset({e}) for axis, e in zip(mesh.axes, layout, strict=True)}
        result.append(Hint(path, "storage", allowed, f"{path!r} is read by several stages"))
    return tuple(result)


def too_little_memory(staged: Staged) -> InfeasibleError | None:
    """The error where the stages of a pipeline rank do not fit into its memory together."""
    most = staged.frame.request.memory_bytes
    for rank, needed in enumerate(staged.memory_bytes):
        if needed > most:
            return InfeasibleError(
                f"memory of {size(most)} a device is too small for pipeline rank {rank}, which "
                f"takes {size(needed)}; give more memory or devices, or smaller microbatches."
            )
    return None
