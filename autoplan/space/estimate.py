"""Estimate: what a shape costs, by the chain of a shortened model, within memory.

Layouts are chosen on the short model, each site counted as often as its block stands in the whole
one, at a price of memory that rises until a cut of the chain fits: from plans that are fastest
whatever they hold to plans that hold the least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoplan.annotate import annotate
from autoplan.errors import HintError, InfeasibleError
from autoplan.formulate import formulate
from autoplan.found import Found
from autoplan.memory.liveness import timeline_of
from autoplan.memory.peak import memory_at_peak
from autoplan.memory.timeline import Timeline
from autoplan.pipelining.chains import chain_of
from autoplan.pipelining.events import Times, simulate
from autoplan.pipelining.prices import Sending, node_of
from autoplan.pipelining.schedules import Schedule
from autoplan.pipelining.stages import SIMULATED, plain_step_s
from autoplan.registry import rules_in_force
from autoplan.request import Request
from autoplan.search import hints_on
from autoplan.sites import Annotated
from autoplan.solver import Problem, ProblemBuilder, Solution, solve
from autoplan.solver.chain import Chain, Pipeline, assign
from autoplan.solver.problem import FloatArray, UndecidedError
from autoplan.space.shapes import Shape
from autoplan.space.shorten import Short

_PRICES = (0.0, 0.03, 0.12, 0.5, 2.0, 8.0)
"""Seconds per byte, in steps per memory limit: what a plan gives for holding less."""
_SOLVE_S = 5.0
_GAP = 1e-3
_ASSIGN_S = 3.0


@dataclass(frozen=True)
class Estimate:
    """What a shape takes by the prices of its chain; `memory_bytes` of its fullest rank."""

    shape: Shape
    step_time_s: float
    memory_bytes: int
    stage_of: tuple[int, ...]
    recomputed: int
    """Pieces that run a second time."""


def _estimate(asked: _Asked) -> Estimate | None:
    best = asked.at(0.0)
    if best is not None and best.recomputed == 0:
        return best
    if best is None and asked.at(_PRICES[-1]) is None:
        return None  # not even what holds the least
    for price in _PRICES:
        found = asked.at(price)
        if found is None:
            continue
        # A higher price holds less and takes longer, unless less is recomputed for it.
        if best is not None and found.step_time_s >= best.step_time_s:
            return best
        best = found
        if best.recomputed == 0:
            return best
    return best or asked.at(_PRICES[-1])


@dataclass(frozen=True, eq=False)
class Layouts:
    """A short model on the mesh of a shape, to be solved at prices of memory.

    Schedules of one pipeline have them in common.
    """

    short: Short
    request: Request
    shape: Shape
    found: Callable[[Solution], Found]
    problem: Problem
    held: list[tuple[int, int | None, FloatArray]]
    sending: Sending
    free: Solution
    """The fastest, whatever it holds."""
    _solutions: dict[float, Solution | None] = field(default_factory=dict)
    _chains: dict[tuple[int, ...], Chain] = field(default_factory=dict)

    @staticmethod
    def of(short: Short, request: Request, shape: Shape) -> Layouts | None:
        """None where hints leave nothing."""
        mesh = shape.mesh.mesh
        try:
            hints = hints_on(short.captured, request, shape.mesh)
            annotated = annotate(
                short.captured, mesh, rules_in_force(), hints, request.local_inputs
            )
            pricer = request.pricer(mesh)
            weights = site_weights(annotated, short)
            problem = _weighted(formulate(annotated, pricer, request.whole_outputs), weights)
            free = solve(problem, None, _SOLVE_S, gap=_GAP)
        except (HintError, InfeasibleError):
            return None
        timeline = timeline_of(annotated, pricer)

        def found(solution: Solution) -> Found:
            memory = memory_at_peak(timeline, solution.choices)
            return Found(hints, annotated, pricer, solution, memory, ())

        held = _held(timeline, weights, _mean_in_flight(shape))
        sending = Sending(request.cluster, shape.size, mesh.num_devices)
        return Layouts(short, request, shape, found, problem, held, sending, free)

    def estimate(self, request: Request, shape: Shape) -> Estimate | None:
        """The fastest that was found within memory; None where nothing fits.

        `shape` differs in nothing but its schedule from that of the layouts; `request` is its own.
        """
        return _estimate(_Asked(self, request, shape))

    def at(self, price: float) -> Solution | None:
        """The layouts that are best at a price of memory; None where none were found."""
        if not price:
            return self.free
        if price not in self._solutions:
            step_s = self.free.certificate.objective
            per_byte = price * step_s / (self.request.memory_bytes * self.shape.size)
            priced = _priced(self.problem, self.held, per_byte)
            try:
                self._solutions[price] = solve(priced, None, _SOLVE_S, gap=_GAP)
            except (UndecidedError, InfeasibleError):
                self._solutions[price] = None
        return self._solutions[price]

    def chain(self, solution: Solution) -> Chain:
        """The pieces of the whole model at the prices of some layouts; hints apart."""
        if solution.choices not in self._chains:
            free = np.ones((1, 1), dtype=np.bool_)
            chain = chain_of(
                self.found(solution),
                self.short.pieces,
                self.sending,
                free,
                self.request.whole_outputs,
            )
            self._chains[solution.choices] = whole_chain(chain, self.short)
        return self._chains[solution.choices]


@dataclass(frozen=True, eq=False)
class _Asked:
    """Layouts under the schedule of one shape."""

    layouts: Layouts
    request: Request
    shape: Shape
    _known: dict[tuple[int, ...], Estimate | None] = field(default_factory=dict)

    def at(self, price: float) -> Estimate | None:
        """The best cut of the layouts that are best at a price of memory, if one fits."""
        solution = self.layouts.at(price)
        if solution is None:
            return None
        if solution.choices not in self._known:
            chain = self.layouts.chain(solution)
            allowed = np.ones((1, self.request.num_stages), dtype=np.bool_)
            try:
                found = estimate_chain(replace(chain, allowed=allowed), self.request, self.shape)
            except InfeasibleError:
                found = None
            self._known[solution.choices] = found
        return self._known[solution.choices]


def estimate_chain(chain: Chain, request: Request, shape: Shape) -> Estimate | None:
    """The best cut of a chain under the shape's schedule; InfeasibleError where none fits."""
    setting = request.setting
    schedule = None if shape.pipeline is None else shape.pipeline.order
    blocks = np.isfinite(chain.recompute_s)
    if request.recompute == "none" or not setting.training:
        chain = replace(chain, recompute_s=np.full(len(blocks), np.inf))
    forced = None
    if request.recompute == "all":
        forced = blocks
    stages = request.num_stages
    in_flight = np.ones(stages)
    if schedule is not None and setting.training:
        in_flight = np.array(schedule.in_flight(shape.size, setting.microbatches), dtype=np.float64)
    # Stages that share a rank are cut as if each had its part of the memory to itself.
    chunks = stages // shape.size
    limit = np.array(float(request.memory_bytes) / chunks)
    asked = Pipeline(tuple(range(stages)), in_flight, max(2, setting.microbatches), limit)
    found = assign(chain, asked, forced, _ASSIGN_S)
    stage_of = tuple(int(s) for s in np.repeat(np.arange(stages), np.diff(np.array(found.first))))
    time_s = step_time_s(chain, schedule, shape.size, request, stage_of, found.recomputed)
    memory = int(found.evaluation.memory_bytes.max() * chunks)
    return Estimate(shape, time_s, memory, stage_of, int(found.recomputed.sum()))


