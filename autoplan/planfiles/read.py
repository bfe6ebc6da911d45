"""Read a plan file: every value is checked; an error names the place, what is wrong, and a fix."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, get_args

import msgspec

from autoplan.errors import LayoutError, PlanFileError
from autoplan.layouts import Layout
from autoplan.plan import FORMAT, Collective, OperationRow, Plan, TensorRow
from autoplan.planfiles.patterns import MOST_PATHS, expanded
from autoplan.planfiles.write import (
    END,
    REQUEST,
    ROWS,
    SECTIONS,
    canonical,
    fingerprint,
    read_choice,
)

MOST_DEVICES = 2**20
EDITED = "the plan file was edited by hand: its figures are those of the plan before"
_FIELDS = {field.name: field for field in msgspec.structs.fields(Plan)}
_ELSEWHERE = ("format", "model", "axes", "sizes", "choices", *REQUEST, *ROWS)
_FIGURES = tuple(name for name in _FIELDS if name not in _ELSEWHERE)
_MAY_BE_INFINITE = ("gap", "bound")  # where nothing is proven


class _WrongError(Exception):
    """What is wrong at a place of the file, and the fix."""

    def __init__(self, place: str, problem: str, fix: str = "") -> None:
        fix = fix or "put the file back as it was saved, or plan again"
        super().__init__(f"{place}: {problem}; {fix}")


def read_plan(data: bytes, name: str) -> Plan:
    """The plan of a file's bytes; `name` is for the error, a PlanFileError."""
    try:
        return _plan(_tables(data))
    except _WrongError as error:
        raise PlanFileError(
            f"{name!r} is not a plan file of autoplan, or is damaged: {error}."
        ) from error


def _tables(data: bytes) -> dict[str, Any]:
    """The file as TOML, of this format and whole."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _WrongError(f"byte {error.start}", "this is no text in UTF-8") from error
    if not text.strip():
        raise _WrongError("line 1", "the file is empty")
    try:
        tables = tomllib.loads(text)
    except RecursionError as error:
        raise _WrongError("the text", "values are nested too deep for any plan") from error
    except ValueError as error:
        other = _format_of_json(text)
        if other is not None:
            raise _foreign(other) from error
        raise _wrong_text("the text", ValueError(f"it cannot be read as TOML: {error}")) from error
    form = tables.get("format")
    if form is None:
        raise _WrongError(
            "the top", f"no format = {FORMAT!r} stands there", "give the path of a plan"
        )
    if form != FORMAT:
        raise _foreign(form)
    if tables.get("end") != {END: True}:
        raise _WrongError("[end]", f"{END} = true does not stand there: the file is cut off")
    return tables


def _format_of_json(text: str) -> object:
    """The format that a file names which is JSON, as plan files of version 1 were."""
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return held.get("format") if isinstance(held, dict) else None


def _foreign(form: object) -> _WrongError:
    problem = f"the file has the format {_short(form)}, this version reads {FORMAT!r}"
    return _WrongError("format", problem, "plan again, and save the plan")


def _plan(tables: dict[str, Any]) -> Plan:
    _check_names(tables, ("format", "model", "request", *SECTIONS, "figures", "end"), "the top")
    _check_numbers(tables, "")
    request = _table(tables, "request", "the top")
    figures = _table(tables, "figures", "the top")
    axes, sizes = _mesh(_table(request, "mesh", "[request]"))
    choices = _choices(tables, len(axes))
    plan = Plan(
        format=FORMAT,
        axes=axes,
        sizes=sizes,
        choices=choices,
        tensors=tuple(_tensors(figures, len(axes))),
        operations=tuple(_operations(figures, choices, len(axes))),
        collectives=tuple(_collectives(figures)),
        **_fields(tables, ("model",), "the top"),
        **_fields(request, REQUEST, "[request]", ("mesh",)),
        **_fields(figures, _FIGURES, "[figures]", (*ROWS, "decisions")),
    )
    of = figures.get("decisions")
    if not isinstance(of, str):
        problem = "is missing" if of is None else f"is no text, but {_short(of)}"
        raise _WrongError("[figures]", f"'decisions' {problem}")
    plan = canonical(plan)
    return plan if of == fingerprint(plan) else _edited(plan)


def _edited(plan: Plan) -> Plan:
    """The plan with a note, and without a proof."""
    proof = msgspec.structs.replace(plan.certificate, status=EDITED, bound=0.0, gap=1.0)
    notes = tuple(dict.fromkeys((*plan.notes, EDITED)))
    return msgspec.structs.replace(plan, certificate=proof, notes=notes)


def _fields(
    held: Mapping[str, Any], names: Sequence[str], place: str, others: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of a plan that a table holds, of their types; `others` may stand there too."""
    if place != "the top":
        _check_names(held, (*names, *others), place)
    values = {}
    for name in names:
        if name in held:
            below = isinstance(held[name], dict)
            where = f"[{place.strip('[]')}.{name}]" if below else f"{place} {name}"
            values[name] = _convert(held[name], _FIELDS[name].type, where)
        elif _FIELDS[name].required:
            raise _WrongError(place, f"{name!r} is missing")
    return values


