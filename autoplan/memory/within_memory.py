"""The fastest plan that fits: moments of a step whose memory binds become limits of the solver."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from autoplan.errors import InfeasibleError
from autoplan.formulate import formulate, repeated_blocks
from autoplan.memory.liveness import timeline_of
from autoplan.memory.peak import memory_at_peak
from autoplan.memory.schedule import Block
from autoplan.memory.timeline import Timeline
from autoplan.plan import Memory
from autoplan.pricing import Pricer
from autoplan.recompute.pricing import SecondRuns
from autoplan.request import Request
from autoplan.sites import Annotated, Site
from autoplan.solver import Certificate, Problem, Solution, fold, solve
from autoplan.solver.lagrangian import at_rising_prices, least_excess
from autoplan.solver.problem import UndecidedError, relative_gap
from autoplan.units import size

_FOLD_FROM = 400
"""Sites above which repeated blocks are first held to one choice; smaller models need no help."""


def repeated_classes(annotated: Annotated) -> list[Hashable] | None:
    """Classes of sites that are first held to one choice; None for a small model."""
    return repeated_blocks(annotated) if len(annotated.sites) > _FOLD_FROM else None


def solve_within_memory(
    annotated: Annotated, pricer: Pricer, request: Request, recomputed: Sequence[Block] = ()
) -> tuple[Solution, Memory]:
    """The fastest choices whose peak, by liveness, is within the limit, and that peak.

    Raises InfeasibleError if hints or memory leave nothing, with the least that would do.
    """
    deadline = time.perf_counter() + request.time_limit_s
    case = Case.of(annotated, pricer, request, recomputed)
    fitting = case.fastest_that_fits(deadline)
    return fitting.solution, memory_at_peak(case.timeline, fitting.solution.choices)


@dataclass(frozen=True, eq=False)
class Case:
    """A model on a mesh under a request, with the blocks that are recomputed."""

    annotated: Annotated
    request: Request
    problem: Problem
    timeline: Timeline
    classes: list[Hashable] | None

    @staticmethod
    def of(
        annotated: Annotated, pricer: Pricer, request: Request, recomputed: Sequence[Block] = ()
    ) -> Case:
        """Its problem and its timeline."""
        problem = formulate(annotated, pricer, request.whole_outputs)
        problem = SecondRuns.of(annotated, pricer).added_to(problem, recomputed)
        timeline = timeline_of(annotated, pricer, recomputed)
        classes = repeated_classes(annotated)
        if classes is not None:
            again = {at for block in recomputed for at in block.sites}
            classes = [(label, at in again) for at, label in enumerate(classes)]
        return Case(annotated, request, problem, timeline, classes)

    def fastest(self, time_limit_s: float) -> Solution:
        """The fastest choices, whatever the memory."""
        try:
            return solve(self.problem, self.classes, time_limit_s, self.request.gap)
        except UndecidedError:
            raise
        except InfeasibleError as error:
            raise _no_plan(error, self.annotated) from error

    def fastest_that_fits(
        self, deadline: float, first: Solution | None = None, leanest: bool = True
    ) -> Fitting:
        """The fastest choices within the memory limit; `first`: the fastest whatever the memory.

        Raises InfeasibleError if hints or memory leave nothing, with the least that would do;
        without `leanest` that is not looked for, nor are choices that do no more than fit.
        """
        most = float(self.request.memory_bytes)
        try:
            return fastest_that_fits(
                self.problem,
                self.timeline,
                self.classes,
                most,
                deadline,
                self.request.gap,
                first=first,
                look_for_leanest=leanest,
            )
        except TooLittleMemoryError as error:
            memory = memory_at_peak(self.timeline, error.leanest)
            text = _too_little(memory, self.annotated, self.request)
            raise TooLittleMemoryError(text, error.leanest, error.bound) from error
        except UndecidedError:
            raise
        except InfeasibleError as error:
            raise _no_plan(error, self.annotated) from error


def _no_plan(error: InfeasibleError, annotated: Annotated) -> InfeasibleError:
    text = str(error)
    near = next((_place(each) for each in annotated.sites if f" {each.name!r} " in text), "")
    return InfeasibleError(
        "the hints leave no plan, whatever the memory: they fix layouts that no strategy of an "
        f"op joins{near}. Drop or widen one."
    )


def _place(site: Site) -> str:
    """Where a site is, as a model's author knows it."""
    kind = {"parameter": "parameter", "input": "argument", "buffer": "buffer"}.get(site.kind)
    if kind is not None:
        return f", where {kind} {site.path!r} is read"
    module = f" in {site.path!r}" if site.path else ""
    line = f" ({site.source_line})" if site.source_line else ""
    return f", near an op{module}{line}" if module or line else ""


