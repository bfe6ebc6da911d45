"""Traffic: the collectives that single decisions cause, and what each strategy of an op moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from autoplan.boxing import COLLECTIVES
from autoplan.buckets import bucketed
from autoplan.conversions import convert
from autoplan.cost_models.collectives import collective_bytes
from autoplan.errors import LayoutError
from autoplan.formulate import priced_outputs
from autoplan.layouts import B, Layout
from autoplan.plan import Plan
from autoplan.pricing import Pricer, inner_collectives
from autoplan.sites import Candidate, Site
from autoplan.strategies.rule import TensorMeta
from autoplan.units import seconds, size
from autoplan.why.origin import Origin, known_origin
from autoplan.why.question import Question
from autoplan.why.tables import table


@dataclass(frozen=True)
class Transfer:
    """Collectives of one kind at one place: `count` of `bytes` each in a step.

    `bytes` as in `Collective`; `sent_bytes`: what one rank sends in all of them together; `time_s`
    of all together. `source`, `target`: what is turned into what, in words. `shared`: it travels in
    a bucket, and pays its part of it.
    """

    kind: str
    bytes: int
    count: int
    axis: str
    phase: str
    direction: str
    time_s: float
    sent_bytes: float
    source: str
    target: str
    shared: bool = False

    def __str__(self) -> str:
        bucket = ", its part of a bucket" if self.shared else ""
        return (
            f"{self.count} x {self.kind} of {size(self.bytes)} on {self.axis}, {self.phase} "
            f"{self.direction}{bucket}, {self.source} -> {self.target}: {seconds(self.time_s)}"
        )


def caused(
    question: Question, choices: Sequence[int], sites: Collection[int]
) -> tuple[Transfer, ...]:
    """The collectives of a step in `sites` and on edges into and out of them, in graph order."""
    annotated, keys = question.annotated, question.keys
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]
    found: list[Transfer] = []
    for at, site in enumerate(annotated.sites):
        for position, source in enumerate(site.inputs):
            if at not in sites and source.site not in sites:
                continue
            origin = annotated.sites[source.site]
            given = chosen[source.site]
            if given.policy != "step" and not site.parameter_only:
                read = site, chosen[at], position
                found += _gathered(question.pricer, origin, given, read, keys[at])
                continue
            found += _boxed(
                question.pricer,
                (chosen[source.site].outputs[source.output], chosen[at].inputs[position]),
                origin.outputs[source.output],
                "prologue" if origin.parameter_only else "body",
                (keys[source.site], keys[at]),
                shared=origin.parameter_only and not site.parameter_only,
            )
        if at in sites:
            found += _inside(question.pricer, site, chosen[at], keys[at])
    whole = Layout((B,) * annotated.mesh.ndim)
    for source, meta in priced_outputs(annotated, question.request.whole_outputs):
        if source.site in sites:
            ends = chosen[source.site].outputs[source.output], whole
            named = keys[source.site], "what the step returns"
            found += _boxed(question.pricer, ends, meta, "body", named)
    return tuple(found)


def _inside(pricer: Pricer, site: Site, candidate: Candidate, key: str) -> Iterator[Transfer]:
    """Collectives of a parameter's way from storage to use, or of an op's local program."""
    if candidate.storage is not None:
        ends = candidate.storage, candidate.carried
        named = f"{key} as stored", "as read"
        if site.kind == "parameter":
            yield from _boxed(pricer, ends, site.outputs[0], "prologue", named, shared=True)
        if site.kind == "parameter" and candidate.policy == "reduce":
            ends = candidate.carried, candidate.outputs[0]
            both = _boxed(pricer, ends, site.outputs[0], "prologue", named, shared=True)
            yield from (each for each in both if each.direction == "forward")
    phase, count = "prologue" if site.parameter_only else "body", pricer.runs(site)
    for each in inner_collectives(site, candidate, pricer.mesh):
        yield Transfer(
            each.kind,
            each.size_bytes,
            count,
            each.axis,
            phase,
            "backward" if each.backward else "forward",
            count * pricer.cost_model.collective_time_s(each.kind, each.size_bytes, each.axis),
            count * collective_bytes(each.kind, each.size_bytes, pricer.mesh.size(each.axis)),
            "inside",
            key,
        )


def _gathered(
    pricer: Pricer,
    origin: Site,
    given: Candidate,
    read: tuple[Site, Candidate, int],
    key: str,
) -> Iterator[Transfer]:
    """Collectives of a parameter that the body gathers, or reduces, for one reader."""
    times = pricer.gathers(given, *read)
    ends, named = (given.carried, given.outputs[0]), (f"parameter {origin.path}", key)
    for each in _boxed(pricer, ends, origin.outputs[0], "body", named):
        if each.direction == "backward":
            yield each
        elif times:
            yield each
            if times > 1:
                yield replace(each, direction="backward")


def _boxed(
    pricer: Pricer,
    ends: tuple[Layout, Layout],
    meta: TensorMeta,
    phase: str,
    named: tuple[str, str],
    shared: bool = False,
) -> Iterator[Transfer]:
    """Collectives of one conversion; `shared`: it travels in a bucket, and pays its part of it."""
    router = pricer.routers.prologue if shared else pricer.routers.body
    count = 1 if phase == "prologue" else pricer.setting.microbatches

    def alone(action: str, axis: str, size_bytes: int) -> float:
        return pricer.cost_model.collective_time_s(action, float(size_bytes), axis)

    price = bucketed(alone) if shared else alone
    for move in convert(router, *ends, meta, named[1]).moves:
        axis = pricer.mesh.axes[move.axis]
        whole = move.whole_bytes(meta.shape, meta.itemsize, pricer.mesh)
        ways = zip(("forward", "backward"), move.actions(meta.requires_grad), strict=False)
        for direction, action in ways:
            if action in COLLECTIVES:
                sent = count * collective_bytes(action, whole, pricer.mesh.size(axis))
                time_s = count * price(action, axis, whole)
                yield Transfer(
                    action, whole, count, axis, phase, direction, time_s, sent, *named, shared
                )


# -- what each strategy of an op moves -----------------------------------------------------------


@dataclass(frozen=True)
class StrategyCost:
    """One strategy of an op between given layouts.

    `transfers`: what turns the given operands into its own, its result into the given layout, and
    what runs inside. `work_s`: seconds of the local op, forward and backward.
    """

    strategy: str
    inputs: tuple[Layout, ...]
    output: Layout
    transfers: tuple[Transfer, ...]
    work_s: float

    @property
    def sent_bytes(self) -> float:
        """Bytes that one rank sends in a step."""
        return sum(each.sent_bytes for each in self.transfers)

    @property
    def time_s(self) -> float:
        """Seconds of its collectives in a step."""
        return sum(each.time_s for each in self.transfers)


@dataclass(frozen=True)
class StrategyCosts:
    """Every strategy of one op, by what it moves; `inputs` and `output` are the given layouts."""

    key: str
    mesh: str
    inputs: tuple[Layout, ...]
    output: Layout
    rows: tuple[StrategyCost, ...]

    def row(self, strategy: str) -> StrategyCost:
        """The row of a strategy, as `"m | n"`; LayoutError lists them."""
        for each in self.rows:
            if each.strategy == strategy:
                return each
        known = ", ".join(each.strategy for each in self.rows)
        raise LayoutError(f"{self.key} has no strategy {strategy!r}; there are {known}.")

    def __str__(self) -> str:
        head = ("strategy", "operands", "result", "sent by a rank", "time", "local op", "moved by")
        given = ", ".join(map(str, self.inputs))
        lines = [
            (
                each.strategy,
                ", ".join(map(str, each.inputs)),
                str(each.output),
                size(each.sent_bytes),
                seconds(each.time_s),
                seconds(each.work_s),
                _by_kind(each.transfers),
            )
            for each in self.rows
        ]
        title = f"{self.key} on mesh {self.mesh}, from {given} to {self.output}, bytes of a step"
        return f"{title}\n{table(head, lines, right=(3, 4, 5))}"


def _by_kind(transfers: Iterable[Transfer]) -> str:
    counts = Counter(f"{each.kind} on {each.axis}" for each in transfers)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing"


def strategy_costs(
    plan: Plan,
    origin: Origin | None,
    key: str,
    inputs: Sequence[Layout | str] | None = None,
    output: Layout | str | None = None,
) -> StrategyCosts:
    """What every strategy of the op called `key` moves between given layouts, least first.

    `inputs`: how each operand lies before, `output`: how the result shall lie; whole on every rank
    by default. Hints of the plan leave out what they forbid. Raises LayoutError for another key or
    number of operands, ConfigError for a plan without its model.
    """
    question = known_origin(origin, "strategy_costs(key)").question(plan)
    ops = {k: s for k, s in zip(question.keys, question.annotated.sites, strict=True) if s.call}
    if key not in ops:
        raise LayoutError(
            f"the plan has no op {key!r}; plan.explain(path) shows those of a module."
        )
    site, mesh = ops[key], question.annotated.mesh
    whole = Layout((B,) * mesh.ndim)
    given = [whole] * len(site.inputs) if inputs is None else [*map(Layout.parse, inputs)]
    wanted = whole if output is None else Layout.parse(output)
    if len(given) != len(site.inputs):
        raise LayoutError(f"{key} has {len(site.inputs)} operands, got {len(given)} layouts.")
    rows = [_strategy(question, key, site, each, given, wanted) for each in site.candidates]
    rows.sort(key=lambda each: (each.sent_bytes, each.time_s))
    return StrategyCosts(key, str(mesh), tuple(given), wanted, tuple(rows))


def _strategy(
    question: Question,
    key: str,
    site: Site,
    candidate: Candidate,
    given: Iterable[Layout],
    wanted: Layout,
) -> StrategyCost:
    pricer, phase = question.pricer, "prologue" if site.parameter_only else "body"
    assert site.call is not None
    moved: list[Transfer] = []
    metas = site.call.inputs
    for number, (layout, own, meta) in enumerate(zip(given, candidate.inputs, metas, strict=True)):
        moved += _boxed(pricer, (layout, own), meta, phase, (f"operand {number}", key))
    moved += _inside(pricer, site, candidate, key)
    ends = candidate.outputs[0], wanted
    moved += _boxed(pricer, ends, site.outputs[0], phase, (key, "its result"))
    work_s = pricer.runs(site) * sum(pricer.op_times_s(site, candidate))
    inner_s = sum(each.time_s for each in moved if each.source == "inside")
    return StrategyCost(
        str(candidate), candidate.inputs, candidate.outputs[0], tuple(moved), work_s - inner_s
    )