def _mesh(mesh: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    for axis, size in mesh.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 2 or not axis.strip():
            raise _WrongError(
                "[request] mesh",
                f"axis {axis!r} has the size {_short(size)}",
                "name axes with whole numbers of 2 or more, as { data = 2, tensor = 4 }",
            )
    if math.prod(mesh.values()) > MOST_DEVICES:
        problem = f"it has more than {MOST_DEVICES:,} devices"
        raise _WrongError("[request] mesh", problem, "give smaller sizes")
    return tuple(mesh), tuple(mesh.values())


def _choices(tables: Mapping[str, Any], ndim: int) -> dict[str, str]:
    """Every decision by its key."""
    choices: dict[str, str] = {}
    for section, prefix in SECTIONS.items():
        if section not in tables and section not in ("parameters", "operations"):
            continue
        for place, path, text in _lines(_table(tables, section, "the top"), f"[{section}]"):
            if not isinstance(text, str):
                problem = f"expected a text, got {_short(text)}"
                raise _WrongError(place, problem, "write what was chosen in quotes")
            try:
                choices[prefix + path] = read_choice(section, path, text, ndim)
            except (LayoutError, ValueError) as error:
                raise _wrong_text(place, error) from error
    if not choices:
        raise _WrongError("[operations]", "the file holds no decision")
    return choices


def _lines(lines: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, Any]]:
    """Place, path and value of every path that the patterns stand for; each path once."""
    seen: dict[str, str] = {}
    for pattern, value in lines.items():
        where = f"{place} {_short(pattern)}"
        try:
            paths = expanded(pattern)
        except ValueError as error:
            raise _wrong_text(where, error) from error
        if len(seen) + len(paths) > MOST_PATHS:
            problem = f"the patterns stand for more than {MOST_PATHS:,} paths"
            raise _WrongError(place, problem, "name the blocks of the model only")
        for path in paths:
            if path in seen:
                problem = f"{path!r} stands there twice, also under {seen[path]!r}"
                raise _WrongError(where, problem, "take it out of one")
            seen[path] = pattern
            yield where, path, value


def _wrong_text(place: str, error: Exception) -> _WrongError:
    """The error of a reader of texts, `what is wrong; the fix.`"""
    if "Exceeds the limit" in str(error):  # of int(): it can take seconds
        return _WrongError(place, "it holds a number of too many digits", "write a smaller one")
    problem, _, fix = str(error).removesuffix(".").partition("; ")
    return _WrongError(place, problem if len(problem) <= 200 else f"{problem[:197]}...", fix)