@dataclass(frozen=True)
class Fitting:
    """Choices that fit, and the moments whose memory had to be limited for them.

    `floor`: seconds that no choices take less than, whatever they hold.
    """

    solution: Solution
    moments: tuple[int, ...]
    floor: float = 0.0


class TooLittleMemoryError(InfeasibleError):
    """Nothing was found that fits; `leanest` are the choices that came nearest.

    `bound`: seconds that whatever fits, unseen, takes at least.
    """

    def __init__(self, text: str, leanest: tuple[int, ...], bound: float) -> None:
        super().__init__(text)
        self.leanest = leanest
        self.bound = bound


def fastest_that_fits(
    problem: Problem,
    timeline: Timeline,
    classes: Sequence[Hashable] | None,
    most: float,
    deadline: float,
    gap: float = 0.0,
    start: Sequence[int] | None = None,
    moments: Sequence[int] = (),
    first: Solution | None = None,
    look_for_leanest: bool = True,
) -> Fitting:
    """The fastest choices whose bytes are within `most` at every moment.

    Lazy constraints: the problem is solved with `moments` limited; while the peak of its answer is
    too large, the moment of that peak is limited, too. Every problem solved allows all that fits,
    so its bound holds, and an answer that fits is the best there is. `first`: the answer where
    nothing is limited, if it is known. Where `deadline`, of
    `time.perf_counter()`, ends this, `start` or the leanest choices are the answer, with a gap.
    Raises TooLittleMemoryError, or InfeasibleError where nothing is allowed whatever the memory.
    """
    limited = list(moments)
    bound, floor = -math.inf, 0.0 if first is None else first.certificate.bound
    last: Solution | None = None
    while True:
        held = _limited(problem, timeline, limited, most)
        left_s = deadline - time.perf_counter()
        try:
            # A part of the time, so that some is left for a moment that binds only then.
            share_s = max(_LEAST_TIME_S, left_s / 2 if limited else left_s)
            known = None if limited else first
            last = known or solve(held, classes, share_s, gap, start)
        except InfeasibleError as error:
            if not limited:
                raise
            if not isinstance(error, UndecidedError):
                bound = math.inf  # it is proven that nothing fits
            break
        bound = max(bound, last.certificate.bound)
        floor = floor if limited else last.certificate.bound
        totals = timeline.totals(last.choices)
        moment = int(totals.argmax())
        if totals[moment] <= most:
            return Fitting(last, tuple(limited), floor)
        if moment in limited:
            break
        limited.append(moment)
        if left_s <= 0.0:
            break
    held = _limited(problem, timeline, limited, most)
    choices = None if start is None else tuple(start)
    fits = choices is not None and math.isfinite(problem.objective(choices))
    start_fits = choices is not None and fits and timeline.totals(choices).max() <= most
    if not start_fits and not look_for_leanest:
        assert last is not None
        raise TooLittleMemoryError("nothing fits, or nothing was found", last.choices, bound)
    if not start_fits:
        choices = thrifty(held, timeline, classes, most, limited, deadline)
    if choices is None:
        left_s = deadline - time.perf_counter()
        choices = leanest(held, timeline, most, min(_LEANEST_TIME_S, max(1.0, left_s)))
    peak_bytes = float(timeline.totals(choices).max())
    if peak_bytes > most:
        text = (
            f"no plan was found within {size(most)}; the least that one was found for is "
            f"{size(peak_bytes)}."
        )
        raise TooLittleMemoryError(text, choices, bound)
    return Fitting(_unproven(problem, choices, bound, last), tuple(limited), floor)


