"""Spending: what a step's time goes to, from the pieces that the cost model prices it by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoplan.html.wiring import Asked
from autoplan.plan import Plan
from autoplan.trace.pieces import pieces_of


@dataclass(frozen=True)
class Share:
    """A part of the step: seconds of the average rank."""

    name: str
    time_s: float


@dataclass(frozen=True)
class Spending:
    """Seconds of a step on the average rank; `shares` sum to the step.

    `moved`: of the share "communicating", by kind and axis. `shares` are empty where they are not
    known: a plan from a file has its collectives, but not their part of full buckets.
    """

    shares: tuple[Share, ...]
    moved: Mapping[tuple[str, str], float]

    def seconds(self, name: str) -> float:
        """Of one share; 0.0 where there is none."""
        return next((each.time_s for each in self.shares if each.name == name), 0.0)

    @property
    def is_known(self) -> bool:
        """Whether computing and communicating are known apart."""
        return any(each.name == "computing" for each in self.shares)


def spending_of(plan: Plan, asked: Sequence[Asked]) -> Spending:
    """Work, communication and waiting of a step, as its trace has them."""
    pipeline = plan.pipeline
    waiting_s = pipeline.bubble * plan.step_time_s if pipeline is not None else 0.0
    waiting = (Share("waiting", waiting_s),) if pipeline is not None else ()
    if not asked:
        working = Share("working", plan.step_time_s - waiting_s)
        return Spending((working, *waiting) if pipeline is not None else (), {})
    moved: dict[tuple[str, str], float] = {}
    for each in asked:
        for key, time_s in _moved(plan, each).items():
            ranks = pipeline.size if pipeline is not None else 1
            moved[key] = moved.get(key, 0.0) + time_s / ranks
    communicating_s = sum(moved.values())
    computing_s = max(0.0, plan.step_time_s - waiting_s - communicating_s)
    parts = Share("computing", computing_s), Share("communicating", communicating_s)
    return Spending((*parts, *waiting), moved)


def _moved(plan: Plan, asked: Asked) -> dict[tuple[str, str], float]:
    """Seconds of a step by kind of collective and axis, of a plan or a stage."""
    pieces = pieces_of(asked.question, asked.given.choices)
    once = (*pieces.before, *pieces.after)
    body = (*pieces.forward, *pieces.backward) if plan.training else pieces.forward
    found: dict[tuple[str, str], float] = {}
    for times, moments in ((1, once), (plan.microbatches, body)):
        for piece in (piece for moment in moments for piece in moment.pieces):
            if piece.track == "communication":
                key = str(piece.args["kind"]), str(piece.args["axis"])
                found[key] = found.get(key, 0.0) + times * piece.time_s
    return found