def _tensors(figures: Mapping[str, Any], ndim: int) -> Iterator[TensorRow]:
    tables = _table(figures, "tensors", "[figures]")
    if not any(tables.values()):
        raise _WrongError("[figures.tensors]", "it has no row, not even of an output")
    for kind in tables:
        lines = _table(tables, kind, "[figures.tensors]")
        for place, path, held in _lines(lines, f"[figures.tensors.{kind}]"):
            row = _row(TensorRow, held, {"path": path, "kind": kind}, place)
            _check_layouts((row.layout, row.use), ndim, place)
            yield row


def _operations(
    figures: Mapping[str, Any], choices: Mapping[str, str], ndim: int
) -> Iterator[OperationRow]:
    lines = _table(figures, "operations", "[figures]")
    for place, key, held in _lines(lines, "[figures.operations]"):
        own = {"key": key, "path": key.rpartition("/")[0], "choice": choices.get(key, "")}
        row = _row(OperationRow, held, own, place)
        _check_layouts((row.layout,), ndim, place)
        yield row


def _collectives(figures: Mapping[str, Any]) -> Iterator[Collective]:
    tables = figures.get("collectives", {})  # on one device there are none
    if not isinstance(tables, dict):
        raise _WrongError("[figures]", f"'collectives' is no table, but {_short(tables)}")
    for phase in tables:
        lines = _table(tables, phase, "[figures.collectives]")
        for place, path, rows in _lines(lines, f"[figures.collectives.{phase}]"):
            if not isinstance(rows, list):
                raise _WrongError(place, f"expected a list, got {_short(rows)}")
            for held in rows:
                yield _row(Collective, held, {"path": path, "phase": phase}, place)


def _row(kind: type[Any], held: Any, own: Mapping[str, str], place: str) -> Any:
    """A row of what a line holds and its key says."""
    if not isinstance(held, dict):
        raise _WrongError(place, f"expected a table, got {_short(held)}")
    for name in own:
        if name in held:
            raise _WrongError(place, f"{name!r} is said by the line's key alone")
    return _convert({**held, **own}, kind, place)


def _convert(value: Any, kind: Any, place: str) -> Any:
    try:
        return msgspec.convert(_with_none(value, kind), kind, strict=True)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at `$")
        problem = f"{problem[:1].lower()}{problem[1:]}".replace("`", "'")
        raise _WrongError(f"{place} {at.strip('.`')}".rstrip(), problem) from error


def _with_none(value: Any, kind: Any) -> Any:
    """What a file leaves out where it is not known: TOML has no None."""
    inner = get_args(kind)
    if isinstance(value, list) and inner:
        return [_with_none(each, inner[0]) for each in value]
    if not (
        isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    ):
        return value
    fields = msgspec.structs.fields(kind)
    optional = [field for field in fields if field.required and NoneType in get_args(field.type)]
    return {**{field.name: None for field in optional}, **value}


def _check_layouts(texts: Sequence[str], ndim: int, place: str) -> None:
    for text in filter(None, texts):
        try:
            layout = Layout.parse(text)
        except LayoutError as error:
            raise _wrong_text(place, error) from error
        if len(layout) != ndim:
            raise _WrongError(
                place, f"the layout {text!r} has {len(layout)} entries, the mesh {ndim}"
            )


def _check_names(held: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for name in held:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise _WrongError(place, f"{_short(name)} is not known{meant}", "take it out")


def _check_numbers(held: Any, place: str) -> None:
    """No number is NaN, and none but a bound is infinite."""
    if isinstance(held, dict):
        for name, each in held.items():
            if not (name in _MAY_BE_INFINITE and isinstance(each, float) and math.isinf(each)):
                _check_numbers(each, f"{place}.{name}".removeprefix("."))
    elif isinstance(held, list):
        for each in held:
            _check_numbers(each, place)
    elif isinstance(held, float) and not math.isfinite(held):
        raise _WrongError(place, f"{held} is no number")


def _table(held: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    table = held.get(name)
    if not isinstance(table, dict):
        problem = "is missing" if table is None else f"is no table, but {_short(table)}"
        raise _WrongError(place, f"{name!r} {problem}")
    return table


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = "a huge number"
    return text if len(text) <= 120 else f"{text[:117]}..."