def _limited(problem: Problem, timeline: Timeline, moments: Sequence[int], most: float) -> Problem:
    return replace(problem, limits=tuple(timeline.limit(each, most) for each in moments))


_LEAST_TIME_S = 0.5
_LEANEST_TIME_S = 20.0
_MAX_MOMENTS = 12


def thrifty(
    problem: Problem,
    timeline: Timeline,
    classes: Sequence[Hashable] | None,
    most: float,
    moments: Sequence[int],
    deadline: float,
) -> tuple[int, ...] | None:
    """Choices that fit, at rising prices of memory; or None. Found soon, and rarely the fastest.

    Variables of one class choose alike. `moments` are those whose bytes have a price at first.
    """
    limited = list(moments)
    while len(limited) <= _MAX_MOMENTS:
        priced = _limited(problem, timeline, limited, most)
        folded = None if classes is None else fold(priced, classes)
        alike = priced if folded is None else folded.problem
        try:
            found = at_rising_prices(alike, [0.0] * len(limited), deadline)
        except InfeasibleError:  # of blocks that are all alike
            return None
        if found is None:
            return None
        choices = found if folded is None else folded.expand(found)
        totals = timeline.totals(choices)
        moment = int(totals.argmax())
        if totals[moment] <= most:
            return choices
        if moment in limited:
            return None
        limited.append(moment)
    return None


def leanest(
    problem: Problem, timeline: Timeline, most: float, time_limit_s: float = _LEANEST_TIME_S
) -> tuple[int, ...]:
    """Choices whose peak is the least that was found, whatever they cost.

    `problem` has a limit of `most` bytes on at least one moment; further moments join them while
    the peak of what is leanest for these lies elsewhere.
    """
    deadline = time.perf_counter() + time_limit_s
    limits = list(problem.limits)
    best: tuple[float, tuple[int, ...]] | None = None
    for _ in range(_MAX_MOMENTS):
        _, choices = least_excess(replace(problem, limits=tuple(limits)), deadline)
        totals = timeline.totals(choices)
        moment = int(totals.argmax())
        if best is None or totals[moment] < best[0]:
            best = float(totals[moment]), choices
        name = timeline.name(moment)
        if any(limit.name == name for limit in limits) or time.perf_counter() > deadline:
            break
        limits.append(timeline.limit(moment, most))
    assert best is not None
    return best[1]


def _unproven(
    problem: Problem, choices: tuple[int, ...], bound: float, last: Solution | None
) -> Solution:
    """Choices that fit, with the bound of the problems that were solved."""
    objective = problem.objective(choices)
    bound = min(bound, objective)
    proof = Certificate(
        objective=objective,
        bound=bound,
        gap=relative_gap(objective, bound),
        seconds=last.certificate.seconds if last is not None else 0.0,
        status="time limit",
        num_variables=len(choices),
        num_binaries=last.certificate.num_binaries if last is not None else 0,
        num_variables_after_reduction=0,
        folding=last.certificate.folding if last is not None else None,
    )
    return Solution(choices, proof)


def _too_little(memory: Memory, annotated: Annotated, request: Request) -> str:
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "gathered parameters": memory.gathered,
        "activations": memory.activations,
        "arguments and buffers": memory.inputs,
        "temporaries": memory.temporaries,
    }
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"memory of {size(request.memory_bytes)} a device is too small on mesh "
        f"{annotated.mesh}: the least that a plan was found for is {size(memory.total)}, "
        f"of which {largest} take {size(parts[largest])}; it is reached in {memory.moment}. Give "
        "more memory or devices, a smaller batch, or more microbatches."
    )
