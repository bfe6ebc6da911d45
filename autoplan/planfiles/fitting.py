"""Fit: which decisions of a plan hold on a model, and which its change elsewhere has undone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoplan.annotate import annotate
from autoplan.capture import Captured
from autoplan.describe import signature, site_keys
from autoplan.errors import PlanFileError
from autoplan.layouts import Layout
from autoplan.plan import Plan
from autoplan.planfiles.patterns import Key, grouped
from autoplan.planfiles.write import by_section, is_box, spell_choice
from autoplan.policies import is_lean
from autoplan.pricing import dtype_name
from autoplan.registry import rules_in_force
from autoplan.sites import Annotated, Candidate, Site


@dataclass(frozen=True)
class Fit:
    """The sites whose candidate a plan names, and keys of decisions where plan and model differ."""

    keys: tuple[str, ...]
    held: Mapping[int, int]
    """Site -> its candidate."""
    new: tuple[str, ...]
    """Not in the plan."""
    changed: tuple[str, ...]
    """In the plan with a choice that this model's op, another one than the plan's, cannot take."""
    gone: tuple[str, ...]
    """In the plan alone."""


def annotate_as(captured: Captured, plan: Plan) -> Annotated:
    """The model on the plan's mesh, with a boxing site wherever the plan has one."""
    mesh, rules = plan.mesh, rules_in_force()
    wires = {name: Layout.parse(text) for name, text in plan.wires.items()}
    lean = any(map(is_lean, plan.choices.values()))
    annotated = annotate(captured, mesh, rules, (), plan.local_inputs, wires=wires, lean=lean)
    names = dict(zip(site_keys(annotated), (site.name for site in annotated.sites), strict=True))
    boxed = []
    for key in plan.choices:
        made, _, output = key.rpartition(":")
        if is_box(key) and key not in names and made in names:
            boxed.append(f"{names[made]}:{output}")
    if not boxed:
        return annotated
    return annotate(captured, mesh, rules, (), plan.local_inputs, boxed, wires, lean)


def fit(plan: Plan, annotated: Annotated) -> Fit:
    """Compare by key; PlanFileError for a foreign plan, and for a choice that was never possible.

    A choice that its op cannot take is an error where the op is the one that the plan was made for
    (op, arguments, shapes and types are recorded): it was typed wrong, or a rule is missing.
    """
    keys = site_keys(annotated)
    _check_kinship(plan, keys)
    recorded = _recorded(plan)
    positions: dict[int, dict[str, int]] = {}
    held: dict[int, int] = {}
    new, changed = [], []
    for at, (key, site) in enumerate(zip(keys, annotated.sites, strict=True)):
        if site.kind not in ("parameter", "op", "box"):
            held[at] = 0
            continue
        if key not in plan.choices:
            new.append(key)
            continue
        if id(site.candidates) not in positions:
            positions[id(site.candidates)] = _positions(site.candidates)
        found = _position(site, positions[id(site.candidates)], plan.choices[key])
        if found is not None:
            held[at] = found
            continue
        is_now = _kind_of(annotated.sites[site.inputs[0].site] if site.kind == "box" else site)
        was = recorded.get(key.rpartition(":")[0] if site.kind == "box" else key, is_now)
        if was == is_now:
            raise PlanFileError(_impossible(key, plan.choices[key], positions[id(site.candidates)]))
        changed.append(key)
    known = set(keys)
    gone = tuple(key for key in plan.choices if key not in known)
    return Fit(tuple(keys), held, tuple(new), tuple(changed), gone)


def _check_kinship(plan: Plan, keys: Sequence[str]) -> None:
    """A plan of this model, changed or not, shares a parameter with it; without any, an op."""
    theirs = {key for key in plan.choices if key.startswith("parameter ")} or set(plan.choices)
    if theirs.isdisjoint(keys):
        first = min(keys, key=lambda key: not key.startswith("parameter "), default="nothing")
        raise PlanFileError(
            f"the plan of {plan.model!r} is of another model: it does not mention {first!r} of "
            "this one, nor anything else of it; plan again, or give the plan of this model."
        )


