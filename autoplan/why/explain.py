"""Why: what was chosen at a path, what that moves, and what everything else would cost in total."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoplan.annotate import annotate
from autoplan.describe import site_keys
from autoplan.errors import LayoutError
from autoplan.hints import Hint
from autoplan.layouts import Layout
from autoplan.plan import Plan
from autoplan.policies import POLICY_TEXTS, is_lean
from autoplan.registry import rules_in_force
from autoplan.search import hints_on
from autoplan.units import seconds, size
from autoplan.why.alternatives import Again, decision
from autoplan.why.origin import Origin
from autoplan.why.question import Answer, Question
from autoplan.why.traffic import Transfer, caused

_MAX_TRANSFERS = 12


def explain(plan: Plan, origin: Origin | None, path: str) -> str:
    """What was chosen for a module, parameter, argument or op, why, and what else would cost.

    `path`: of a module, a parameter or an argument, or an op's key such as `mlp.up/linear#1`. With
    `origin` the model is solved again with the choice forbidden, and with others forced; without,
    the plan says what it knows. Raises LayoutError, with the nearest path, for an unknown one.
    """
    place = _place(plan, path)
    lines = [*_chosen(plan, place)]
    if origin is None:
        lines += _moved(plan, place)
        lines.append(
            "  what else it could be: the plan was read from a file; plan again, or load it on the "
            "model (parallelize(model, ..., plan=path).plan.explain), to have that solved."
        )
        return "\n".join(lines) + "\n"
    question, given = origin.answer(plan)
    aliases = origin.captured.aliases
    inside = _sites(question, _place(plan, aliases.get(path, path)))
    lines += _caused(caused(question, given.choices, inside))
    lines += _otherwise(plan, origin, question, given, inside)
    return "\n".join(lines) + "\n"


def explain_in_stages(plan: Plan, path: str) -> str:
    """`explain` of every stage of a pipeline that holds `path`; its times are of that stage."""
    pipeline = plan.pipeline
    assert pipeline is not None
    _place(plan, path)
    texts = []
    for number, (stage, row) in enumerate(zip(plan.stages, pipeline.stages, strict=True)):
        if _holds(stage, path):
            where = f"stage {number} of {len(plan.stages)}, on ranks {list(row.ranks)}"
            texts.append(f"{where}; a step is this stage's part of it\n{stage.explain(path)}")
    return "\n".join(texts)


def _holds(plan: Plan, path: str) -> bool:
    try:
        _place(plan, path)
    except LayoutError:
        return False
    return True


# -- what the plan itself says -------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    path: str
    kind: str
    """Of a tensor: "module", "parameter", "input", ...; "op", or "" for a module without a row."""

    def holds(self, key: str, path: str) -> bool:
        """Whether an op called `key` in module `path` is meant."""
        if self.kind == "op":
            return key == self.path
        if self.kind == "parameter":
            return False
        return not self.path or path == self.path or path.startswith(f"{self.path}.")


def _place(plan: Plan, path: str) -> _Place:
    for row in plan.tensors:
        if row.path == path:
            return _Place(path, row.kind)
    if any(row.key == path for row in plan.operations):
        return _Place(path, "op")
    if any(_Place(path, "").holds(row.key, row.path) for row in plan.operations):
        return _Place(path, "")
    known = [row.path for row in plan.tensors] + [row.key for row in plan.operations]
    near = difflib.get_close_matches(path, known, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    raise LayoutError(f"the plan has no parameter, argument, module or op {path!r}{meant}.")


def _chosen(plan: Plan, place: _Place) -> Iterator[str]:
    """Layout of the tensor at a path, and the strategies of the ops under it."""
    if place.kind not in ("", "op"):
        row = plan.tensor(place.path)
        yield f"{place.path} ({row.kind}, {row.dtype}{list(row.shape)})"
        yield (
            f"  layout {row.layout} on mesh {plan.mesh}: {list(row.local_shape)} on each rank at "
            "most"
        )
        if row.use and row.use != row.layout:
            when = POLICY_TEXTS[row.policy] or ", boxed once in the prologue"
            yield f"  a step reads it as {row.use}{when}"
    else:
        yield f"{place.path or 'the model'} ({place.kind or 'module'} on mesh {plan.mesh})"
    operations = [row for row in plan.operations if place.holds(row.key, row.path)]
    if operations:
        yield "  ops (strategy: the index split on each axis)"
    for each in operations:
        times = f"{seconds(each.forward_s)} forward, {seconds(each.backward_s)} backward"
        made = f"{list(each.shape)} as {each.layout}"
        yield f"    {each.key}: {each.choice} -> {made}, {times}"


def _moved(plan: Plan, place: _Place) -> Iterator[str]:
    """Collectives that the plan lists at a path."""
    owner = place.path.rpartition("/")[0] if place.kind == "op" else place.path
    under = _Place(owner, "")
    moved = [each for each in plan.collectives if under.holds("", each.path)]
    total_s = sum(each.time_s for each in moved)
    yield f"  collectives at {owner or 'the model'}: {seconds(total_s) if moved else 'none'}"
    for one in moved:
        yield (
            f"    {one.count} x {one.kind} of {size(one.bytes)} on {one.axis}, {one.phase} "
            f"{one.direction}, at {one.path}: {seconds(one.time_s)}"
        )


# -- what is solved again ------------------------------------------------------------------------


def _sites(question: Question, place: _Place) -> list[int]:
    """Sites at a path: its tensor with the boxing behind it, or its ops and parameters."""
    found = []
    for at, (key, site) in enumerate(zip(question.keys, question.annotated.sites, strict=True)):
        own = question.annotated.sites[site.inputs[0].site] if site.kind == "box" else site
        if own.call is None:
            module = own.path.rpartition(".")[0]
            within = place.kind in ("module", "") and place.holds("", module) and bool(module)
            meant = own.path == place.path or within
        else:
            meant = place.holds(key.rpartition(":")[0] if site.kind == "box" else key, own.path)
        if meant:
            found.append(at)
    return found


def _caused(transfers: Sequence[Transfer]) -> Iterator[str]:
    total_s = sum(each.time_s for each in transfers)
    yield "  collectives it causes" + (f", {seconds(total_s)} a step" if transfers else ": none")
    longest = sorted(transfers, key=lambda each: -each.time_s)[:_MAX_TRANSFERS]
    yield from (f"    {each}" for each in transfers if each in longest)
    left = [each for each in transfers if each not in longest]
    if left:
        yield f"    and {len(left)} more, {seconds(sum(each.time_s for each in left))} together"


def _otherwise(
    plan: Plan, origin: Origin, question: Question, given: Answer, inside: Sequence[int]
) -> Iterator[str]:
    """The next best, what it changes, and the other choices forced."""
    at = decision(question, inside)
    if at is None:
        yield "  nothing here is a choice: no other layout is possible"
        return
    site, key = question.annotated.sites[at], question.keys[at]
    yield from _forbidden(plan, origin, question, at)
    if len(site.candidates) == 1:
        yield f"  {key} has no other choice"
        return
    yield f"  the plan: {seconds(given.step_time_s)} a step, {size(given.peak_memory_bytes)} peak"
    again = Again(question, given, at, time.perf_counter() + question.request.time_limit_s)
    best = again.without([str(site.candidates[given.choices[at]])])
    yield from again.told(f"next best for {key}", best)
    chosen = site.candidates[given.choices[at]]
    if chosen.storage is not None:
        alike = [str(c) for c in site.candidates if c.storage == chosen.storage]
        yield from again.told(f"next best storage of {site.path}", again.without(alike))
    yield from again.forced(best)


def _forbidden(plan: Plan, origin: Origin, question: Question, at: int) -> Iterator[str]:
    """How many choices hints have taken away here, and which hints speak of it."""
    request = question.request
    choice = next((each for each in request.meshes if each.mesh == plan.mesh), None)
    hints: tuple[Hint, ...] = () if choice is None else hints_on(origin.captured, request, choice)
    if not hints:
        return
    free = annotate(
        origin.captured, plan.mesh, rules_in_force(), (), request.local_inputs,
        [each.name for each in question.annotated.sites if each.kind == "box"],
        {name: Layout.parse(text) for name, text in plan.wires.items()},
        any(map(is_lean, plan.choices.values())),
    )  # fmt: skip
    every = dict(zip(site_keys(free), free.sites, strict=True))[question.keys[at]].candidates
    site = question.annotated.sites[at]
    lost = len(every) - len(site.candidates)
    if lost:
        told = dict.fromkeys(h.origin for h in hints if h.node == site.name or h.matches(site.path))
        yield f"  hints forbid {lost} of its {len(every)} choices: {', '.join(told) or 'others'}"
