"""Turns: where one quantity, moved by itself, makes another plan the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autoplan.cost_models import AxisLink, Cluster
from autoplan.cost_models.profile import Profile
from autoplan.errors import AutoplanError, InfeasibleError
from autoplan.plan import Plan
from autoplan.units import size
from autoplan.why.changes import changes, without_ties
from autoplan.why.origin import Origin
from autoplan.why.question import Answer, Question
from autoplan.why.scaling import rates

Way = Literal["below", "above"]
WAYS: Sequence[Way] = ("below", "above")

TRIED = (4.0, 16.0)
"""Factors that are tried first, outwards; the first that changes the plan is closed in on."""
_PRECISION = 1.05
TIE = 1e-6
"""Of a step's time: less is no reason for another plan."""
_MAX_TIES = 8


@dataclass(frozen=True)
class Turn:
    """Where one quantity, moved one way with all else as it is, makes another plan the best.

    `factor`: of what it is now, within 5 percent, on the far side of the change; None where no
    change was found up to the largest factor tried, and `note` says more. `value`: the quantity
    there. `step_time_s` of the new plan there, `kept_time_s` of the old one, None where it does not
    work there. `changes`: what is decided otherwise, a line each.
    """

    quantity: str
    way: Way
    factor: float | None
    value: str = ""
    step_time_s: float | None = None
    kept_time_s: float | None = None
    changes: tuple[str, ...] = ()
    note: str = ""


_Try = Callable[[float], Turn | None]
"""What another plan gains at a factor; None where this one is still the best."""