def _recorded(plan: Plan) -> dict[str, str]:
    """What the plan was made for, by key: ops by signature, tensors by type and shape."""
    ops = {row.key: row.signature for row in plan.operations if row.signature}
    return ops | {f"{row.kind} {row.path}": f"{row.dtype}{list(row.shape)}" for row in plan.tensors}


def _kind_of(site: Site) -> str:
    if site.call is not None:
        return signature(site.call)
    return f"{dtype_name(site.outputs[0])}{list(site.outputs[0].shape)}"


def _positions(candidates: Iterable[Candidate]) -> dict[str, int]:
    found: dict[str, int] = {}
    for position, candidate in enumerate(candidates):
        found.setdefault(str(candidate), position)
    return found


def _position(site: Site, positions: Mapping[str, int], text: str) -> int | None:
    """The candidate called `text`; B/P is B where nothing needs a gradient (any more)."""
    if text in positions or any(meta.requires_grad for meta in site.outputs):
        return positions.get(text)
    return positions.get(text.replace("B/P", "B"))


def _impossible(key: str, text: str, possible: Iterable[str]) -> str:
    """The error for a choice that its op cannot take."""
    return (
        f"the plan file, {said_in_file(key, text)}, but this model allows "
        f"{nearest(key, text, list(possible))}. It is the same as when the plan was made, so no "
        "change of the model undid the choice: correct the line, or take it out to have the "
        "decision made again."
    )


def said_in_file(key: str, text: str) -> str:
    """`[section] 'path' says 'choice'`, in the file's spelling."""
    section, name = _place(key)
    return f"[{section}] {name!r} says {spell_choice(section, name, text)!r}"


def nearest(key: str, text: str, possible: Sequence[str], most: int = 8) -> str:
    """What is possible in the file's spelling, from the nearest to `text` on, and a guess."""
    section, name = _place(key)
    said = spell_choice(section, name, text)
    spelled = [spell_choice(section, name, each) for each in possible]
    near = difflib.get_close_matches(said, spelled, n=most, cutoff=0.0)
    more = f" and {len(spelled) - most} more" if len(spelled) > most else ""
    meant = difflib.get_close_matches(said, near, n=1)
    guess = f" (did you mean {meant[0]!r}?)" if meant else ""
    return f"{', '.join(map(repr, near)) or 'nothing'}{more}{guess}"


def _place(key: str) -> tuple[str, str]:
    return next((section, name) for section, keys in by_section({key: ""}).items() for name in keys)


def differences(plan: Plan, found: Fit, freed: Iterable[str]) -> Iterator[str]:
    """A note for every module where plan and model differ, repeated blocks as one."""
    yield from _notes("new here, solved", dict.fromkeys(found.new, ""))
    yield from _notes(
        "changed here, solved again",
        {key: f" (the file: {plan.choices[key]!r})" for key in found.changed},
    )
    yield from _notes(
        "does not go with what changed, solved again",
        {key: f" (the file: {plan.choices[key]!r})" for key in freed},
    )
    yield from _notes("not in this model, left out", dict.fromkeys(found.gone, ""))


def _notes(what: str, said: Mapping[str, str]) -> Iterator[str]:
    modules: dict[str, list[str]] = {}
    for section, entries in by_section(said).items():
        for pattern, text in grouped({Key.of(key): each for key, each in entries.items()}):
            module, own = _owner(pattern, section == "operations")
            modules.setdefault(module, []).append(f"{own}{text}")
    for module, names in modules.items():
        yield f"plan file: {what}: in {module or 'the model itself'}: {', '.join(names)}"


def _owner(pattern: str, of_op: bool) -> tuple[str, str]:
    """The module of an op, a parameter or a buffer, and what it is called there."""
    if of_op:
        module, _, own = pattern.rpartition("/")
        return module, own
    at = pattern.rfind("{") if pattern.endswith("}") else pattern.rfind(".") + 1
    return pattern[: max(at - 1, 0)], pattern[at:]
