"""The pipeline schedules that users name, as data: which rank computes what, in which order.

The orders are torch's own: its schedule classes are built on stand-in stages, without processes,
and say what they would run. What a schedule holds at most follows from its order alone.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, product
from typing import Any, Literal, TypeAlias

from autoplan.errors import AutoplanError, ConfigError

Kind = Literal["forward", "backward", "backward_input", "backward_weight"]


@dataclass(frozen=True, slots=True)
class Event:
    """One stage's work on one microbatch.

    "backward" is whole; a split backward is "backward_input", which the stage before waits for, and
    "backward_weight" at any later time (Qi et al. 2023, "Zero Bubble Pipeline Parallelism").
    """

    kind: Kind
    stage: int
    microbatch: int

    def __str__(self) -> str:
        kind = self.kind.replace("_", " of ")
        return f"{kind} of microbatch {self.microbatch} on stage {self.stage}"


Orders: TypeAlias = tuple[tuple[Event, ...], ...]
"""Of each rank, its events in order."""


@dataclass(frozen=True)
class Schedule:
    """A schedule by its name here and in torch; `chunks` stages stand on each rank.

    `v_shaped`: the stages walk down the ranks and back up, so that the middle two share a rank;
    otherwise they go round, stage s on rank s mod ranks.
    """

    name: str
    torch_name: str
    chunks: int = 1
    v_shaped: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether every rank has one stage, and runs each backward as a whole."""
        return self.name in ("naive", "gpipe", "1f1b")

    def num_stages(self, num_ranks: int) -> int:
        return self.chunks * num_ranks

    def rank_of(self, stage: int, num_ranks: int) -> int:
        """The pipeline rank that holds `stage`."""
        lap, place = divmod(stage, num_ranks)
        return num_ranks - 1 - place if self.v_shaped and lap % 2 else place

    def stages_of(self, rank: int, num_ranks: int) -> tuple[int, ...]:
        """The stages on `rank`, in the model's order."""
        stages = range(self.num_stages(num_ranks))
        return tuple(stage for stage in stages if self.rank_of(stage, num_ranks) == rank)

    def check(self, num_ranks: int, num_microbatches: int) -> None:
        """Raises ConfigError with the fix where torch's schedule cannot run these numbers."""
        for what, value in (("pipeline ranks", num_ranks), ("microbatches", num_microbatches)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{what} must be a positive whole number, got {value!r}.")
        if self.chunks > 1 and num_ranks == 1:
            raise ConfigError(
                f"schedule {self.name!r} with {self.chunks} stages per rank needs at least 2 "
                "pipeline ranks, got 1: on one rank there is no bubble to fill; use 'gpipe'."
            )
        if self.name == "naive" and num_microbatches > 1:
            raise ConfigError(
                "schedule 'naive' runs the whole batch as 1 microbatch, got "
                f"{num_microbatches}; use schedule 'gpipe', or microbatches=1."
            )
        least = _least_microbatches(self, num_ranks)
        if num_microbatches < least:
            raise ConfigError(
                f"schedule {self.name!r} on {num_ranks} pipeline ranks needs at least {least} "
                f"microbatches, got {num_microbatches}; use microbatches={least}, or schedule "
                "'gpipe', which takes any number."
            )
        if not _fills_rounds(self, num_ranks, num_microbatches):
            fewer, more = (
                next(n for n in numbers if _fills_rounds(self, num_ranks, n))
                for numbers in (range(num_microbatches, 0, -1), count(num_microbatches))
            )
            raise ConfigError(
                f"schedule {self.name!r} on {num_ranks} pipeline ranks takes microbatches in "
                f"{num_microbatches // num_ranks} equal rounds, which {num_microbatches} "
                f"microbatches do not fill; use {fewer} or {more}."
            )

    def orders(self, num_ranks: int, num_microbatches: int, forward_only: bool = False) -> Orders:
        """Of each rank, what it computes, in order; raises ConfigError as `check` does.

        Overlapped pairs of forward and backward (DualPipeV) stand one after the other, as torch
        runs them. `forward_only` leaves the backward out: what remains waits for no more than
        before, so that it cannot block.
        """
        self.check(num_ranks, num_microbatches)
        orders = _torch_orders(self, num_ranks, num_microbatches)
        if not forward_only:
            return orders
        return tuple(tuple(e for e in order if e.kind == "forward") for order in orders)

    def in_flight(self, num_ranks: int, num_microbatches: int) -> tuple[int, ...]:
        """Of each stage, the most microbatches that it holds at once: [stages].

        A microbatch is held from its forward to the end of its backward, or of its weight half
        where the backward is split. 1F1B holds min(microbatches, ranks - stage), GPipe all.
        """
        return tuple(most for most, _ in self.in_flight_in_phases(num_ranks, num_microbatches))

    def in_flight_in_phases(
        self, num_ranks: int, num_microbatches: int
    ) -> tuple[tuple[int, int], ...]:
        """Of each stage, what `in_flight` says, and the most after its first backward: [stages].

        At least 1 each.
        """
        held: Counter[int] = Counter()
        most: Counter[int] = Counter()
        later: Counter[int] = Counter()
        for order in self.orders(num_ranks, num_microbatches):
            for event in order:
                at = event.stage
                if event.kind == "forward":
                    held[at] += 1
                    most[at] = max(most[at], held[at])
                elif event.kind != "backward_input":
                    held[at] -= 1
                    later.setdefault(at, held[at])
                if at in later:
                    later[at] = max(later[at], held[at], 1)
        return tuple((most[at], later[at]) for at in range(self.num_stages(num_ranks)))

    def refused(self, backend: str, torch_version: str) -> str | None:
        """Why the schedule cannot run here, or None; `backend` carries tensors between stages."""
        numbers = re.match(r"(\d+)\.(\d+)", torch_version)
        old = numbers is not None and tuple(map(int, numbers.groups())) < (2, 13)
        if not (self.v_shaped and backend == "gloo" and old):
            return None
        return (
            f"schedule {self.name!r} hangs on gloo under torch {torch_version}: its last rank "
            "holds two neighbouring stages and sends to itself; use torch 2.13 or newer, or "
            "schedule 'zero-bubble'"
        )


SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        Schedule("naive", "GPipe"),
        Schedule("gpipe", "GPipe"),
        Schedule("1f1b", "1F1B"),
        Schedule("interleaved-1f1b", "Interleaved1F1B", chunks=2),
        Schedule("zero-bubble", "InterleavedZeroBubble", chunks=2),
        Schedule("zbv", "ZBVZeroBubble", chunks=2, v_shaped=True),
        Schedule("dualpipev", "DualPipeV", chunks=2, v_shaped=True),
    )
}
"""By name, with the stages per rank that each has by default."""

