"""Steps of pipelines of hand-written stages, on real ranks and in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.pipelining.schedules import Event, Schedule, read_schedule
from autoplan.runtime.executor import Executor, SimulatedExecutor
from autoplan.runtime.links import Chain, Place
from autoplan.runtime.pipeline import pipeline_place, run_in_memory
from autoplan.runtime.program import TensorSpec
from autoplan.runtime.simulation import shard
from autoplan.runtime.stage_step import StageStep
from tests.runtime.live_bytes import LiveBytes
from tests.runtime.stage_programs import (
    ROWS,
    SEED,
    STORAGE,
    WIDTH,
    Batches,
    GroupExecutor,
    batch_of,
    local_parameters,
    names_of,
    program,
    reference,
    traced,
)


@dataclass(frozen=True)
class Case:
    """A schedule on `ranks` pipeline ranks of `mesh` each."""

    schedule: str
    ranks: int
    microbatches: int
    mesh: Mesh = field(default_factory=Mesh.of)
    forward_only: bool = False
    recompute: bool = False

    def __str__(self) -> str:
        kind = "forward only" if self.forward_only else "recompute" * self.recompute
        return f"{self.schedule} {self.ranks}x{self.mesh.num_devices} m{self.microbatches} {kind}"


class Counted(StageStep):
    """Notes how many microbatches are held at most."""

    most = 0

    def forward(self, *args: Any) -> Any:
        sent = super().forward(*args)
        self.most = max(self.most, self.in_flight)
        return sent


@dataclass
class Ready:
    """A stage with its weights, for one step."""

    step: Counted
    feed: Batches
    weights: dict[str, list[Tensor]]
    values: list[Any]


FIRST_STEP = 5


def prepare(case: Case, number: int, executor: Executor, ranks: Sequence[int]) -> Ready:
    """`ranks`: of the stage's mesh, that are present here."""
    total = read_schedule(case.schedule).num_stages(case.ranks)
    programs = [program(number, total, case.mesh, rank, case.recompute) for rank in ranks]
    weights = local_parameters(number, case.mesh, ranks)
    with torch.set_grad_enabled(not case.forward_only):
        inputs = [executor.rebuild(None, each) for each in weights.values()]
        values = executor.run("prologue", programs, inputs)
        feed = Batches(executor, number, total)
        step = Counted(
            executor,
            programs,
            values,
            feed,
            number=number,
            microbatches=case.microbatches,
            first_step=FIRST_STEP,
            grad=not case.forward_only,
        )
    return Ready(step, feed, weights, values)


@dataclass
class Outcome:
    """What a process saw of a step: by stage, and of all its stages together."""

    loss: Tensor | None
    grads: dict[int, dict[str, list[Tensor | None]]]
    seen: Tensor | None
    outputs: list[Tensor]
    most: dict[int, int]
    trace: list[Event]


def outcome(case: Case, stages: Sequence[Ready], trace: list[Event]) -> Outcome:
    loss, seen, outputs = None, None, []
    for ready in stages:
        if ready.step.losses:
            losses = [ready.step.losses[each] for each in range(case.microbatches)]
            loss = torch.stack(losses).mean()
            take = ready.step.executor.take
            outputs = [take(ready.feed.outputs[each][1]) for each in range(case.microbatches)]
        if ready.step.number == 0:
            seen = ready.feed.seen
    return Outcome(
        loss,
        {r.step.number: {n: [w.grad for w in ws] for n, ws in r.weights.items()} for r in stages},
        seen,
        outputs,
        {r.step.number: r.step.most for r in stages},
        trace,
    )


def in_memory(case: Case) -> Outcome:
    schedule = read_schedule(case.schedule)
    total = schedule.num_stages(case.ranks)
    stages = []
    for number in range(total):
        executor = SimulatedExecutor(case.mesh, torch.device("cpu"), SEED)
        stages.append(prepare(case, number, executor, list(executor.ranks)))
    trace: list[Event] = []
    steps = [ready.step for ready in stages]
    run_in_memory(schedule, steps, case.ranks, case.microbatches, case.forward_only, trace)
    for step in steps:
        if not case.forward_only:
            step.end()
    return outcome(case, stages, trace)