@dataclass(frozen=True)
class Turns:
    """Looks for the turns of a plan: `given` is the best answer as things are."""

    plan: Plan
    origin: Origin
    question: Question
    given: Answer
    share_s: float

    # -- the quantities ---------------------------------------------------------------------

    def hardware(self) -> Iterator[tuple[str, str, list[Turn]]]:
        """Rates of the profile: how fast links and arithmetic are."""
        cluster = self.question.request.cluster
        for name, rate, scale in rates(cluster.profile):
            faster = replace(cluster, profile=scale(2.0)), replace(cluster, profile=scale(0.5))
            used = any(self._links(each) != self._links(cluster) for each in faster)
            if "bandwidth" in name and not used:
                found = [_none(name, way, "the mesh does not use it") for way in WAYS]
            else:
                found = [self._rate_turn(name, way, rate, scale) for way in WAYS]
            yield name, _rate(name, rate), found

    def _links(self, cluster: Cluster) -> list[AxisLink]:
        mesh = self.question.annotated.mesh
        return [cluster.link(mesh, axis) for axis in mesh.axes]

    def _rate_turn(
        self, name: str, way: Way, rate: float, scale: Callable[[float], Profile]
    ) -> Turn:
        def attempt(factor: float) -> Turn | None:
            cluster = replace(self.question.request.cluster, profile=scale(factor))
            there = self.question.with_cluster(cluster)
            kept = there.price(self.given.choices)
            return self._turn(name, way, factor, _rate(name, rate * factor), there, kept)

        return _closest(name, way, attempt)

    def memory(self) -> list[Turn]:
        """Less memory: the first limit that no plan as fast fits in. More: by bisection."""
        name, most = "memory limit", self.question.request.memory_bytes

        def attempt(factor: float) -> Turn | None:
            there = self.question.within(round(most * factor))
            return self._turn(name, "above", factor, size(most * factor), there, self.given)

        return [self._less_memory(name, most), _closest(name, "above", attempt)]

    def _less_memory(self, name: str, most: int) -> Turn:
        fits = self.given
        for _ in range(_MAX_TIES):
            limit = fits.peak_memory_bytes - 1
            factor = limit / most
            there = self.question.within(limit)
            value = size(fits.peak_memory_bytes)
            try:
                fits = there.solve(time_limit_s=max(1.0, 8 * self.share_s))
            except InfeasibleError:
                return Turn(name, "below", factor, value, note="no plan needs less")
            if fits.objective > self.given.objective * (1 + TIE):
                return self._told(name, "below", factor, value, there, fits, None)
        return _none(name, "below", f"as fast down to {size(fits.peak_memory_bytes)}")

    @property
    def batch_now(self) -> str:
        known = self.origin.recapture
        return f"{known.rows} rows" if known is not None and known.rows else "?"

    def batch(self) -> list[Turn]:
        """Another number of rows: the model is captured anew for each."""
        known = self.origin.recapture
        if known is None or not known.rows:
            note = "not varied: the arguments are not known; plan with another batch"
            return [_none("batch", way, note) for way in WAYS]
        rows = known.rows
        even = math.lcm(self.plan.mesh.num_devices, self.plan.microbatches)
        unit = even if rows % even == 0 else self.plan.microbatches
        return [self._batch_turn(way, rows, unit) for way in WAYS]

    def _batch_turn(self, way: Way, rows: int, unit: int) -> Turn:
        """Only multiples of `unit` rows: uneven parts are no larger batch."""
        tried: dict[int, Turn | None] = {rows: None}

        def attempt(factor: float) -> Turn | None:
            count = max(unit, round(rows * factor / unit) * unit)
            if count not in tried:
                tried[count] = self._with_rows(count, way)
            return tried[count]

        return _closest("batch", way, attempt)

    def _with_rows(self, rows: int, way: Way) -> Turn | None:
        assert self.origin.recapture is not None
        factor, value = rows / (self.origin.recapture.rows or 1), f"{rows} rows"
        try:
            there = self.origin.ask(self.plan, self.origin.recapture.with_rows(rows))
        except AutoplanError as error:
            return Turn("batch", way, factor, value, note=f"no plan: {error}")
        choices = there.choices_of(self.question.named(self.given.choices))
        kept = None if choices is None else there.price(choices)
        return self._turn("batch", way, factor, value, there, kept)

    # -- one question -----------------------------------------------------------------------

    def _turn(
        self,
        name: str,
        way: Way,
        factor: float,
        value: str,
        there: Question,
        kept: Answer | None,
    ) -> Turn | None:
        """What is better than `kept` there, this plan at its price there, if anything is."""
        if kept is not None and kept.peak_memory_bytes > there.request.memory_bytes:
            kept = None
        if kept is not None and not math.isfinite(kept.objective):
            kept = None
        start = kept.choices if kept is not None else None
        try:
            best = there.solve(start=start, time_limit_s=self.share_s)
        except InfeasibleError as error:
            return Turn(name, way, factor, value, note=f"no plan: {error}")
        if kept is not None and best.objective >= kept.objective * (1 - TIE):
            return None
        return self._told(name, way, factor, value, there, best, kept)

    def _told(
        self,
        name: str,
        way: Way,
        factor: float,
        value: str,
        there: Question,
        best: Answer,
        kept: Answer | None,
    ) -> Turn:
        before = self.question.named(self.given.choices)
        old = there.choices_of(before)
        choices = best.choices if old is None else without_ties(there, best.choices, old)
        lines = tuple(changes(before, there.named(choices)))
        kept_s = None if kept is None else kept.step_time_s
        note = f"within the time limit, gap {best.gap:.2%}" if best.gap else ""
        return Turn(name, way, factor, value, best.step_time_s, kept_s, lines, note)


def _none(quantity: str, way: Way, note: str = "") -> Turn:
    return Turn(quantity, way, None, note=note)


def _closest(quantity: str, way: Way, attempt: _Try) -> Turn:
    """The nearest factor with another plan, to 5 percent: first tried outwards, then halved.

    Costs of fixed choices are straight lines over one over a bandwidth, so that a plan is best on
    one interval of it, and halving finds its end.
    """
    sign = 1.0 if way == "above" else -1.0
    inner, found, outer = 1.0, None, 1.0
    for outer in TRIED:
        found = attempt(outer**sign)
        if found is not None:
            break
        inner = outer
    while found is not None and outer / inner > _PRECISION:
        middle = math.sqrt(inner * outer)
        nearer = attempt(middle**sign)
        if nearer is None:
            inner = middle
        else:
            outer, found = middle, nearer
    return found if found is not None else _none(quantity, way)


def _rate(name: str, value: float) -> str:
    if name == "compute rate":
        return f"{value / 1e12:.3g} TFLOP/s in float32"
    return f"{size(value)}/s"