def step_time_s(
    chain: Chain,
    schedule: Schedule | None,
    size: int,
    request: Request,
    stage_of: Sequence[int],
    recomputed: Sequence[bool] | np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> float:
    """Seconds of a step of a cut at the prices of a chain, as its schedule runs."""
    setting, at = request.setting, np.array(stage_of)
    again = np.where(np.asarray(recomputed), chain.recompute_s, 0.0)
    count = setting.microbatches
    if schedule is None:
        return float(count * (chain.time_s + again).sum() + chain.once_s.sum())
    stages = int(at.max()) + 1
    begins = [int(np.argmax(at == stage)) for stage in range(1, stages)]
    far = [schedule.rank_of(s, size) != schedule.rank_of(s - 1, size) for s in range(1, stages)]
    half_s = [float(chain.cut_s[i]) / 2 * crosses for i, crosses in zip(begins, far, strict=True)]
    forward = np.where(np.isfinite(chain.recompute_s), chain.recompute_s, chain.time_s / 3)

    def sums(values: FloatArray) -> FloatArray:
        return np.bincount(at, values, stages).astype(np.float64)

    after = np.zeros(size)
    for stage, seconds in enumerate(sums(chain.once_s)):
        after[schedule.rank_of(stage, size)] += seconds
    if schedule.is_plain and count > SIMULATED:
        each = [float(seconds) for seconds in sums(chain.time_s + again)]
        return plain_step_s(each, half_s, [float(seconds) for seconds in after], count)
    orders = schedule.orders(size, count, not setting.training)
    times = Times(
        forward_s=[float(each) for each in sums(forward)],
        backward_s=[float(each) for each in sums(chain.time_s - forward + again)],
        forward_transfer_s=half_s,
        backward_transfer_s=half_s,
        after_s=[float(each) for each in after],
    )
    return simulate(orders, times).makespan_s


# -- the short model as the whole one ---------------------------------------------------------


def whole_chain(chain: Chain, short: Short) -> Chain:
    """The chain of the whole model, of that of a short one."""
    if short.is_whole:
        return chain
    stands = np.array(short.stands)
    per_piece = {
        name: getattr(chain, name)[stands]
        for name in Chain.__dataclass_fields__
        if name not in ("allowed", "shared", "cut_s", "cut_bytes")
    }
    cuts = {name: np.r_[getattr(chain, name)[stands], 0.0] for name in ("cut_s", "cut_bytes")}
    shared = tuple(
        (tuple(int(at) for piece in pieces for at in np.flatnonzero(stands == piece)), size)
        for pieces, size in chain.shared
    )
    return Chain(**per_piece, **cuts, allowed=chain.allowed[:1], shared=shared)


def site_weights(annotated: Annotated, short: Short) -> FloatArray:
    """How often each site stands in the whole model: [sites]."""
    pieces, count, counts = short.pieces, len(annotated.sites), short.counts
    weights = np.zeros(count)
    of_parameter = {
        path: counts[piece] for piece, paths in enumerate(pieces.parameters) for path in paths
    }
    tied = [path for paths in pieces.parameters for path in paths]
    for at in reversed(range(count)):
        site = annotated.sites[at]
        piece = pieces.of.get(node_of(site))
        if piece is not None:
            weights[at] = counts[piece]
        elif site.kind == "parameter":
            weights[at] = of_parameter.get(site.path, 1) if tied.count(site.path) == 1 else 1
        elif not weights[at]:
            weights[at] = 1
        if site.parameter_only or piece is None:
            continue
        for source in site.inputs:  # what the prologue makes of a block's parameters
            before = annotated.sites[source.site]
            if before.parameter_only and before.kind != "parameter":
                weights[source.site] = max(weights[source.site], weights[at])
    return weights


def _weighted(problem: Problem, weights: FloatArray) -> Problem:
    builder = ProblemBuilder()
    for weight, each in zip(weights, problem.variables, strict=True):
        builder.add_variable(each.name, weight * each.cost)
    for (u, v), matrix in problem.edges.items():
        builder.add_edge(u, v, weights[v] * matrix)
    return builder.build()


def _held(
    timeline: Timeline, weights: FloatArray, in_flight: float
) -> list[tuple[int, int | None, FloatArray]]:
    """Bytes held when forward turns into backward: site, reader or None, amounts of candidates."""
    turn = len(timeline.annotated.sites)
    found = []
    for term in timeline.terms:
        if term.first <= turn <= term.last:
            factor = in_flight if term.kind == "activations" else 1.0
            array = factor * weights[term.site] * timeline.array(term)
            found.append((term.site, term.reader, array))
    return found


def _priced(
    problem: Problem, held: Sequence[tuple[int, int | None, FloatArray]], per_byte: float
) -> Problem:
    """The problem whose costs include what is held, at `per_byte` seconds."""
    if not per_byte:
        return problem
    costs = [each.cost.copy() for each in problem.variables]
    builder = ProblemBuilder()
    edges: list[tuple[int, int, FloatArray]] = []
    for site, reader, array in held:
        if reader is None:
            costs[site] += per_byte * array[:, 0]
        elif array.any():
            edges.append((site, reader, per_byte * array))
    for each, cost in zip(problem.variables, costs, strict=True):
        builder.add_variable(each.name, cost)
    for (u, v), matrix in problem.edges.items():
        builder.add_edge(u, v, matrix)
    for u, v, matrix in edges:
        builder.add_edge(u, v, matrix)
    return builder.build()


def _mean_in_flight(shape: Shape) -> float:
    if shape.pipeline is None:
        return 1.0
    held = shape.pipeline.order.in_flight(shape.size, shape.microbatches)
    return float(np.mean(held))