def places(
    rank: int, case: Case, timeout_s: float = 60.0
) -> tuple[Place, list[dist.ProcessGroup], int]:
    """This rank's place in the pipeline, the groups of all stages' meshes, its rank in its own."""
    width, timeout = case.mesh.num_devices, timedelta(seconds=timeout_s)
    members = [list(range(g * width, (g + 1) * width)) for g in range(case.ranks)]
    groups = [dist.new_group(each, timeout=timeout) for each in members]
    place = pipeline_place(case.ranks, width, torch.device("cpu"), timeout)
    return place, groups, rank % width


def on_ranks(rank: int, cases: Sequence[Case], timeout_s: float = 60.0) -> list[Outcome]:
    """All cases on this rank; they have the same number of ranks and the same mesh."""
    from autoplan.runtime.torch_stage import RankRunner

    place, groups, at = places(rank, cases[0], timeout_s)
    results = []
    runners: dict[str, RankRunner] = {}
    for case in cases:
        schedule = read_schedule(case.schedule)
        executor = GroupExecutor(case.mesh, at, groups[place.rank])
        numbers = schedule.stages_of(place.rank, place.size)
        stages = [prepare(case, number, executor, [at]) for number in numbers]
        trace: list[Event] = []
        runner = runners.setdefault(case.schedule, RankRunner(schedule, place))
        steps = [ready.step for ready in stages]
        runner.run(steps, case.microbatches, case.forward_only, trace)
        for step in steps:
            if not case.forward_only:
                step.end()
        results.append(outcome(case, stages, trace))
    return results