_IN_ROUNDS = "Interleaved1F1B", "InterleavedZeroBubble"

_SHORT = {"interleaved": "interleaved-1f1b", "zb": "zero-bubble", "zb1p": "zero-bubble"}


def read_schedule(name: str, chunks: int | None = None) -> Schedule:
    """The schedule called `name`, with `chunks` stages per rank where it leaves a choice.

    Case and punctuation do not matter, torch's names are known too: "GPipe", "ZBVZeroBubble".
    Raises ConfigError for an unknown name, with the nearest one, and for chunks that do not fit.
    """
    spelled = {_plain(each): each for each in SCHEDULES} | _SHORT
    spelled |= {_plain(each.torch_name): each.name for each in SCHEDULES.values() if each != _NAIVE}
    plain = _plain(name) if isinstance(name, str) else ""
    if plain not in spelled:
        near = difflib.get_close_matches(plain, spelled, n=1)
        meant = f" (did you mean {spelled[near[0]]!r}?)" if near else ""
        known = ", ".join(map(repr, SCHEDULES))
        raise ConfigError(f"no pipeline schedule is called {name!r}{meant}; there are {known}.")
    schedule = SCHEDULES[spelled[plain]]
    if chunks is None or chunks == schedule.chunks:
        return schedule
    _check_chunks(schedule, chunks)
    return replace(schedule, chunks=chunks)


_NAIVE = SCHEDULES["naive"]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _check_chunks(schedule: Schedule, chunks: int) -> None:
    if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
        raise ConfigError(f"stages per rank must be a positive whole number, got {chunks!r}.")
    if schedule.torch_name not in _IN_ROUNDS:
        raise ConfigError(
            f"schedule {schedule.name!r} has exactly {schedule.chunks} stage"
            f"{'s' * (schedule.chunks > 1)} per rank, got {chunks}; leave the number out, or use "
            "'interleaved-1f1b' or 'zero-bubble', which take any."
        )
    if chunks == 1 and schedule.name == "interleaved-1f1b":
        raise ConfigError(
            "schedule 'interleaved-1f1b' needs at least 2 stages per rank, got 1; use '1f1b'."
        )


