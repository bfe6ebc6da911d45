"""Search: the best plan over all shapes, with the bound of all.

Every shape is estimated by the chain of a short model; those that promise most are solved in full,
until none that is left promises more; then bounds of the others are raised, lowest first, while
there is time. A shape is ruled out where no plan of it can take less than the best one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from autoplan.capture import Captured
from autoplan.errors import (
    AutoplanError,
    CaptureError,
    HintError,
    InfeasibleError,
    LayoutError,
)
from autoplan.found import Found
from autoplan.layouts import B, Layout
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.pipelining.pieces import pieces_of
from autoplan.pipelining.planner import Piped, search_pipeline
from autoplan.pipelining.stages import Kind, kind_of
from autoplan.request import Request
from autoplan.search import find_on_mesh
from autoplan.solver.problem import UndecidedError, relative_gap
from autoplan.space.bounds import compute_s, ops_of
from autoplan.space.captures import Captures
from autoplan.space.estimate import Layouts
from autoplan.space.groups import Group, but_for_schedule, refines, simplicity
from autoplan.space.progress import Show, live_table
from autoplan.space.shapes import Shape, request_at
from autoplan.space.tried import Tried, time_of
from autoplan.units import size

_FEW = 6
"""Shapes without pipelines that are solved in full, without an estimate."""
_ESTIMATING = 0.5
"""Part of the time limit after which nothing more is estimated."""
_SCHEDULES = 0.3
"""Of what is then left, in which other schedules of the best pipelines are estimated."""
_PROMISING = 1.03
"""A pipeline is rarely more than this faster than its estimate, since stages are solved alone."""
_PLAIN_PROMISING = 1.0005
"""The same of a plan without stages, if its estimate is as far off as that of the best."""
_NEAR = 1.5
"""Meshes are looked at again whose first estimate is at most so many times the best."""
_MICROBATCHES_PER_RANK = 4
"""That usually fill a pipeline: its bubble is then a fifth."""
_MOST_SOLVED = 12
_UNKNOWN = 4
"""Shapes that are solved where no estimate says which."""
_SMALL = 10_000
"""Nodes of a short model times shapes: up to here, every shape that may be the best is solved."""
_LEAST_TIME_S = 0.5
_SAME = 1 - 1e-9
_UNLIMITED = 1 << 62
"""Bytes that no plan needs."""


@dataclass(frozen=True)
class Searched:
    """The best that was found: its shape, the request and the model of that shape.

    `bound`: seconds that no plan of the space takes less than. `interrupted`: by Ctrl-C.
    """

    found: Found | Piped
    shape: Shape
    request: Request
    captured: Captured
    tried: tuple[Tried, ...]
    bound: float
    interrupted: bool


def search_space(captures: Captures, request: Request, progress: bool | None = None) -> Searched:
    """The best plan of the space that `request` leaves open.

    The time limit is that of the whole search. Ctrl-C ends it with the best so far. Raises
    NoPlanError where no shape has a plan.
    """
    with live_table(progress) as show:
        return _Search(captures, request, show).run()


class NoPlanError(InfeasibleError):
    """No shape of the space has a plan; `cause` is why the most promising one has none."""

    def __init__(
        self, cause: AutoplanError, request: Request | None, captured: Captured | None
    ) -> None:
        super().__init__(str(cause))
        self.cause, self.request, self.captured = cause, request, captured


class _Search:
    """What is known of all shapes so far."""

    def __init__(self, captures: Captures, request: Request, show: Show) -> None:
        assert request.space is not None
        self.captures, self.request, self.show = captures, request, show
        self.space = request.space
        self.start = time.perf_counter()
        self.deadline = self.start + request.time_limit_s
        self.failure: NoPlanError | None = None
        self.best: Tried | None = None
        self.tried: list[Tried] = []
        self.fewest = 1
        self.fewest_on: dict[Kind, int] = {}
        self.by_schedule: dict[Hashable, list[Tried]] = {}

    def run(self) -> Searched:
        """Estimate, solve, prove."""
        interrupted = False
        try:
            self._begin()
            if self._are_few():
                for each in self.tried:
                    self._solve(each, sum(t.status == "open" for t in self.tried))
            else:
                for fine in (False, True):
                    self._estimate_all(fine)
                    self._solve_promising()
                self._prove()
        except KeyboardInterrupt:
            interrupted = True
            self._solve_best_estimate()
            if self.best is None:
                raise
        if self.best is None:
            assert self.failure is not None
            raise self.failure
        shape = self.best.shape
        assert self.best.found is not None
        return Searched(
            _bounded(self.best.found, self.bound, interrupted),
            shape,
            request_at(self.request, shape),
            self.captures.whole(shape.microbatches),
            tuple(sorted(self.tried, key=Tried.rank)),
            self.bound,
            interrupted,
        )

    @property
    def bound(self) -> float:
        """Seconds that no plan of any shape takes less than."""
        floors = [each.floor_s for each in self.tried if each.status != "no plan"]
        best = math.inf if self.best is None else time_of(self.best.found)
        return min([*floors, best])

    def _begin(self) -> None:
        """All shapes, with the time that computing takes whatever is communicated."""
        self.show("capturing the model", (), self.bound)
        fixed = self.space.microbatches
        rows = self.captures.rows
        pieces = pieces_of(self.captures.priced(fixed or self.captures.any))
        shapes = self.space.shapes(rows, len(pieces))
        self.fewest = min(shape.microbatches for shape in shapes)
        for shape in shapes:
            key = kind_of(shape.mesh)
            self.fewest_on[key] = min(shape.microbatches, self.fewest_on.get(key, 1 << 30))
        ranks = {shape.mesh.mesh.num_devices for shape in shapes}
        if self._all_plain(shapes):
            floors = dict.fromkeys(ranks, 0.0)
        else:
            self._refuse_hopeless_memory()
            ops = ops_of(self.captures.short(self.fewest))
            cluster = self.request.cluster
            floors = {n: self.fewest * compute_s(ops, cluster, n) for n in ranks}
        self.tried = [Tried(shape) for shape in shapes]
        for each in self.tried:
            self.by_schedule.setdefault(but_for_schedule(each), []).append(each)
            each.raise_floor(floors[each.shape.mesh.mesh.num_devices])

    def _refuse_hopeless_memory(self) -> None:
        """Raise InfeasibleError where parameters alone, split over all, are more than memory."""
        request = self.request
        pricer = request.pricer(Mesh.of(devices=request.devices))
        whole = Layout((B,))
        captured = self.captures.priced(self.space.microbatches or self.captures.any)
        held = [pricer.resident(each.meta, whole) for each in captured.inputs_of("parameter")]
        least = sum(p.parameter + p.gradient + p.optimizer_state for p in held) / request.devices
        if least > request.memory_bytes:
            raise InfeasibleError(
                f"memory of {size(request.memory_bytes)} a device is too small: parameters, "
                f"gradients and optimizer state, split evenly over {request.devices} devices, take "
                f"at least {size(least)} on each. Give more memory or devices, or an optimizer "
                "with less state."
            )

    def _all_plain(self, shapes: tuple[Shape, ...]) -> bool:
        return len(shapes) <= _FEW and all(shape.pipeline is None for shape in shapes)

    def _are_few(self) -> bool:
        return self._all_plain(tuple(each.shape for each in self.tried))

    def _solve_best_estimate(self) -> None:
        """The plan of the best estimate where none is found yet; a second Ctrl-C ends that, too."""
        known = [each for each in self.tried if each.status == "estimated"]
        if self.best is None and known:
            self.deadline = time.perf_counter() + _LEAST_TIME_S
            self._solve(min(known, key=Tried.rank), 1)

    def _is_proven(self) -> bool:
        """Whether the best is as good as was asked for."""
        if self.best is None:
            return False
        return relative_gap(time_of(self.best.found), self.bound) <= self.request.gap

    # -- estimating -------------------------------------------------------------------------

    def _estimate_all(self, fine: bool) -> None:
        """The chains of the shapes of one and two axes; then of three that refine the best one.

        Of each mesh first the microbatches that usually suit it, then of the better meshes more or
        fewer, as long as that helps.
        """
        until = self.start + _ESTIMATING * self.request.time_limit_s
        groups = [g for g in self._groups() if (g.mesh.mesh.ndim > 2) is fine]
        if fine:
            best = min(self.tried, key=Tried.rank)
            groups = [g for g in groups if refines(g, best)]
        for group in groups:
            self._estimate_first(group, until)
        for group in sorted(groups, key=Group.least):
            if group.least() < _NEAR * self._least_estimate():
                self._climb(group, until)
        self._estimate_schedules()

    def _groups(self) -> list[Group]:
        """Shapes that differ in microbatches only; without a pipeline first, then few axes."""
        groups: dict[tuple[int, Kind], list[Tried]] = {}
        for each in self.tried:
            if each.shape.is_plain:
                groups.setdefault((each.shape.size, kind_of(each.shape.mesh)), []).append(each)
        made = [Group(sorted(g, key=lambda t: t.shape.microbatches)) for g in groups.values()]
        return sorted(made, key=lambda g: (g.size, g.mesh.mesh.ndim))

    def _estimate_first(self, group: Group, until: float) -> None:
        """The fewest microbatches that fit; of a pipeline about as many as fill it."""
        shapes = group.shapes
        if group.size > 1:
            wanted = _MICROBATCHES_PER_RANK * group.size
            nearest = min(shapes, key=lambda t: abs(math.log(t.shape.microbatches / wanted)))
            shapes = shapes[shapes.index(nearest) :]
        for each in shapes:
            if self._may_be_best(each):
                self._estimate(each, until)
            if each.estimate_s is not None:
                return

    def _may_be_best(self, each: Tried) -> bool:
        """Whether a shape, or a schedule that is estimated beside it, may be the fastest."""
        least = min(other.floor_s for other in self.by_schedule[but_for_schedule(each)])
        return least < self._least_estimate()

    def _climb(self, group: Group, until: float) -> None:
        """More microbatches, then fewer, while that helps."""
        at = min(range(len(group.shapes)), key=lambda n: group.shapes[n].rank())
        for step in (1, -1):
            number = at + step
            while 0 <= number < len(group.shapes):
                each, before = group.shapes[number], group.least()
                if each.estimate_s is None and self._may_be_best(each):
                    self._estimate(each, until)
                if each.estimate_s is None or each.estimate_s >= before:
                    break
                number += step

    def _layouts(self, shape: Shape) -> Layouts | None:
        short = self.captures.short(shape.microbatches)
        return Layouts.of(short, request_at(self.request, shape), shape)

    def _estimate(self, each: Tried, until: float, layouts: Layouts | None = None) -> None:
        late = time.perf_counter() > until and self._least_estimate() < math.inf
        if late or time.perf_counter() > self.deadline or each.status != "open":
            return
        self.show(f"estimating {each.shape}", self.tried, self.bound)
        try:
            if layouts is None:
                layouts = self._layouts(each.shape)
            asked = request_at(self.request, each.shape)
            found = None if layouts is None else layouts.estimate(asked, each.shape)
        except (CaptureError, LayoutError) as error:  # a model that takes no such batch
            self._has_no_plan(each, error)
            return
        each.estimate_s = None if found is None else found.step_time_s
        each.cut = None if found is None else found.stage_of
        each.status = "too little memory" if found is None else "estimated"

    def _least_estimate(self) -> float:
        known = [each.estimate_s for each in self.tried if each.estimate_s is not None]
        return min(known, default=math.inf)

    # -- solving ----------------------------------------------------------------------------

    def _solve_promising(self) -> None:
        """Best estimate first, until none that is left promises more than what is found."""
        for number, each in enumerate(self._by_promise()):
            if self._is_proven():
                return
            late = time.perf_counter() > self.deadline
            if self.best is not None and (late or number >= _MOST_SOLVED):
                return
            if self.best is not None and self._promises(each) > time_of(self.best.found):
                return
            self._solve(each, 3)

    def _by_promise(self) -> Iterator[Tried]:
        estimated = [each for each in self.tried if each.status == "estimated"]
        yield from sorted(estimated, key=lambda each: each.estimate_s or 0.0)
        if self.best is not None:
            return
        unasked = [each for each in self.tried if each.status == "open"]
        yield from sorted(unasked, key=simplicity)[:_UNKNOWN]
        # Nothing fits by estimate: those that hold the least.
        rest = [each for each in self.tried if each.status == "too little memory"]
        leanest = sorted(rest, key=lambda t: (t.shape.size, t.shape.microbatches))[-_UNKNOWN:]
        yield from reversed(leanest)

    def _promises(self, each: Tried) -> float:
        """Seconds that a plan of the shape may take, by its estimate."""
        if each.estimate_s is None:
            return math.inf
        if each.shape.size > 1 or self.best is None or self.best.estimate_s is None:
            return each.estimate_s / _PROMISING
        assert self.best.step_time_s is not None
        missed = self.best.step_time_s / self.best.estimate_s
        return each.estimate_s * missed / _PLAIN_PROMISING

    def _estimate_schedules(self) -> None:
        """Other schedules of the best pipelines: they fill the bubble, and hold more."""
        now = time.perf_counter()
        until = now + _SCHEDULES * (self.deadline - now)
        piped = [t for t in self.tried if t.estimate_s is not None and t.shape.size > 1]
        for each in sorted(piped, key=Tried.rank)[:3]:
            assert each.estimate_s is not None
            if each.estimate_s > _NEAR * self._least_estimate():
                return
            layouts: Layouts | None = None
            for other in self.by_schedule[but_for_schedule(each)]:
                if not other.shape.is_plain:
                    layouts = layouts or self._layouts(each.shape)
                    self._estimate(other, until, layouts)

    def _solve(self, each: Tried, sharing: int) -> None:
        """The best plan of a shape, in a part of the time that is left."""
        self.show(f"solving {each.shape}", self.tried, self.bound)
        left_s = max(_LEAST_TIME_S, self.deadline - time.perf_counter())
        request = replace(
            request_at(self.request, each.shape), time_limit_s=left_s / max(1, sharing)
        )
        try:
            captured = self.captures.whole(each.shape.microbatches)
        except CaptureError as error:
            self._has_no_plan(each, error)
            return
        try:
            if each.shape.pipeline is None:
                each.found = find_on_mesh(captured, request, each.shape.mesh)
                floor = each.found.solution.certificate.bound
            else:
                cuts = () if each.cut is None else (each.cut,)
                each.found = search_pipeline(captured, request, cuts)
                floor = each.found.floor
        except (HintError, InfeasibleError, LayoutError) as error:
            self._has_no_plan(each, error, request, captured)
            return
        each.status = "solved"
        each.floor_s = max(each.floor_s, min(floor, time_of(each.found)))
        # Shapes come by number of axes: of equal plans the one with fewer axes stays.
        if self.best is None or time_of(each.found) < time_of(self.best.found) * _SAME:
            self.best = each

    def _has_no_plan(
        self,
        each: Tried,
        error: AutoplanError,
        request: Request | None = None,
        captured: Captured | None = None,
    ) -> None:
        """Take notice of a failure, which only where nothing could be tried is a proof."""
        each.status = "no plan"
        bound = getattr(error, "bound", None)
        undecided = bound is not None or isinstance(error, UndecidedError)
        some_cut = each.shape.pipeline is not None and not isinstance(error, HintError)
        if isinstance(error, InfeasibleError) and (undecided or some_cut):
            each.status = "too little memory"  # none was found, and there may be one
            each.floor_s = max(each.floor_s, bound or 0.0)
        if self.failure is None or self.failure.captured is None:
            self.failure = NoPlanError(error, request, captured)

    # -- proving ----------------------------------------------------------------------------

    def _prove(self) -> None:
        """Raise the lowest floors: of each mesh by the model solved whole on it.

        As long as all before took. With the fewest microbatches, whose ops and collectives take the
        least together: cutting a batch further adds latencies, and makes no part of any cut smaller
        than its share.
        """
        if self.best is None:
            if self._is_small():
                self._solve_rest()
            return
        asked: set[Kind] = set()
        now = time.perf_counter()
        until = min(self.deadline, now + max(_LEAST_TIME_S, now - self.start))
        while time.perf_counter() < until and not self._is_proven():
            best = time_of(self.best.found)
            self._rule_out(best)
            left = [t for t in self.tried if t.status not in ("ruled out", "no plan")]
            left = [t for t in left if t.floor_s < best and kind_of(t.shape.mesh) not in asked]
            if not left:
                break
            each = min(left, key=lambda t: (t.shape.mesh.mesh.ndim, t.floor_s))
            asked.add(kind_of(each.shape.mesh))
            self.show(f"proving {each.shape.mesh.mesh}", self.tried, self.bound)
            self._raise_floors(each.shape.mesh)
        self._rule_out(time_of(self.best.found))
        if self._is_small():
            self._solve_rest()

    def _is_small(self) -> bool:
        sites = len(self.captures.short(self.fewest).captured.graph.nodes)
        return sites * len(self.tried) <= _SMALL

    def _solve_rest(self) -> None:
        """What is not ruled out by its floor, as long as there is time: then the best is proven."""
        left = [t for t in self.tried if t.status in ("open", "estimated", "too little memory")]
        for each in sorted(left, key=Tried.rank):
            if time.perf_counter() > self.deadline or self._is_proven():
                return
            if self.best is None or each.floor_s < time_of(self.best.found):
                self._solve(each, 2)
        if self.best is not None:
            self._rule_out(time_of(self.best.found))

    def _rule_out(self, best: float) -> None:
        for each in self.tried:
            if each.status in ("open", "estimated", "too little memory") and each.floor_s >= best:
                each.status = "ruled out"

    def _raise_floors(self, mesh: MeshChoice) -> None:
        work_s = self._whole_s(mesh)
        for each in self.tried:
            if kind_of(each.shape.mesh) == kind_of(mesh):
                each.raise_floor(work_s, once=True)

    def _whole_s(self, mesh: MeshChoice) -> float:
        """Seconds that no plan on one mesh takes less than, whatever its memory."""
        left_s = max(_LEAST_TIME_S, self.deadline - time.perf_counter())
        fewest = self.fewest_on[kind_of(mesh)]
        request = request_at(self.request, Shape(mesh, fewest))
        request = replace(request, memory_bytes=_UNLIMITED, recompute="none", time_limit_s=left_s)
        try:
            found = find_on_mesh(self.captures.priced(fewest), request, mesh)
        except (HintError, InfeasibleError):
            return 0.0
        return found.solution.certificate.bound


def _bounded(found: Found | Piped, bound: float, interrupted: bool) -> Found | Piped:
    """The best with the bound of the whole space."""
    if isinstance(found, Piped):
        return replace(found, floor=min(found.floor, bound))
    proof = found.solution.certificate
    bound = min(bound, proof.bound)
    distance = relative_gap(proof.objective, bound)
    proof = replace(proof, bound=bound, gap=distance)
    if interrupted:
        proof = replace(proof, status="interrupted")
    elif distance > 0 and proof.status == "optimal":
        proof = replace(proof, status="not proven")
    return replace(found, solution=replace(found.solution, certificate=proof))
