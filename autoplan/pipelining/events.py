"""When a pipeline's events happen: a discrete-event simulation of a schedule's orders.

The model: a rank computes one event at a time, in its order, each as soon as what it needs has
arrived. A transfer starts when its sender's event ends and takes its time whatever else happens:
it delays who receives, never who sends, and transfers do not share a wire. Between two stages of
one rank it is free. Before its first event a rank spends `before_s` (gathering parameters), after
its last one `after_s` (reducing gradients and the optimizer), without waiting for other ranks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from autoplan.errors import ConfigError
from autoplan.pipelining.schedules import Event, Orders


@dataclass(frozen=True)
class Times:
    """Seconds of a pipeline's parts, of one microbatch each.

    forward_s, backward_s: [stages]. input_s, weight_s: [stages], the halves of a backward that is
    split; left out, half of backward_s each, as of a linear layer, whose two gradients are one
    product each. forward_transfer_s, backward_transfer_s: [stages - 1], from stage i to i + 1 and
    from i + 1 to i; left out, free. before_s, after_s: [ranks]; left out, nothing.
    """

    forward_s: Sequence[float]
    backward_s: Sequence[float]
    input_s: Sequence[float] = ()
    weight_s: Sequence[float] = ()
    forward_transfer_s: Sequence[float] = ()
    backward_transfer_s: Sequence[float] = ()
    before_s: Sequence[float] = ()
    after_s: Sequence[float] = ()

    def of(self, event: Event) -> float:
        """Seconds that `event` computes."""
        stage = event.stage
        if event.kind == "forward":
            return self.forward_s[stage]
        if event.kind == "backward":
            return self.backward_s[stage]
        half = self.input_s if event.kind == "backward_input" else self.weight_s
        return half[stage] if half else self.backward_s[stage] / 2


@dataclass(frozen=True, slots=True)
class Timed:
    """An event and when it computes, in seconds from the start of the step."""

    event: Event
    rank: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Run:
    """A step as simulated: `events` of each rank in order; before_s, after_s: [ranks]."""

    events: tuple[tuple[Timed, ...], ...]
    before_s: tuple[float, ...]
    after_s: tuple[float, ...]

    @property
    def num_ranks(self) -> int:
        return len(self.events)

    @property
    def num_stages(self) -> int:
        return 1 + max((timed.event.stage for timed in self), default=-1)

    @property
    def num_microbatches(self) -> int:
        return 1 + max((timed.event.microbatch for timed in self), default=-1)

    @property
    def ends_s(self) -> tuple[float, ...]:
        """When each rank ends, with what follows its last event: [ranks]."""
        return tuple(
            (events[-1].end_s if events else before) + after
            for events, before, after in zip(self.events, self.before_s, self.after_s, strict=True)
        )

    @property
    def makespan_s(self) -> float:
        """Seconds until the last rank ends."""
        return max(self.ends_s, default=0.0)

    @property
    def busy_s(self) -> tuple[float, ...]:
        """Seconds that each rank works, before and after its events included: [ranks]."""
        return tuple(
            math.fsum([before, after, *(timed.end_s - timed.start_s for timed in events)])
            for events, before, after in zip(self.events, self.before_s, self.after_s, strict=True)
        )

    @property
    def idle_s(self) -> tuple[float, ...]:
        """Seconds that each rank waits until the last rank ends: [ranks]."""
        return tuple(self.makespan_s - busy for busy in self.busy_s)

    @property
    def bubble_fraction(self) -> float:
        """The share of all ranks' time that is idle, 0 to 1: sum(idle) / (makespan * ranks).

        GPipe and 1F1B on equal stages: (p-1) / (m+p-1). Narayanan et al. 2021 ("Efficient
        Large-Scale Language Model Training", section 2.2) divide by the ideal time instead,
        sum(idle) / sum(busy), which is (p-1) / m.
        """
        whole = self.makespan_s * self.num_ranks
        return math.fsum(self.idle_s) / whole if whole else 0.0

    def in_flight(self, stage: int) -> tuple[tuple[float, int], ...]:
        """(second, microbatches held from then on) at each change on `stage`.

        A microbatch is held from the start of its forward to the end of its backward, or of its
        weight half where the backward is split.
        """
        changes = []
        for timed in self:
            if timed.event.stage == stage and timed.event.kind == "forward":
                changes.append((timed.start_s, 1))
            elif timed.event.stage == stage and timed.event.kind != "backward_input":
                changes.append((timed.end_s, -1))
        held = 0
        steps = []
        for second, change in changes:  # of one rank: already in order
            held += change
            steps.append((second, held))
        return tuple(steps)

    @property
    def peak_in_flight(self) -> tuple[int, ...]:
        """The most microbatches that each stage holds at once: [stages]."""
        return tuple(
            max((held for _, held in self.in_flight(stage)), default=0)
            for stage in range(self.num_stages)
        )

    def __iter__(self) -> Iterator[Timed]:
        return chain.from_iterable(self.events)


def simulate(orders: Orders, times: Times) -> Run:
    """Runs `orders` with `times`; the head of this file says what waits for what.

    Raises ValueError where orders and times do not fit, and ConfigError where the orders block
    each other, naming the events that wait.
    """
    rank_of = _ranks_of_stages(orders)
    _check_sizes(times, len(rank_of), len(orders))
    before_s = tuple(times.before_s) or (0.0,) * len(orders)
    after_s = tuple(times.after_s) or (0.0,) * len(orders)
    events: list[list[Timed]] = [[] for _ in orders]
    ended: dict[_Result, float] = {}
    waiting: dict[_Result, list[int]] = {}
    ready = deque(range(len(orders)))
    while ready:
        rank = ready.popleft()
        clock = events[rank][-1].end_s if events[rank] else before_s[rank]
        for event in orders[rank][len(events[rank]) :]:
            needed = _needed(event, len(rank_of))
            missing = next((result for result in needed if result not in ended), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            arrivals = (ended[r] + _transfer_s(r, event, rank_of, times) for r in needed)
            start = max([clock, *arrivals])
            clock = start + times.of(event)
            events[rank].append(Timed(event, rank, start, clock))
            result = _result(event)
            if result is not None:
                ended[result] = clock
                ready.extend(waiting.pop(result, ()))
    _check_all_ran(orders, events, len(rank_of), ended)
    return Run(tuple(map(tuple, events)), before_s, after_s)


@dataclass(frozen=True, slots=True)
class _Result:
    """What an event leaves for others: a stage's output, or the gradient of its input."""

    kind: Literal["output", "gradient"]
    stage: int
    microbatch: int


def _result(event: Event) -> _Result | None:
    if event.kind == "backward_weight":
        return None
    kind: Literal["output", "gradient"] = "output" if event.kind == "forward" else "gradient"
    return _Result(kind, event.stage, event.microbatch)


def _needed(event: Event, num_stages: int) -> tuple[_Result, ...]:
    """What must have ended, and arrived, before `event` starts."""
    stage, microbatch = event.stage, event.microbatch
    if event.kind == "forward":
        return (_Result("output", stage - 1, microbatch),) if stage else ()
    if event.kind == "backward_weight":
        return (_Result("gradient", stage, microbatch),)
    own = _Result("output", stage, microbatch)
    if stage == num_stages - 1:
        return (own,)
    return own, _Result("gradient", stage + 1, microbatch)


def _transfer_s(result: _Result, event: Event, rank_of: Sequence[int], times: Times) -> float:
    """Seconds from the end of what made `result` until `event` has it."""
    if rank_of[result.stage] == rank_of[event.stage]:
        return 0.0
    if result.kind == "output":
        return times.forward_transfer_s[result.stage] if times.forward_transfer_s else 0.0
    return times.backward_transfer_s[event.stage] if times.backward_transfer_s else 0.0


def _ranks_of_stages(orders: Orders) -> tuple[int, ...]:
    """The rank of each stage, read off the orders; ValueError where they name one twice."""
    rank_of: dict[int, int] = {}
    seen: set[Event] = set()
    for rank, order in enumerate(orders):
        for event in order:
            if rank_of.setdefault(event.stage, rank) != rank:
                raise ValueError(
                    f"stage {event.stage} is on ranks {rank_of[event.stage]} and {rank}"
                )
            if event in seen:
                raise ValueError(f"{event} stands twice in the order of rank {rank}")
            seen.add(event)
    if sorted(rank_of) != list(range(len(rank_of))):
        raise ValueError(f"stages are numbered from 0 without gaps, got {sorted(rank_of)}")
    return tuple(rank_of[stage] for stage in range(len(rank_of)))


def _check_sizes(times: Times, num_stages: int, num_ranks: int) -> None:
    cuts = max(0, num_stages - 1)
    sizes = {
        **dict.fromkeys(("forward_s", "backward_s"), (num_stages,)),
        **dict.fromkeys(("input_s", "weight_s"), (num_stages, 0)),
        **dict.fromkeys(("forward_transfer_s", "backward_transfer_s"), (cuts, 0)),
        **dict.fromkeys(("before_s", "after_s"), (num_ranks, 0)),
    }
    for name, allowed in sizes.items():
        values = getattr(times, name)
        if len(values) not in allowed:
            raise ValueError(f"{name} has {len(values)} times, expected {allowed[0]}")
        if not all(0 <= value < math.inf for value in values):
            raise ValueError(f"{name} holds a time that is negative or not finite: {values}")


def _check_all_ran(
    orders: Orders,
    events: Sequence[Sequence[Timed]],
    num_stages: int,
    ended: Mapping[_Result, float],
) -> None:
    """Raises ConfigError that names the event at which each rank waits, and for what."""
    stuck = []
    for rank, order in enumerate(orders):
        if len(events[rank]) < len(order):
            event = order[len(events[rank])]
            missing = next(r for r in _needed(event, num_stages) if r not in ended)
            stuck.append(
                f"rank {rank} before the {event} for the {missing.kind} of stage {missing.stage}"
            )
    if stuck:
        raise ConfigError(
            "the pipeline's order never ends, its ranks wait for each other: "
            f"{'; '.join(stuck)}; take an order of `Schedule.orders`."
        )
