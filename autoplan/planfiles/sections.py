"""Sections of a plan file: what was asked, decided and computed, of a plan or one of its stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from autoplan.errors import LayoutError
from autoplan.plan import FORMAT, Collective, OperationRow, Plan, TensorRow
from autoplan.planfiles.values import (
    WrongError,
    check_layouts,
    check_names,
    check_plain,
    convert,
    lines,
    row,
    short,
    table,
    wrong_text,
)
from autoplan.planfiles.write import (
    CONFIG,
    DECIDED,
    RECOMPUTATION,
    REQUEST,
    ROWS,
    SECTIONS,
    canonical,
    read_choice,
)

MOST_DEVICES = 2**20
_FIELDS = {field.name: field for field in msgspec.structs.fields(Plan)}
_ELSEWHERE = ("format", "model", "axes", "sizes", *DECIDED, *REQUEST, *ROWS)
FIGURES = tuple(name for name in _FIELDS if name not in _ELSEWHERE)


def plan_of(
    asked: Mapping[str, Any],
    decided: Mapping[str, Any],
    figures: Mapping[str, Any],
    under: str = "",
    places: tuple[str, str] = ("the top", "[figures]"),
) -> Plan:
    """A plan of its sections, whose names begin with `under`; `places` name what holds them."""
    own, place = places
    ndim = len(asked["axes"])
    choices = _choices(decided, ndim, own, under)
    others = (*ROWS, "decisions") if own == "the top" else ROWS
    plan = Plan(
        format=FORMAT,
        choices=choices,
        tensors=tuple(_tensors(figures, ndim, place)),
        operations=tuple(_operations(figures, choices, ndim, place)),
        collectives=tuple(collectives_of(figures, place)),
        recomputed=_recomputed(decided, own, under),
        **asked,
        **fields_of(figures, FIGURES, place, others),
    )
    return canonical(plan)


def asked_of(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The model, [request] and [config]."""
    request = table(tables, "request", "the top")
    axes, sizes = mesh_of(request, "[request]")
    asked = {"axes": axes, "sizes": sizes, **fields_of(tables, ("model",), "the top")}
    if CONFIG in tables:
        asked[CONFIG] = table(tables, CONFIG, "the top")
        check_plain(asked[CONFIG], f"[{CONFIG}]")
    return asked | fields_of(request, REQUEST, "[request]", ("mesh",))


def fields_of(
    held: Mapping[str, Any], names: Sequence[str], place: str, others: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of a plan that a table holds, of their types; `others` may stand there too."""
    if place != "the top":
        check_names(held, (*names, *others), place)
    values = {}
    for name in names:
        if name in held:
            below = isinstance(held[name], dict)
            where = f"[{place.strip('[]')}.{name}]" if below else f"{place} {name}"
            values[name] = convert(held[name], _FIELDS[name].type, where)
        elif _FIELDS[name].required:
            raise WrongError(place, f"{name!r} is missing")
    return values


def mesh_of(held: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Axes and sizes of the `mesh` that a table holds."""
    mesh = table(held, "mesh", place)
    for axis, size in mesh.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 2 or not axis.strip():
            raise WrongError(
                f"{place} mesh",
                f"axis {axis!r} has the size {short(size)}",
                "name axes with whole numbers of 2 or more, as { data = 2, tensor = 4 }",
            )
    if math.prod(mesh.values()) > MOST_DEVICES:
        problem = f"it has more than {MOST_DEVICES:,} devices"
        raise WrongError(f"{place} mesh", problem, "give smaller sizes")
    return tuple(mesh), tuple(mesh.values())


def _recomputed(tables: Mapping[str, Any], own: str, under: str) -> tuple[str, ...]:
    """The blocks that backward computes again."""
    if RECOMPUTATION not in tables:
        return ()
    place = f"[{under}{RECOMPUTATION}]"
    held = table(tables, RECOMPUTATION, own)
    check_names(held, ("blocks",), place)
    if "blocks" not in held:
        raise WrongError(place, "'blocks' is missing", "list paths of modules there")
    blocks: tuple[str, ...] = convert(held["blocks"], tuple[str, ...], f"{place} blocks")
    twice = [each for number, each in enumerate(blocks) if each in blocks[:number]]
    if twice:
        raise WrongError(f"{place} blocks", f"{twice[0]!r} stands there twice", "take one out")
    return blocks


def _choices(tables: Mapping[str, Any], ndim: int, own: str, under: str) -> dict[str, str]:
    """Every decision by its key."""
    choices: dict[str, str] = {}
    for section, prefix in SECTIONS.items():
        if section not in tables and section not in ("parameters", "operations"):
            continue
        for place, path, text in lines(table(tables, section, own), f"[{under}{section}]"):
            if not isinstance(text, str):
                problem = f"expected a text, got {short(text)}"
                raise WrongError(place, problem, "write what was chosen in quotes")
            try:
                choices[prefix + path] = read_choice(section, path, text, ndim)
            except (LayoutError, ValueError) as error:
                raise wrong_text(place, error) from error
    if not choices:
        raise WrongError(
            f"[{under}operations]", f"{'the stage' if under else 'the file'} holds no decision"
        )
    return choices


def _tensors(figures: Mapping[str, Any], ndim: int, place: str) -> Iterator[TensorRow]:
    tables, section = table(figures, "tensors", place), _section(place, "tensors")
    if not any(tables.values()):
        raise WrongError(section, "it has no row, not even of an output")
    for kind in tables:
        entries = table(tables, kind, section)
        for where, path, held in lines(entries, _section(section, kind)):
            made = row(TensorRow, held, {"path": path, "kind": kind}, where)
            check_layouts((made.layout, made.use), ndim, where)
            yield made


def _operations(
    figures: Mapping[str, Any], choices: Mapping[str, str], ndim: int, place: str
) -> Iterator[OperationRow]:
    entries = table(figures, "operations", place)
    for where, key, held in lines(entries, _section(place, "operations")):
        own = {"key": key, "path": key.rpartition("/")[0], "choice": choices.get(key, "")}
        made = row(OperationRow, held, own, where)
        check_layouts((made.layout,), ndim, where)
        yield made


def collectives_of(figures: Mapping[str, Any], place: str) -> Iterator[Collective]:
    """The rows of every phase; there may be none."""
    tables = figures.get("collectives", {})  # on one device there are none
    section = _section(place, "collectives")
    if not isinstance(tables, dict):
        raise WrongError(place, f"'collectives' is no table, but {short(tables)}")
    for phase in tables:
        entries = table(tables, phase, section)
        for where, path, rows in lines(entries, _section(section, phase)):
            if not isinstance(rows, list):
                raise WrongError(where, f"expected a list, got {short(rows)}")
            for held in rows:
                yield row(Collective, held, {"path": path, "phase": phase}, where)


def _section(place: str, name: str) -> str:
    """`[figures.tensors]` of `[figures]`."""
    return f"[{place.strip('[]')}.{name}]"
