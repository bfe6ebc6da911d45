"""Values of a plan file, each checked: an error names the place, what is wrong, and a fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, get_args

import msgspec

from autoplan.errors import LayoutError
from autoplan.layouts import Layout
from autoplan.planfiles.patterns import MOST_PATHS, expanded

_MAY_BE_INFINITE = ("gap", "bound")  # where nothing is proven


class WrongError(Exception):
    """What is wrong at a place of the file, and the fix."""

    def __init__(self, place: str, problem: str, fix: str = "") -> None:
        fix = fix or "put the file back as it was saved, or plan again"
        super().__init__(f"{place}: {problem}; {fix}")


def row(kind: type[Any], held: Any, own: Mapping[str, str], place: str) -> Any:
    """A row of what a line holds and its key says."""
    if not isinstance(held, dict):
        raise WrongError(place, f"expected a table, got {short(held)}")
    for name in own:
        if name in held:
            raise WrongError(place, f"{name!r} is said by the line's key alone")
    return convert({**held, **own}, kind, place)


def convert(value: Any, kind: Any, place: str) -> Any:
    try:
        return msgspec.convert(_with_none(value, kind), kind, strict=True)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at `$")
        problem = f"{problem[:1].lower()}{problem[1:]}".replace("`", "'")
        raise WrongError(f"{place} {at.strip('.`')}".rstrip(), problem) from error


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


def check_layouts(texts: Sequence[str], ndim: int, place: str) -> None:
    for text in filter(None, texts):
        try:
            layout = Layout.parse(text)
        except LayoutError as error:
            raise wrong_text(place, error) from error
        if len(layout) != ndim:
            raise WrongError(
                place, f"the layout {text!r} has {len(layout)} entries, the mesh {ndim}"
            )


def check_names(held: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for name in held:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise WrongError(place, f"{short(name)} is not known{meant}", "take it out")


def check_numbers(held: Any, place: str) -> None:
    """No number is NaN, and none but a bound is infinite."""
    if isinstance(held, dict):
        for name, each in held.items():
            if not (name in _MAY_BE_INFINITE and isinstance(each, float) and math.isinf(each)):
                check_numbers(each, f"{place}.{name}".removeprefix("."))
    elif isinstance(held, list):
        for each in held:
            check_numbers(each, place)
    elif isinstance(held, float) and not math.isfinite(held):
        raise WrongError(place, f"{held} is no number")


def check_plain(held: Any, place: str) -> None:
    """Nothing but tables, lists, texts, numbers and truth values: no dates."""
    if isinstance(held, dict):
        for name, each in held.items():
            check_plain(each, f"{place} {name}")
    elif isinstance(held, list):
        for each in held:
            check_plain(each, place)
    elif not isinstance(held, (str, int, float)):
        raise WrongError(place, f"{short(held)} is no text, number, list or table", "take it out")


def table(held: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    table = held.get(name)
    if not isinstance(table, dict):
        problem = "is missing" if table is None else f"is no table, but {short(table)}"
        raise WrongError(place, f"{name!r} {problem}")
    return table


def short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = "a huge number"
    return text if len(text) <= 120 else f"{text[:117]}..."


def lines(lines: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, Any]]:
    """Place, path and value of every path that the patterns stand for; each path once."""
    seen: dict[str, str] = {}
    for pattern, value in lines.items():
        where = f"{place} {short(pattern)}"
        try:
            paths = expanded(pattern)
        except ValueError as error:
            raise wrong_text(where, error) from error
        if len(seen) + len(paths) > MOST_PATHS:
            problem = f"the patterns stand for more than {MOST_PATHS:,} paths"
            raise WrongError(place, problem, "name the blocks of the model only")
        for path in paths:
            if path in seen:
                problem = f"{path!r} stands there twice, also under {seen[path]!r}"
                raise WrongError(where, problem, "take it out of one")
            seen[path] = pattern
            yield where, path, value


def wrong_text(place: str, error: Exception) -> WrongError:
    """The error of a reader of texts, `what is wrong; the fix.`"""
    if "Exceeds the limit" in str(error):  # of int(): it can take seconds
        return WrongError(place, "it holds a number of too many digits", "write a smaller one")
    problem, _, fix = str(error).removesuffix(".").partition("; ")
    return WrongError(place, problem if len(problem) <= 200 else f"{problem[:197]}...", fix)
