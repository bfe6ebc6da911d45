"""Patterns: many paths that differ in block numbers alone as one line, `layers.{0..31}.norm`.

A pattern stands for exactly the paths that it spells out: a name that is a whole number may be a
set of numbers in braces, `{0..3,5}`. A name that begins with a brace itself is written with one
brace more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

MOST_PATHS = 1_000_000
"""Paths that one pattern may stand for."""

_NUMBER = re.compile(r"0|[1-9]\d{0,8}")
_RANGE = re.compile(r"(0|[1-9]\d{0,8})(?:\.\.(0|[1-9]\d{0,8}))?")


class Key(NamedTuple):
    """A path's names, and what is said of it: `/op#1`, `:0`, or any text that is no name."""

    names: tuple[str, ...]
    leaf: str

    @staticmethod
    def of(text: str, leaf: str = "") -> Key:
        """Read `a.0.b/op#1:0`, `a.0.weight:0` or `a.0`; a text with spaces is no path: one name."""
        if " " in text:
            return Key((text,), leaf)
        path, own = _leaf_of(text)
        return Key(tuple(path.split(".")) if path else (), own + leaf)


def _leaf_of(text: str) -> tuple[str, str]:
    path, slash, op = text.rpartition("/")
    if slash:
        return path, slash + op
    path, colon, output = text.rpartition(":")
    return (path, colon + output) if output.isdecimal() else (text, "")


def in_order(keys: Sequence[Key]) -> list[int]:
    """Positions of `keys`: block by block, names under their parent as the blocks show them first.

    To order again changes nothing: the second pass reads the first names of whole blocks.
    """
    order = list(range(len(keys)))
    for _ in range(2):
        ranks = dict(zip(order, _ranks([keys[i] for i in order]), strict=True))
        order.sort(key=ranks.__getitem__)
    return order


_Rank = tuple[tuple[int, int], ...]
"""Name by name: its place among its siblings, where all numbers are one, and its number."""


def _ranks(keys: Sequence[Key]) -> list[_Rank]:
    siblings: dict[tuple[str | None, ...], dict[str | None, int]] = {}
    result = []
    for names, leaf in keys:
        rank = []
        parent: tuple[str | None, ...] = ()
        for name in names:
            number = int(name) if _NUMBER.fullmatch(name) else -1
            kind = name if number < 0 else None
            known = siblings.setdefault(parent, {})
            rank.append((known.setdefault(kind, len(known)), number))
            parent = (*parent, kind)
        known = siblings.setdefault(parent, {})
        rank.append((known.setdefault(f".{leaf}", len(known)), -1))  # no name has a dot
        result.append(tuple(rank))
    return result


def grouped(rows: Mapping[Key, str]) -> list[tuple[str, str]]:
    """Lines of pattern and value: the keys of one value that differ in numbers alone are one line.

    Lines of the same names stand together, in the order of `in_order`.
    """
    keys = list(rows)
    keys = [keys[position] for position in in_order(keys)]
    places = {}
    kinds: dict[tuple[int, ...], dict[tuple[int, ...], Key]] = {}
    for key, rank in zip(keys, _ranks(keys), strict=True):
        place = tuple(at for at, _ in rank)
        places[place] = key
        numbers = tuple(number for _, number in rank if number >= 0)
        kinds.setdefault(place, {})[numbers] = key
    lines = []
    for place in sorted(kinds):
        names, leaf = places[place]
        values = {numbers: rows[key] for numbers, key in kinds[place].items()}
        for sets, value in _boxes(values):
            spelled = iter([_spell(numbers) for numbers in sets])
            filled = (next(spelled) if _NUMBER.fullmatch(n) else _escape(n) for n in names)
            lines.append((".".join(filled) + leaf, value))
    return lines


def shortened(texts: Sequence[str]) -> list[str]:
    """Patterns that stand for `texts` in their order: runs of consecutive numbers as one."""
    patterns: list[str] = []
    start = 0
    while start < len(texts):
        stop, pattern = start + 1, _escaped(texts[start])
        while stop < len(texts):
            lines = grouped({Key.of(text): "" for text in texts[start : stop + 1]})
            if len(lines) > 1 or expanded(lines[0][0]) != [*texts[start : stop + 1]]:
                break
            stop, pattern = stop + 1, lines[0][0]
        patterns.append(pattern)
        start = stop
    return patterns


def _escaped(text: str) -> str:
    ((pattern, _),) = grouped({Key.of(text): ""})
    return pattern


_Sets = tuple[tuple[int, ...], ...]


def _boxes(values: Mapping[tuple[int, ...], str]) -> list[tuple[_Sets, str]]:
    """Products of sets of numbers that hold one value each, and together every entry once."""
    if () in values:
        return [((), values[()])]
    tails: dict[int, dict[tuple[int, ...], str]] = {}
    for (first, *rest), value in values.items():
        tails.setdefault(first, {})[tuple(rest)] = value
    firsts: dict[tuple[_Sets, str], list[int]] = {}
    for number in sorted(tails):
        for box in _boxes(tails[number]):
            firsts.setdefault(box, []).append(number)
    return [((tuple(numbers), *sets), value) for (sets, value), numbers in firsts.items()]


def _spell(numbers: Sequence[int]) -> str:
    """`7`, or `{0..3,5}`."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return "{" + ",".join(parts) + "}"


def _escape(name: str) -> str:
    return "{" + name if name.startswith("{") else name


def expanded(pattern: str) -> list[str]:
    """The paths that `pattern` stands for, numbers ascending; ValueError says what is malformed."""
    if " " in pattern and not re.search(r"(^|\.)\{[\d ]", pattern):
        return [pattern.removeprefix("{") if pattern.startswith("{{") else pattern]
    path, leaf = _leaf_of(pattern)
    choices = []
    total = 1
    for name in _names_of(path):
        if name.startswith("{") and not name.startswith("{{"):
            ranges = _ranges(name)
            total *= sum(stop - start + 1 for start, stop in ranges)
            if total > MOST_PATHS:
                raise ValueError(f"it stands for more than {MOST_PATHS:,} paths")
            choices.append([str(n) for start, stop in ranges for n in range(start, stop + 1)])
        else:
            choices.append([name.removeprefix("{") if name.startswith("{{") else name])
    return [".".join(names) + leaf for names in product(*choices)]


def _names_of(path: str) -> list[str]:
    """Names between dots; those inside of braces are none."""
    names = []
    start = 0
    while True:
        if path.startswith("{", start) and not path.startswith("{{", start):
            stop = path.find("}", start) + 1
            if not stop or path[stop : stop + 1] not in ("", "."):
                raise ValueError(f"{path[start:]!r} is no set of numbers such as {{0..3,5}}")
        else:
            stop = path.find(".", start)
            stop = len(path) if stop < 0 else stop
        names.append(path[start:stop])
        if stop == len(path):
            return names
        start = stop + 1


def _ranges(text: str) -> list[tuple[int, int]]:
    """The ranges of `{0..3,5}`, ascending."""
    ranges: list[tuple[int, int]] = []
    for part in text[1:-1].split(","):
        match = _RANGE.fullmatch(part)
        start, stop = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if stop < start:
            raise ValueError(
                f"{part!r} in {text!r} is neither a number nor a range such as 0..3; write a set "
                "without spaces, as {0..3,5}"
            )
        if ranges and start <= ranges[-1][1]:
            raise ValueError(f"the numbers of {text!r} are not ascending, each once")
        ranges.append((start, stop))
    return ranges