def _least_microbatches(schedule: Schedule, num_ranks: int) -> int:
    """What torch's constructors ask for."""
    return {"1F1B": num_ranks, "DualPipeV": 2 * num_ranks}.get(schedule.torch_name, 1)


def _fills_rounds(schedule: Schedule, num_ranks: int, num_microbatches: int) -> bool:
    """Whether torch can cut the microbatches into equal rounds of `num_ranks` or a few more."""
    rounds = max(1, num_microbatches // num_ranks)
    return schedule.torch_name not in _IN_ROUNDS or num_microbatches % rounds == 0


# What follows knows torch's schedule classes from the inside: `_step_microbatches` and
# `_initialize_stage` of a schedule, `pipeline_order` and the fields of its actions. Tried with
# torch 2.11, 2.13 and 2.14, which give equal orders. torch.distributed.pipelining is imported
# inside, so that who plans no pipeline does not wait for it.


@lru_cache(maxsize=256)
def _torch_orders(schedule: Schedule, num_ranks: int, num_microbatches: int) -> Orders:
    from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

    cls = get_schedule_class(schedule.torch_name)
    if issubclass(cls, PipelineScheduleSingle):
        orders = tuple(
            _recorded(cls, stage, num_ranks, num_microbatches) for stage in range(num_ranks)
        )
    else:
        own = [_StandIn(s, schedule, num_ranks) for s in schedule.stages_of(0, num_ranks)]
        planned = cls(own, num_microbatches).pipeline_order
        orders = tuple(tuple(_events(planned[rank])) for rank in range(num_ranks))
    _check_complete(orders, schedule, num_ranks, num_microbatches)
    return orders


def _check_complete(
    orders: Orders, schedule: Schedule, num_ranks: int, num_microbatches: int
) -> None:
    """Every microbatch passes every stage once; guards against a torch to come."""
    all_work = sorted(product(range(schedule.num_stages(num_ranks)), range(num_microbatches)))
    kinds = ("forward",), ("backward", "backward_input"), ("backward", "backward_weight")
    for some in kinds:
        work = [(e.stage, e.microbatch) for order in orders for e in order if e.kind in some]
        if sorted(work) != all_work:
            raise AutoplanError(
                f"the order that this torch gives for schedule {schedule.name!r} does not run "
                f"{some[0]} once per stage and microbatch; use torch 2.11 to 2.14."
            )


def _recorded(cls: Any, stage: int, num_ranks: int, num_microbatches: int) -> tuple[Event, ...]:
    """What the loop of a schedule with one stage per rank runs on `stage`.

    These loops do not read `pipeline_order`; that of 1F1B even names other microbatches on the last
    stage (1 to m instead of 0 to m-1, torch 2.11 to 2.14).
    """
    stand_in = _StandIn(stage, Schedule(cls.__name__, cls.__name__), num_ranks)
    schedule = cls(stand_in, num_microbatches)
    schedule._initialize_stage = lambda *_: None  # it would talk to the other ranks
    schedule._step_microbatches()
    return tuple(stand_in.ran)


def _events(actions: Iterable[Any]) -> Iterator[Event]:
    """The computation among torch's actions, overlapped pairs one after the other."""
    kinds: dict[str, Kind] = {
        "F": "forward",
        "B": "backward",
        "I": "backward_input",
        "W": "backward_weight",
    }
    for action in actions:
        if action is None:  # a bubble
            continue
        if action.sub_actions is not None:
            yield from _events(action.sub_actions)
        elif action.computation_type.value in kinds:
            kind = kinds[action.computation_type.value]
            yield Event(kind, action.stage_index, action.microbatch_index)


class _StandIn:
    """What torch's schedules ask of a stage, without a process group: it notes what is run."""

    def __init__(self, stage: int, schedule: Schedule, num_ranks: int) -> None:
        self.stage_index = stage
        self.num_stages = schedule.num_stages(num_ranks)
        self.group_size = num_ranks
        self.group_rank = schedule.rank_of(stage, num_ranks)
        self.is_first = stage == 0
        self.is_last = stage == self.num_stages - 1
        self.submod = None
        self.ran: list[Event] = []

    def forward_one_chunk(self, microbatch: int, *_: Any, **__: Any) -> None:
        self.ran.append(Event("forward", self.stage_index, microbatch))

    def backward_one_chunk(self, microbatch: int, *_: Any, **__: Any) -> None:
        self.ran.append(Event("backward", self.stage_index, microbatch))

    def perform_reduce_grad(self, *_: Any) -> None:
        pass

    def _no_messages(self, microbatch: int) -> list[Any]:
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = _no_messages
