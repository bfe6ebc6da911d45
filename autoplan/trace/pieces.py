"""Pieces: a step of a plan taken apart as the cost model prices it, moment by moment.

The cost model is additive: a step is the sum of its local ops and its collectives, and nothing
overlaps. So the pieces of a plan, one after the other, take `plan.step_time_s`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autoplan.boxing import COLLECTIVES, Move
from autoplan.buckets import bucketed
from autoplan.conversions import gathering
from autoplan.formulate import priced_outputs
from autoplan.layouts import B, Layout, local_shape
from autoplan.memory.schedule import Schedule
from autoplan.pricing import Pricer, dtype_name, inner_collectives, whole_nanoseconds
from autoplan.recompute.pricing import reads_again
from autoplan.sites import Candidate, Site
from autoplan.strategies.rule import TensorMeta
from autoplan.why.question import Question

Track = Literal["compute", "communication"]


@dataclass(frozen=True)
class Piece:
    """One op, collective or local turn of a layout, and its seconds."""

    name: str
    track: Track
    time_s: float
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """What runs at a moment of the memory timeline (`memory.schedule.Schedule`), in order."""

    number: int
    doing: str
    pieces: tuple[Piece, ...]

    @property
    def time_s(self) -> float:
        return sum(piece.time_s for piece in self.pieces)


@dataclass(frozen=True)
class Pieces:
    """A step: `before` and `after` once, `forward` and `backward` of one microbatch."""

    before: tuple[Moment, ...]
    forward: tuple[Moment, ...]
    backward: tuple[Moment, ...]
    after: tuple[Moment, ...]

    def step_s(self, microbatches: int) -> float:
        """Seconds of a step of so many microbatches."""
        once = sum(each.time_s for each in (*self.before, *self.after))
        return once + microbatches * sum(each.time_s for each in (*self.forward, *self.backward))


def pieces_of(question: Question, choices: Sequence[int], gathers_once: bool = False) -> Pieces:
    """The pieces of a step under `choices`.

    gathers_once: what the body gathers of parameters is after all microbatches, where the schedule
    of a pipeline counts it; otherwise it is where it runs.
    """
    return _Taker(question, choices, gathers_once).run()


class _Taker:
    def __init__(self, question: Question, choices: Sequence[int], gathers_once: bool) -> None:
        self.question, self.gathers_once = question, gathers_once
        self.annotated, self.pricer = question.annotated, question.pricer
        self.sites = self.annotated.sites
        self.choices = choices
        self.chosen = [s.candidates[c] for s, c in zip(self.sites, choices, strict=True)]
        self.block = {at: block for block in question.recomputed for at in block.sites}

    def run(self) -> Pieces:
        schedule = Schedule.of(len(self.sites), self.question.recomputed)
        forward, backward = [], []
        for number, (doing, at) in enumerate(schedule.moments, start=1):
            if doing == "forward":
                forward.append(Moment(number, doing, tuple(self._forward(at))))
            elif doing == "backward":
                backward.append(Moment(number, doing, tuple(self._backward(at))))
            else:
                backward.append(Moment(number, doing, tuple(self._again(at))))
        before, reducing, stepping = self._once()
        last = schedule.last
        return Pieces(
            before=(Moment(0, _called("gathering parameters", before), tuple(before)),),
            forward=tuple(forward),
            backward=tuple(backward),
            after=(
                Moment(last + 1, _called("reducing gradients", reducing), tuple(reducing)),
                Moment(last + 2, "the optimizer's step", tuple(stepping)),
            ),
        )

    # -- the body -----------------------------------------------------------------------------

    def _forward(self, at: int) -> Iterator[Piece]:
        site = self.sites[at]
        if site.parameter_only:
            return
        for position in range(len(site.inputs)):
            yield from self._read(at, position, 0)
        yield from self._op(at, 0)
        yield from self._given_whole(at, 0)

    def _backward(self, at: int) -> Iterator[Piece]:
        site = self.sites[at]
        if site.parameter_only:
            return
        yield from self._given_whole(at, 1)
        for position in reversed(range(len(site.inputs))):
            yield from self._gathered(at, position, again=True)
        yield from self._op(at, 1)
        for position in reversed(range(len(site.inputs))):
            yield from self._read(at, position, 1)

    def _again(self, at: int) -> Iterator[Piece]:
        """The second run of a recomputed site."""
        block = self.block[at]
        reads = {position for each, position in reads_again(self.annotated, block) if each == at}
        for position in range(len(self.sites[at].inputs)):
            if position in reads:
                yield from self._read(at, position, 0)
            else:
                yield from self._gathered(at, position, again=False)
        if at in block.again:
            yield from self._op(at, 0)

    def _op(self, at: int, direction: int) -> Iterator[Piece]:
        """A local op forward (0) or backward (1), and the collectives inside it."""
        site, candidate = self.sites[at], self.chosen[at]
        total = self.pricer.op_times_s(site, candidate)[direction]
        if not total:
            return
        inner_s = 0.0
        for each in inner_collectives(site, candidate, self.pricer.mesh):
            if each.backward == bool(direction):
                time_s = self.pricer.cost_model.collective_time_s(
                    each.kind, float(each.size_bytes), each.axis
                )
                inner_s += time_s
                args = {
                    "kind": each.kind,
                    "axis": each.axis,
                    "bytes": each.size_bytes,
                    "inside of": site.path,
                }
                yield Piece(f"{_owner(site)}: {each.kind}", "communication", time_s, args)
        name = self.question.keys[at] or site.name
        yield Piece(name, "compute", total - inner_s, self._described(site, candidate))

    def _described(self, site: Site, candidate: Candidate) -> dict[str, Any]:
        """Strategy, layouts, shapes and bytes of an op."""
        mesh, args = self.pricer.mesh, {"op": site.call.op if site.call else site.kind}
        found: dict[str, Any] = {**args, "strategy": str(candidate), "module": site.path}
        found["inputs"] = [str(layout) for layout in candidate.inputs]
        if site.outputs:
            meta, layout = site.outputs[0], candidate.outputs[0]
            found["layout"] = str(layout)
            found["shape"] = f"{dtype_name(meta)}{list(meta.shape)}"
            found["local shape"] = str(list(local_shape(meta.shape, layout, mesh)))
            found["bytes"] = self.pricer.local_bytes(meta, layout)
        if site.source_line:
            found["source"] = site.source_line
        return found

    def _read(self, at: int, position: int, direction: int) -> Iterator[Piece]:
        """Turning what a site reads of the body into its layout, and gathering parameters."""
        source = self.sites[at].inputs[position]
        origin = self.sites[source.site]
        if origin.parameter_only:
            if direction == 0:
                yield from self._gathered(at, position, again=False)
            else:
                yield from self._reduced(at, position)
            return
        layout = self.chosen[source.site].outputs[source.output]
        target, meta = self.chosen[at].inputs[position], origin.outputs[source.output]
        yield from self._converted(layout, target, meta, self.sites[at], direction)

    def _given_whole(self, at: int, direction: int) -> Iterator[Piece]:
        """Bringing outputs and buffers of a site to every rank."""
        whole = Layout((B,) * self.pricer.mesh.ndim)
        for source, meta in priced_outputs(self.annotated, self.question.request.whole_outputs):
            if source.site == at:
                layout = self.chosen[at].outputs[source.output]
                yield from self._converted(layout, whole, meta, self.sites[at], direction)

    def _converted(
        self, source: Layout, target: Layout, meta: TensorMeta, site: Site, direction: int
    ) -> Iterator[Piece]:
        path = self.pricer.routers.body.path(
            source, target, meta.shape, meta.itemsize, meta.requires_grad
        )
        for move in reversed(path) if direction else path:
            yield from _moved(self.pricer, move, meta, _owner(site), direction)

    # -- parameters that the body gathers -----------------------------------------------------

    def _times(self, at: int, position: int) -> tuple[int, TensorMeta, Candidate] | None:
        """How often a microbatch gathers a parameter for a reader; None where it has a policy not
        of the body's, or the body does nothing to it."""
        source = self.sites[at].inputs[position]
        origin, given = self.sites[source.site], self.chosen[source.site]
        if self.gathers_once or not origin.parameter_only or given.policy == "step":
            return None
        meta = origin.outputs[source.output]
        site = self.sites[at]
        return self.pricer.gathers(given, site, self.chosen[at], position), meta, given

    def _gathered(self, at: int, position: int, again: bool) -> Iterator[Piece]:
        """Gathering a parameter for a forward, or `again` for its backward."""
        known = self._times(at, position)
        if known is None or known[0] < 1 + again:
            return
        if again and at in self.block:
            return  # its second run has gathered it
        _, meta, given = known
        for move in gathering(given, meta, self.pricer.routers, "").moves:
            yield from _moved(self.pricer, move, meta, self._parameter(at, position), 0)

    def _reduced(self, at: int, position: int) -> Iterator[Piece]:
        known = self._times(at, position)
        if known is None:
            return
        _, meta, given = known
        for move in reversed(gathering(given, meta, self.pricer.routers, "").moves):
            yield from _moved(self.pricer, move, meta, self._parameter(at, position), 1)

    def _parameter(self, at: int, position: int) -> str:
        origin = self.sites[self.sites[at].inputs[position].site]
        return _owner(origin) if origin.path else _owner(self.sites[at])

    # -- once a step --------------------------------------------------------------------------

    def _once(self) -> tuple[list[Piece], list[Piece], list[Piece]]:
        """What the prologue does, what its backward does, and the optimizer."""
        ahead: list[Piece] = []
        back: list[Piece] = []
        stepping: list[Piece] = []
        for at, site in enumerate(self.sites):
            if site.parameter_only:
                ahead += self._op(at, 0)
                back[:0] = self._op(at, 1)
            if site.kind == "parameter":
                self._stored(at, ahead, back, stepping)
            for position, source in enumerate(site.inputs):
                origin, given = self.sites[source.site], self.chosen[source.site]
                if not origin.parameter_only:
                    continue
                if given.policy != "step":
                    if self.gathers_once:
                        back[:0] = self._all_gathers(at, position)
                    continue
                router = self.pricer.router(origin, site)
                meta = origin.outputs[source.output]
                layout, target = given.outputs[source.output], self.chosen[at].inputs[position]
                grad = meta.requires_grad
                path = router.path(layout, target, meta.shape, meta.itemsize, grad)
                shares = router is self.pricer.routers.prologue
                self._both_ways(path, meta, self._parameter(at, position), ahead, back, shares)
        return ahead, back, stepping

    def _stored(
        self, at: int, ahead: list[Piece], back: list[Piece], stepping: list[Piece]
    ) -> None:
        """From a parameter's storage to what the body is given, and its optimizer's pass."""
        site, given = self.sites[at], self.chosen[at]
        meta, router = site.outputs[0], self.pricer.routers.prologue
        assert given.storage is not None
        path = router.path(
            given.storage, given.carried, meta.shape, meta.itemsize, meta.requires_grad
        )
        self._both_ways(path, meta, _owner(site), ahead, back, True)
        if given.policy == "reduce":
            for move in gathering(given, meta, self.pricer.routers, "").moves:
                ahead += _moved(self.pricer, move, meta, _owner(site), 0, shared=True)
        time_s = self.pricer.optimizer_time_s(meta, given.storage)
        if time_s:
            args = {
                "layout": str(given.storage),
                "shape": f"{dtype_name(meta)}{list(meta.shape)}",
                "local shape": str(list(local_shape(meta.shape, given.storage, self.pricer.mesh))),
            }
            stepping.append(Piece(f"{_owner(site)}: optimizer", "compute", time_s, args))

    def _both_ways(
        self,
        path: Sequence[Move],
        meta: TensorMeta,
        owner: str,
        ahead: list[Piece],
        back: list[Piece],
        shared: bool,
    ) -> None:
        for move in path:
            ahead += _moved(self.pricer, move, meta, owner, 0, shared)
        for move in path:
            back[:0] = _moved(self.pricer, move, meta, owner, 1, shared)

    def _all_gathers(self, at: int, position: int) -> Iterator[Piece]:
        """All that a step's bodies do to a parameter for one reader, as one piece."""
        source = self.sites[at].inputs[position]
        origin, site = self.sites[source.site], self.sites[at]
        meta = origin.outputs[source.output]
        matrix = self.pricer.edge(origin, source.output, site, position, meta)
        time_s = float(matrix[self.choices[source.site], self.choices[at]])
        if time_s:
            name = f"{self._parameter(at, position)}: gathered and reduced in every microbatch"
            args = {"counted": "once a step", "policy": self.chosen[source.site].policy}
            yield Piece(name, "communication", time_s, args)