def check(case: Case, outcomes: Sequence[Outcome], ranks: Sequence[int]) -> None:
    """Loss, gradients, buffer and outputs are those of the unsplit model; `ranks`: per outcome.

    In memory there is one outcome, with the gradients of all ranks of the mesh.
    """
    schedule = read_schedule(case.schedule)
    total = schedule.num_stages(case.ranks)
    expected = reference(total, case.microbatches, FIRST_STEP)
    found: set[tuple[int, str, int]] = set()
    with_loss = 0
    for one, first in zip(outcomes, ranks, strict=True):
        for number, grads in one.grads.items():
            for name, locals_ in grads.items():
                for offset, grad in enumerate(locals_):
                    at = first + offset
                    whole = expected["grads"][number][name]
                    if case.forward_only:
                        assert grad is None
                        continue
                    found.add((number, name, at))
                    if whole is None:
                        assert grad is None or not grad.any(), f"{case}: {name} of stage {number}"
                        continue
                    layout = Layout((STORAGE[name],) * case.mesh.ndim)
                    mine = shard(whole, layout, case.mesh, at)
                    assert grad is not None, f"{case}: {name} of stage {number}"
                    torch.testing.assert_close(
                        grad, mine, rtol=1e-9, atol=1e-12, msg=f"{case}: {name} of stage {number}"
                    )
        if one.loss is not None:
            with_loss += 1
            torch.testing.assert_close(one.loss, expected["loss"], rtol=1e-9, atol=0.0)
            for ours, theirs in zip(one.outputs, expected["outputs"], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        if one.seen is not None:
            torch.testing.assert_close(one.seen, expected["seen"], rtol=1e-12, atol=0.0)
    assert with_loss
    if not case.forward_only:
        assert len(found) == total * len(STORAGE) * case.mesh.num_devices


# -- memory -----------------------------------------------------------------------------------

VALUE = TensorSpec("h", (64, 32), torch.float64, Layout(), True)
VALUE_BYTES, GRAD_BYTES = 64 * 32 * 8, 2 * 32 * 32 * 8
"""Of everything that a stage of `peak_on_rank` makes, and of its weights' gradients."""


class Ones:
    """Feeds the first stage."""

    def inputs(self, microbatch: int) -> list[Any]:
        return [torch.ones(VALUE.shape, dtype=VALUE.dtype)]

    def take(self, microbatch: int, outputs: list[Any], buffers: list[Any]) -> None:
        pass


class Nothing(Ones):
    def inputs(self, microbatch: int) -> list[Any]:
        return []


def peak_on_rank(rank: int, case: Case) -> tuple[int, int]:
    """Bytes at the peak of a step and after it, above what was there before."""
    from autoplan.runtime.torch_stage import RankRunner

    place, groups, _ = places(rank, case)
    number, total = place.rank, case.ranks
    first, last = number == 0, number == total - 1

    def body(comm: Any, w0: Any, w1: Any, x: Any) -> tuple[Any, ...]:
        made = torch.matmul(torch.matmul(x * 2.0, w0), w1) + 1.0
        return (made.sum(),) if last else (made,)

    plain = program(number, total)
    stage = replace(
        plain,
        body=traced(body, ["comm", "w0", "w1", "x"]),
        received=() if first else (VALUE,),
        sent=() if last else (VALUE,),
        updates=(),
        outputs=plain.outputs[:1],
    )
    executor = GroupExecutor(case.mesh, 0, groups[place.rank])
    weights = [torch.ones(32, 32, dtype=torch.float64).requires_grad_() for _ in range(2)]
    feed = Ones() if first else Nothing()
    step = StageStep(
        executor, [stage], weights, feed, number=number, microbatches=case.microbatches
    )
    runner = RankRunner(read_schedule(case.schedule), place)
    with LiveBytes(weights) as meter:
        start = meter.live_bytes
        runner.run([step], case.microbatches)
        step.losses.clear()
        step.end()
    return meter.peak().num_bytes - start, meter.live_bytes - start


# -- without microbatches, by autograd --------------------------------------------------------

OUTPUTS = [
    TensorSpec("loss", (), torch.float64, Layout(), True),
    TensorSpec("h", (ROWS, WIDTH), torch.float64, Layout(), True),
]


def naive_on_ranks(rank: int, cases: Sequence[Case], roots: Sequence[str]) -> list[Outcome]:
    """Forward and the user's own backward of every case, from output `root`.

    What stands as `seen` is the gradient of the argument x.
    """
    place, groups, at = places(rank, cases[0])
    results = []
    for case, root in zip(cases, roots, strict=True):
        executor = GroupExecutor(case.mesh, at, groups[place.rank])
        schedule = read_schedule(case.schedule)
        numbers = schedule.stages_of(place.rank, place.size)
        stages = {number: prepare(case, number, executor, [at]) for number in numbers}
        with torch.set_grad_enabled(root != "nothing"):
            x, outputs = _naive_forward(schedule, stages, place)
            loss, h = outputs
            if root != "nothing":
                {"loss": loss, "h": h.sum()}[root].backward()
        assert loss.requires_grad == (root != "nothing")
        one = outcome(case, list(stages.values()), [])
        results.append(replace(one, loss=loss.detach(), outputs=[h.detach()], seen=x.grad))
    return results


def _naive_forward(
    schedule: Schedule, stages: dict[int, Ready], place: Place
) -> tuple[Tensor, list[Tensor]]:
    total = schedule.num_stages(place.size)
    x, t = batch_of(0)
    x.requires_grad_()
    chain = Chain(place)
    (entered,) = chain.enter([x])
    named = {"x": entered, "t": t, "seen": torch.zeros(WIDTH, dtype=torch.float64)}
    outputs: list[Any] = [None, None]
    sent: list[Any] = []
    for number, ready in stages.items():
        before, after = (
            schedule.rank_of(min(max(n, 0), total - 1), place.size)
            for n in (number - 1, number + 1)
        )
        buffers, inputs, _ = names_of(number, total)
        step = ready.step
        received = sent if number else []
        if before != place.rank:
            received = chain.receive(step.program, before)
        for comm in step.executor.comms:
            comm.step = FIRST_STEP
        given = [*ready.values, *(named[n] for n in (*buffers, *inputs)), *received]
        results = step.executor.run("body", [step.program], given)
        if number == total - 1:
            outputs = results
        else:
            sent = results[: len(step.sent)]
            if after != place.rank:
                chain.send(sent, step.program, after)
    last = schedule.rank_of(total - 1, place.size)
    return x, chain.join(outputs, [last, last], OUTPUTS)
