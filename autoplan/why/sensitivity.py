"""Sensitivity: how far rates, memory and batch may move before another plan is best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from autoplan.plan import Plan
from autoplan.units import seconds, size
from autoplan.why.changes import shown
from autoplan.why.origin import Origin, known_origin
from autoplan.why.tables import table
from autoplan.why.turns import TIE, TRIED, WAYS, Turn, Turns, Way

_NUM_SHOWN = 4
_NUM_QUESTIONS = 60
"""Times that the plan is solved again, about: each has its share of the time limit."""


@dataclass(frozen=True)
class Sensitivity:
    """Two turns of every quantity; `now`: what each is."""

    mesh: str
    now: dict[str, str]
    turns: tuple[Turn, ...]
    notes: tuple[str, ...] = ()

    def turn(self, quantity: str, way: Way) -> Turn:
        """The turn of one quantity, such as "node bandwidth"; KeyError for another."""
        for each in self.turns:
            if (each.quantity, each.way) == (quantity, way):
                return each
        raise KeyError(f"no turn {way} of {quantity!r}; the quantities are {', '.join(self.now)}")

    def __str__(self) -> str:
        rows, details = [], []
        for name, now in self.now.items():
            ends = [self.turn(name, way) for way in WAYS]
            rows.append((name, now, *map(_end, ends)))
            details += [line for each in ends for line in _details(each)]
        head = ("", "now", "another plan below", "another plan above")
        lines = [f"where the plan changes, one quantity at a time, on mesh {self.mesh}"]
        lines += [table(head, rows), *details, *(f"  {each}" for each in self.notes)]
        return "\n".join(lines)


def _end(turn: Turn) -> str:
    if turn.factor is None:
        return turn.note or f"none within x{TRIED[-1]:g}"
    return f"x{turn.factor:.3g} ({turn.value})"


def _details(turn: Turn) -> Iterator[str]:
    if turn.factor is None:
        return
    time = f"; a step {seconds(turn.step_time_s)}" if turn.step_time_s is not None else ""
    if turn.step_time_s is not None:
        time += f", {_kept(turn)}"
    yield f"  {turn.quantity} {turn.way} x{turn.factor:.3g}{time}"
    if turn.note:
        yield f"    {turn.note}"
    yield from (f"    {line}" for line in shown(turn.changes, _NUM_SHOWN))


def _kept(turn: Turn) -> str:
    """What this plan costs there, compared."""
    if turn.kept_time_s is None or not turn.step_time_s:
        return "where this plan does not work"
    return f"with this plan {100 * (turn.kept_time_s / turn.step_time_s - 1):.2g}% more"


def sensitivity(plan: Plan, origin: Origin | None) -> Sensitivity:
    """Where the plan changes: the nearest factor, below and above 1, of each quantity by itself.

    Bandwidth of a link within and between nodes, rate of arithmetic, memory limit, and batch, if
    the example arguments are known; from 1/16 to 16, by bisection to 5 percent (memory: to the
    byte). A change is a plan that is faster there than this one by more than 1e-6; mesh and all
    else stay. Every time the plan is solved again it has its share of the time limit; what is not
    found in it is taken for no change. Raises ConfigError for a plan without its model.
    """
    origin = known_origin(origin, "sensitivity()")
    question, given = origin.answer(plan)
    share_s = origin.request.time_limit_s / _NUM_QUESTIONS
    asked = Turns(plan, origin, question, given, share_s)
    best = question.solve(start=given.choices)
    notes = []
    if best.objective < given.objective * (1 - TIE):
        asked = replace(asked, given=best)
        notes.append(f"this plan is not the best as things are: {seconds(best.step_time_s)} is")
    now, turns = dict[str, str](), []
    for name, value, found in (
        *asked.hardware(),
        ("memory limit", size(question.request.memory_bytes), asked.memory()),
        ("batch", asked.batch_now, asked.batch()),
    ):
        now[name] = value
        turns += found
    return Sensitivity(str(plan.mesh), now, tuple(turns), tuple(notes))
