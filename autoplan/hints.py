"""Hints: what a user or a preset fixes before the solver chooses the rest."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autoplan.errors import HintError, LayoutError
from autoplan.layouts import Broadcast, Entry, Layout, Partial, Split, parse_entry
from autoplan.mesh import Mesh

At = Literal["storage", "use", "value", "op"]

HintValue = str | Layout | Sequence[Entry | str] | Mapping[str, Any]
"""What a user may write: `"S(1)"`, `"(B, S(0))"`, `"S(0)|S(1)"`, `{"tensor": "S(0)"}`, a Layout."""


@dataclass(frozen=True)
class Hint:
    """One pin. `pattern` is a glob over paths; `allowed` gives the entries left per axis.

    at="storage": how a parameter is stored between steps.
    at="use": how a parameter lies when the body of the step reads it.
    at="value": how the result of a module, or an argument of the model, lies when it is read.
    at="op": the indices over which the ops of a module may be split, by their rule's labels; `ops`
        restricts it to some op names.
    """

    pattern: str
    at: At
    allowed: Mapping[str, frozenset[Entry | str]]
    origin: str
    ops: frozenset[str] = frozenset()
    required: bool = True
    """A hint that is not required is skipped, and noted, where no candidate satisfies it."""

    def matches(self, path: str) -> bool:
        return path == self.pattern or fnmatch.fnmatchcase(path, self.pattern)

    def accepts(self, mesh: Mesh, entries: Sequence[Entry | str]) -> bool:
        """Whether a layout, or a tuple of labels, has an allowed entry on every pinned axis."""
        return all(entries[mesh.index(axis)] in allowed for axis, allowed in self.allowed.items())

    def __str__(self) -> str:
        return self.origin


def parse_hints(
    hints: Mapping[str, HintValue] | None,
    mesh: Mesh,
    parameters: Mapping[str, int],
    modules: Iterable[str],
    arguments: Mapping[str, int],
    named_axes: Sequence[str] = (),
) -> tuple[Hint, ...]:
    """Read the user's hints; raises HintError for a path that matches nothing or a bad layout.

    `parameters` and `arguments` give the number of dimensions of each path; `named_axes` also names
    axes of size 1, on which any layout is the same.
    """
    if hints is not None and not isinstance(hints, Mapping):
        raise HintError(f"hints is a dict of paths to layouts, got {type(hints).__name__}.")
    axes = tuple(named_axes) or mesh.axes
    result: list[Hint] = []
    modules = sorted(set(modules))
    for pattern, value in (hints or {}).items():
        if not isinstance(pattern, str):
            raise HintError(
                f"a hint's key is a path such as 'layers.*.fc.weight', got {pattern!r}."
            )
        origin = f"{pattern!r}: {value!r}"
        names = fnmatch.filter(parameters, pattern) or [p for p in parameters if p == pattern]
        if pattern.split(".")[-1] == "*" and _siblings(pattern, modules):
            names = []  # `layers.*` means the layers, not every parameter below them
        if names:
            ndims = {parameters[name] for name in names}
            for ndim in sorted(ndims):
                allowed = _allowed(value, mesh, axes, ndim, origin)
                for name in names:
                    if parameters[name] == ndim:
                        result.append(Hint(name, "storage", allowed, origin))
            continue
        matched = fnmatch.filter(arguments, pattern) or _siblings(pattern, modules)
        matched = matched or fnmatch.filter(modules, pattern)
        if not matched:
            raise HintError(_no_match(pattern, [*parameters, *modules, *arguments]))
        for name in matched:
            result.append(
                Hint(
                    name, "value", _allowed(value, mesh, axes, arguments.get(name), origin), origin
                )
            )
    return tuple(result)


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
    import re

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


def _allowed(
    value: HintValue, mesh: Mesh, axes: Sequence[str], ndim: int | None, origin: str
) -> dict[str, frozenset[Entry | str]]:
    try:
        per_axis = dict(value) if isinstance(value, Mapping) else _spread(value, mesh, axes)
        result: dict[str, frozenset[Entry | str]] = {}
        for axis, text in per_axis.items():
            if axis not in axes:
                raise HintError(f"hint {origin} names axis {axis!r}; the axes are {list(axes)}.")
            entries = frozenset(_alternatives(text, ndim))
            if axis in mesh.axes:
                result[axis] = entries
        return result
    except LayoutError as error:
        raise HintError(f"hint {origin}: {error}") from error


def _spread(value: Any, mesh: Mesh, axes: Sequence[str]) -> dict[str, Any]:
    """One entry means every axis; otherwise one entry an axis, in mesh order."""
    if isinstance(value, str) and "|" in value:
        return dict.fromkeys(axes, value)
    layout = _read_layout(value)
    if len(layout) == 1:
        return dict.fromkeys(axes, layout[0])
    for names in (mesh.axes, axes):
        if len(layout) == len(names):
            return dict(zip(names, layout, strict=True))
    raise LayoutError(
        f"the layout {layout} has {len(layout)} entries, the mesh {mesh} has {mesh.ndim}; "
        "give one entry for every axis, one for all, or a dict by axis."
    )


def _read_layout(value: Any) -> Layout:
    if not isinstance(value, (str, Sequence, Split, Partial, Broadcast)):
        raise LayoutError(
            f"cannot read {value!r} as a layout; write text such as 'S(1)' or '(B, S(0))', a "
            "Layout, or a dict by axis."
        )
    return Layout.parse(value)


def _alternatives(text: Any, ndim: int | None) -> Iterable[Entry]:
    parts = text.split("|") if isinstance(text, str) else [text]
    for part in parts:
        entry = parse_entry(part) if isinstance(part, str) else _read_layout(part)[0]
        yield Layout((entry,)).resolve(ndim)[0] if ndim is not None else entry
