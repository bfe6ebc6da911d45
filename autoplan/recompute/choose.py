"""Choose: layouts and recomputed blocks together, within the memory limit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoplan.memory.peak import memory_at_peak
from autoplan.memory.schedule import Block
from autoplan.memory.within_memory import Case, TooLittleMemoryError, solve_within_memory
from autoplan.pipelining.pieces import pieces_of
from autoplan.plan import Memory
from autoplan.pricing import Pricer
from autoplan.recompute.blocks import blocks_of, named_blocks
from autoplan.recompute.pricing import SecondRuns
from autoplan.recompute.select import cheapest_blocks
from autoplan.request import Request
from autoplan.sites import Annotated
from autoplan.solver import Solution
from autoplan.solver.problem import relative_gap

_ROUNDS = 3
_LEAST_TIME_S = 0.5


@dataclass(frozen=True)
class Chosen:
    """The fastest choices that were found, their peak, and the blocks that they recompute.

    limited: whether some that are faster take too much memory. floor: seconds that no choices take
    less than, whatever they hold.
    """

    solution: Solution
    memory: Memory
    recomputed: tuple[Block, ...] = ()
    limited: bool = True
    floor: float = 0.0


def solve_recomputing(
    annotated: Annotated, pricer: Pricer, request: Request, case: Case | None = None
) -> Chosen:
    """The fastest choices within memory, with the blocks that the request asks to recompute.

    "auto": none where the fastest choices fit. Otherwise the cheapest blocks that make the fastest
    choices fit are found, and layouts are solved again with these; the faster of this and of the
    best without is taken. No plan is faster than the fastest whatever the memory, and one that
    recomputes takes the second run of some block longer: that is the bound. `case`: of the model
    without recomputation, where it is at hand. Raises InfeasibleError as `solve_within_memory`
    does.
    """
    deadline = time.perf_counter() + request.time_limit_s
    none = request.recompute == "none" or not request.setting.training
    names = () if none else named_blocks(pieces_of(annotated.captured), request.recompute)
    blocks = blocks_of(annotated, pricer, names) if names else ()
    if case is None or blocks:
        case = Case.of(annotated, pricer, request, blocks)
    if names is None:
        return _where_memory_asks(case, annotated, pricer, request, deadline)
    fitting = case.fastest_that_fits(deadline)
    memory = memory_at_peak(case.timeline, fitting.solution.choices)
    return Chosen(fitting.solution, memory, blocks, bool(fitting.moments), fitting.floor)


def _where_memory_asks(
    case: Case, annotated: Annotated, pricer: Pricer, request: Request, deadline: float
) -> Chosen:
    fastest = case.fastest(request.time_limit_s)
    memory = memory_at_peak(case.timeline, fastest.choices)
    if case.timeline.totals(fastest.choices).max() <= request.memory_bytes:
        return Chosen(fastest, memory, limited=False, floor=fastest.certificate.bound)
    floor = fastest.certificate.bound
    blocks = _candidates(annotated, pricer)
    second = SecondRuns.of(annotated, pricer)
    bound = floor + min(map(second.least_s, blocks), default=0.0)
    best: Chosen | None = None
    failure: TooLittleMemoryError | None = None
    try:
        half = time.perf_counter() + (deadline - time.perf_counter()) / (2 if blocks else 1)
        solution = case.fastest_that_fits(half, fastest, leanest=not blocks).solution
        best = Chosen(solution, memory_at_peak(case.timeline, solution.choices), floor=floor)
        if not blocks or solution.certificate.objective <= bound:
            return best
        bound = min(bound, solution.certificate.bound)
    except TooLittleMemoryError as error:
        if not blocks:
            raise
        failure, bound = error, min(bound, error.bound)
    choices: Sequence[int] = fastest.choices
    tried: set[frozenset[str]] = set()
    for number in range(_ROUNDS):
        if number and best is not None and time.perf_counter() > deadline:
            break
        again = cheapest_blocks(annotated, pricer, blocks, choices, float(request.memory_bytes))
        again = blocks if again is None else again
        names = frozenset(block.name for block in again)
        if names in tried or not names:
            break
        tried.add(names)
        found = _with(again, annotated, pricer, request, deadline)
        if isinstance(found, TooLittleMemoryError):
            failure = found
            continue
        choices = found.solution.choices
        if best is None or _time_s(found) < _time_s(best) * (1 - 1e-9):
            best = found
    if best is None:
        assert failure is not None
        raise TooLittleMemoryError(str(failure), failure.leanest, bound) from failure
    return bounded(replace(best, floor=floor), bound, request.gap)


def _candidates(annotated: Annotated, pricer: Pricer) -> tuple[Block, ...]:
    """The numbered blocks that keep anything for backward."""
    names = named_blocks(pieces_of(annotated.captured), "all")
    return blocks_of(annotated, pricer, names)


def _with(
    blocks: Sequence[Block],
    annotated: Annotated,
    pricer: Pricer,
    request: Request,
    deadline: float,
) -> Chosen | TooLittleMemoryError:
    """The fastest choices that fit with these blocks recomputed, or why there are none."""
    # A half, so that some is left for other blocks, which the layouts found here may ask for.
    left_s = max(_LEAST_TIME_S, (deadline - time.perf_counter()) / 2)
    request = replace(request, time_limit_s=left_s)
    try:
        found = solve_within_memory(annotated, pricer, request, blocks)
    except TooLittleMemoryError as error:
        return error
    return Chosen(*found, tuple(blocks))


def _time_s(chosen: Chosen) -> float:
    return chosen.solution.certificate.objective


def bounded(best: Chosen, bound: float, gap: float) -> Chosen:
    """A choice with the bound of more than was chosen from."""
    proof = best.solution.certificate
    bound = min(bound, proof.objective)
    distance = relative_gap(proof.objective, bound)
    proof = replace(proof, bound=bound, gap=distance)
    if distance > gap and proof.status == "optimal":
        proof = replace(proof, status="not proven")
    return replace(best, solution=replace(best.solution, certificate=proof))