def _moved(
    pricer: Pricer,
    move: Move,
    meta: TensorMeta,
    owner: str,
    direction: int,
    shared: bool = False,
) -> Iterator[Piece]:
    """One step of a conversion, forward (0) or backward (1); free steps are no pieces.

    shared: priced as its share of a full bucket.
    """
    actions = move.actions(meta.requires_grad)
    if direction >= len(actions):
        return
    action, axis = actions[direction], pricer.mesh.axes[move.axis]
    size = move.whole_bytes(meta.shape, meta.itemsize, pricer.mesh)
    price = bucketed(pricer._step_price) if shared else pricer._step_price
    time_s = whole_nanoseconds(price(action, axis, size))
    if not time_s:
        return
    args: dict[str, Any] = {
        "kind": action,
        "axis": axis,
        "bytes": size,
        "layout": f"{move.source} -> {move.target}",
        "shape": f"{dtype_name(meta)}{list(meta.shape)}",
    }
    if shared:
        args["priced"] = "as its share of a full bucket"
    track: Track = "communication" if action in COLLECTIVES else "compute"
    yield Piece(f"{owner}: {action}", track, time_s, args)


def _called(name: str, pieces: Sequence[Piece]) -> str:
    """The name of what is communicated once a step, or of work on parameters alone."""
    moved = any(piece.track == "communication" for piece in pieces)
    return name if moved or not pieces else "work on parameters alone"


def _owner(site: Site) -> str:
    return site.path or "the model"
