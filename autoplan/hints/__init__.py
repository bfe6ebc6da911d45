"""Hints: what a user or a preset fixes before the solver chooses the rest."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from autoplan.errors import HintTextError, LayoutError
from autoplan.hints.conditions import Condition, Spread
from autoplan.hints.text import Clause, Prefer, clauses_of, stage_number
from autoplan.layouts import Entry, Layout
from autoplan.mesh import Mesh

At = Literal["storage", "use", "gather", "value", "op", "stage"]

HintValue = str | Layout | Entry | Prefer | Sequence[Entry | str] | Mapping[str, Any]
"""What a user may write: `"S(1)"`, `"(B, S(0))"`, `"S(0)|S(1)"`, `"!S"`, `{"tensor": "S(0)"}`, a
Layout, `Prefer("S(1)", ms=0.5)`; see `autoplan.hints.text`."""


@dataclass(frozen=True)
class Hint:
    """One pin. `pattern` is a glob over paths; `allowed` gives the entries left per axis.

    at="storage": how a parameter is stored between steps.
    at="use": how a parameter lies when the body of the step reads it.
    at="gather": when the one is made of the other on an axis, by the names of policies.
    at="value": how the result of a module, or an argument of the model, lies when it is read.
    at="op": the indices over which the ops of a module may be split, by their rule's labels; `ops`
        restricts it to some op names.
    at="stage": the pipeline stage of a module, of what reads a parameter, or of a value.
    """

    pattern: str
    at: At
    allowed: Mapping[str, frozenset[Entry | str]]
    origin: str
    """What the user wrote: hints of one origin are one pin."""
    ops: frozenset[str] = frozenset()
    required: bool = True
    """A hint that is not required is skipped, and noted, where no candidate satisfies it."""
    refused: Mapping[str, frozenset[Entry | str]] = field(default_factory=dict)
    price_s: float | None = None
    """Of a wish: the seconds of a step that breaking it must save, for every tensor it names."""
    node: str = ""
    """The graph node whose value it pins, where it was written inside forward."""
    stage: int | None = None
    """The pipeline stage that it asks for, counted from 0."""
    elsewhere: bool = False
    """Other pipeline stages hold some of what it names: to pin nothing in this one is no error."""

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """What is asked of the entry on each axis that the hint speaks of."""
        return {
            axis: Condition(self.allowed.get(axis), self.refused.get(axis, frozenset()))
            for axis in dict.fromkeys((*self.allowed, *self.refused))
        }

    def matches(self, path: str) -> bool:
        return path == self.pattern or fnmatch.fnmatchcase(path, self.pattern)

    def accepts(self, mesh: Mesh, entries: Sequence[Entry | str]) -> bool:
        """Whether a layout, or a tuple of labels, is as asked on every axis."""
        return all(c.accepts(entries[mesh.index(axis)]) for axis, c in self.conditions.items())

    def resolve(self, ndim: int) -> Hint:
        """The hint for a tensor of `ndim` dimensions; LayoutError if it speaks of others."""
        return with_conditions(self, {a: c.resolve(ndim) for a, c in self.conditions.items()})

    def on(self, mesh: Mesh) -> Hint:
        """The hint without what it says of axes of size 1, which `mesh` does not have."""
        return with_conditions(self, {a: c for a, c in self.conditions.items() if a in mesh.axes})

    def __str__(self) -> str:
        return self.origin


def with_conditions(hint: Hint, conditions: Mapping[str, Condition]) -> Hint:
    """The same hint, asking for something else on each axis."""
    return replace(
        hint,
        allowed={axis: c.allowed for axis, c in conditions.items() if c.allowed is not None},
        refused={axis: c.refused for axis, c in conditions.items() if c.refused},
    )


def origin_of(pattern: str, value: Any) -> str:
    """A hint as the user wrote it."""
    return f"{pattern!r}: {value!r}"


def parse_hints(
    hints: Mapping[str, HintValue] | None,
    mesh: Mesh,
    parameters: Mapping[str, int],
    modules: Iterable[str],
    arguments: Mapping[str, int],
    named_axes: Sequence[str] = (),
    num_stages: int = 1,
) -> tuple[Hint, ...]:
    """Read the user's hints; raises HintTextError for a path that matches nothing or a bad layout.

    `parameters` and `arguments` give the number of dimensions of each path; `named_axes` also names
    axes of size 1, on which any layout is the same; a stage is one of `num_stages`.
    """
    if hints is not None and not isinstance(hints, Mapping):
        raise HintTextError(f"hints is a dict of paths to layouts, got {type(hints).__name__}.")
    axes = tuple(named_axes) or mesh.axes
    modules = sorted(set(modules))
    result: list[Hint] = []
    for pattern, value in (hints or {}).items():
        if not isinstance(pattern, str):
            raise HintTextError(
                f"a hint's key is a path such as 'layers.*.fc.weight', got {pattern!r}."
            )
        origin = origin_of(pattern, value)
        kind, ndims = _named(pattern, parameters, modules, arguments)
        try:
            for clause in clauses_of(value):
                named = ndims
                if clause.slot == "op" or (clause.slot == "stage" and kind == "value"):
                    named = dict.fromkeys(_matching_modules(pattern, modules))
                if clause.slot == "stage":
                    stage = stage_number(clause.stage, num_stages)
                    paths = named or ndims
                    result += [Hint(path, "stage", {}, origin, stage=stage) for path in paths]
                    continue
                result += _clause_hints(clause, kind, named, mesh, axes, origin)
        except LayoutError as error:
            raise HintTextError(f"hint {origin}: {error}") from error
    return tuple(result)


def _clause_hints(
    clause: Clause,
    kind: Literal["parameter", "value"],
    ndims: Mapping[str, int | None],
    mesh: Mesh,
    axes: Sequence[str],
    origin: str,
) -> Iterable[Hint]:
    """The pins of one clause, one for each path that it names."""
    at = _place(clause, kind, ndims, origin)
    conditions = conditions_by_axis(clause, mesh, axes)
    for path, ndim in ndims.items():
        hint = Hint(path, at, {}, origin, price_s=clause.price_s)
        hint = with_conditions(hint, conditions)
        if ndim is not None and at != "op":
            try:
                hint = hint.resolve(ndim)
            except LayoutError as error:
                raise LayoutError(f"of {path!r}, {error}") from error
        yield hint.on(mesh)


def _place(
    clause: Clause, kind: Literal["parameter", "value"], ndims: Mapping[str, Any], origin: str
) -> At:
    if clause.slot == "op":
        if not ndims:
            raise HintTextError(
                f"hint {origin}: 'op' speaks of the ops of modules, and no module has this path."
            )
        return "op"
    if kind == "parameter":
        return "use" if clause.slot == "use" else "storage"
    if clause.slot != "value":
        raise HintTextError(
            f"hint {origin}: {clause.slot!r} is for parameters; for the result of a module, or an "
            "argument, write the layout alone."
        )
    return "value"


def conditions_by_axis(
    clause: Clause, mesh: Mesh, named_axes: Sequence[str] = ()
) -> dict[str, Condition]:
    """One condition for each axis that a clause speaks of, those of size 1 too.

    Raises LayoutError where it names another axis, or has another number of entries.
    """
    axes = tuple(named_axes) or mesh.axes
    conditions = dict(_spread(clause.where, mesh, axes))
    for axis in conditions:
        if axis not in axes:
            raise LayoutError(f"it names axis {axis!r}; the axes are {list(axes)}.")
    return conditions


def _spread(where: Spread, mesh: Mesh, axes: Sequence[str]) -> Mapping[str, Condition]:
    """One entry means every axis; otherwise one entry an axis, in mesh order."""
    if isinstance(where, Condition):
        return dict.fromkeys(axes, where)
    if isinstance(where, Mapping):
        return where
    for names in (mesh.axes, axes):
        if len(where) == len(names):
            return dict(zip(names, where, strict=True))
    raise LayoutError(
        f"the layout ({', '.join(map(str, where))}) has {len(where)} entries, the mesh {mesh} has "
        f"{mesh.ndim}; give one entry for every axis, one for all, or a dict by axis."
    )


# -- paths ------------------------------------------------------------------------------------


def _named(
    pattern: str,
    parameters: Mapping[str, int],
    modules: Sequence[str],
    arguments: Mapping[str, int],
) -> tuple[Literal["parameter", "value"], dict[str, int | None]]:
    """What a pattern names, with its dimensions: parameters; else arguments; else modules."""
    names = fnmatch.filter(parameters, pattern) or [p for p in parameters if p == pattern]
    if pattern.split(".")[-1] == "*" and _siblings(pattern, modules):
        names = []  # `layers.*` means the layers, not every parameter below them
    if names:
        return "parameter", {name: parameters[name] for name in names}
    matched = fnmatch.filter(arguments, pattern) or _matching_modules(pattern, modules)
    if not matched:
        raise HintTextError(_no_match(pattern, [*parameters, *modules, *arguments]))
    return "value", {name: arguments.get(name) for name in matched}


def _matching_modules(pattern: str, modules: Sequence[str]) -> list[str]:
    return _siblings(pattern, modules) or fnmatch.filter(modules, pattern)


def _siblings(pattern: str, modules: Sequence[str]) -> list[str]:
    """Modules that match `pattern` name by name, a `*` within one name only."""
    names = pattern.split(".")
    return [
        path
        for path in modules
        if path.count(".") == pattern.count(".")
        and all(map(fnmatch.fnmatchcase, path.split("."), names))
    ]


def _no_match(pattern: str, known: list[str]) -> str:
    """Suggest the nearest path, as a pattern if the user's was one."""
    templates: dict[str, int] = {}
    for path in known:
        template = re.sub(r"\.\d+(?=\.|$)", ".*", path) if "*" in pattern else path
        templates[template] = templates.get(template, 0) + 1
    near = difflib.get_close_matches(pattern, templates, n=1, cutoff=0.4)
    if not near:
        return f"no parameter, module or argument matches {pattern!r}; pm.report() lists the paths."
    count = templates[near[0]]
    noun = "match" if count > 1 else "matches"
    return (
        f"no parameter, module or argument matches {pattern!r} "
        f"(did you mean {near[0]!r}? {count} {noun})."
    )
