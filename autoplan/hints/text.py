"""The language of hints: what a user may write for a layout, and its form as text.

    hint      = clause { ";" clause }
    clause    = [ slot ":" ] layout [ "~" price ]
    slot      = "storage" | "use" | "op" | "stage"
    layout    = condition                            the same on every mesh axis
              | "(" condition { "," condition } ")"  one for each axis, in mesh order
              | axis "=" condition { "," axis "=" condition }
    condition = term { "&" term }                    all of them hold
    term      = entry { "|" entry } | "!" entry      one of these | not this
    entry     = "S(1)" | "S" | "P" | "P(max)" | "B" | "B/P" | "*"
    price     = number ( "s" | "ms" | "us" )         a wish: what breaking it may save a step

`S` is a split of any dimension, `*` anything. `!S` refuses every split, `!P` every kind of addend,
`!B` the whole value, `B/P` too.

Slots: of a parameter, `storage` is how it is kept between steps (meant where there is no slot) and
`use` how a step reads it. `op` speaks of the ops of a module itself, not of modules inside it; its
entries are names of their rules' indices. `stage` has the number of a pipeline stage instead of a
layout, -1 for the last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from autoplan.errors import HintTextError, LayoutError
from autoplan.hints.conditions import ANY, SPLIT, Condition, Spread, spread_text
from autoplan.layouts import Broadcast, Entry, Layout, Partial, Split, parse_entry

Slot = Literal["value", "storage", "use", "op", "stage"]

_SLOTS: tuple[Slot, ...] = ("storage", "use", "op", "stage")
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Clause:
    """One thing that a hint says. `price_s`: seconds a step that a wish is worth; None of a pin."""

    slot: Slot
    where: Spread
    price_s: float | None = None
    stage: int = 0

    def __str__(self) -> str:
        slot = "" if self.slot == "value" else f"{self.slot}: "
        price = "" if self.price_s is None else f" ~ {self.price_s * 1e3:.12g} ms"
        return f"{slot}{self.stage if self.slot == 'stage' else spread_text(self.where)}{price}"


@dataclass(frozen=True)
class Prefer:
    """A soft hint: the plan may lie otherwise, as if that cost `ms` milliseconds a step.

    The price is per tensor that the hint names, and no part of the plan's step time. As text:
    `"S(1) ~ 0.5 ms"`. Raises HintTextError for a price that is no positive number.
    """

    layout: Any
    ms: float

    def __post_init__(self) -> None:
        number = isinstance(self.ms, (int, float)) and not isinstance(self.ms, bool)
        if not number or not 0 < self.ms < math.inf:
            raise HintTextError(
                f"Prefer({self.layout!r}, ms={self.ms!r}): the price is a positive number of "
                "milliseconds; write the layout alone for a hint that must hold."
            )


def clauses_of(value: Any) -> tuple[Clause, ...]:
    """Read what a user wrote: text, a Layout, an entry, a sequence, a dict, or a Prefer.

    Raises LayoutError for what cannot be read.
    """
    if isinstance(value, str):
        return _text_clauses(value)
    if isinstance(value, Prefer):
        return tuple(
            _priced(each, _whole_nanoseconds(value.ms * 1e-3)) for each in clauses_of(value.layout)
        )
    if isinstance(value, Mapping):
        return _dict_clauses(value)
    return (Clause("value", _sequence(value)),)


def text_of(value: Any) -> str:
    """The text that means what `value` means; `clauses_of` reads both alike."""
    return "; ".join(map(str, clauses_of(value)))


def stage_number(stage: int, num_stages: int) -> int:
    """The stage that a user's number means, negative ones from the end; LayoutError if none."""
    if -num_stages <= stage < num_stages:
        return stage % num_stages
    if num_stages == 1:
        raise LayoutError(
            f"the plan has 1 stage, so that a stage is 0 or -1, got {stage}; a pipeline, such as "
            "parallel=dict(pipeline=2), has more."
        )
    raise LayoutError(
        f"the plan has {num_stages} stages, so that a stage is 0 to {num_stages - 1}, or "
        f"{-num_stages} to -1 from the end, got {stage}."
    )


# -- texts ------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _text_clauses(text: str) -> tuple[Clause, ...]:
    return tuple(_text_clause(each, text) for each in text.split(";"))


def _text_clause(text: str, whole: str) -> Clause:
    body, tilde, price = text.partition("~")
    price_s = _price(price, whole) if tilde else None
    slot: Slot = "value"
    head, colon, rest = body.partition(":")
    if colon:
        slot = _slot(head.strip(), whole)
        body = rest
    if slot == "stage":
        if price_s is not None:
            raise LayoutError(f"cannot read hint {whole!r}: a stage has no price.")
        return Clause(slot, Condition(None), stage=_stage(body, whole))
    return Clause(slot, _text_spread(body, slot == "op"), price_s)


def _text_spread(text: str, labels: bool) -> Spread:
    inner, bare = text.strip(), True
    if inner.startswith("(") and inner.endswith(")"):
        inner, bare = inner[1:-1].strip().removesuffix(","), False
    if not inner and not bare:
        return ()
    parts = inner.split(",")
    if any("=" in part for part in parts):
        return {axis: condition for part in parts for axis, condition in [_by_axis(part, labels)]}
    conditions = tuple(_condition(part, labels) for part in parts)
    return conditions[0] if len(conditions) == 1 else conditions


def _by_axis(text: str, labels: bool) -> tuple[str, Condition]:
    axis, sign, condition = text.partition("=")
    if not sign or not axis.strip():
        raise LayoutError(
            f"cannot read {text.strip()!r}: where one entry names its axis all do, e.g. "
            "'data=B, tensor=S(0)'."
        )
    return axis.strip(), _condition(condition, labels)


def _condition(text: str, labels: bool = False) -> Condition:
    allowed: frozenset[Entry | str] | None = None
    refused: set[Entry | str] = set()
    for term in text.split("&"):
        if term.strip().startswith("!"):
            refused.add(_entry(term.strip()[1:], text, labels))
            continue
        if allowed is not None:
            raise LayoutError(
                f"cannot read {text.strip()!r}: '&' joins one list of alternatives and what is "
                "refused, e.g. 'S & !S(0)'."
            )
        allowed = frozenset(_entry(each, text, labels) for each in term.split("|"))
    if ANY in refused:
        raise LayoutError(f"{text.strip()!r} refuses every layout; drop the hint, or name one.")
    return Condition(allowed, frozenset(refused))


def _entry(text: str, whole: str, labels: bool) -> Entry | str:
    name = text.strip()
    if name == ANY or (labels and re.fullmatch(r"[A-Za-z]\w*|B/P", name)):
        return name
    if labels:
        raise LayoutError(f"cannot read index {name!r} in {whole.strip()!r}; e.g. 'op: i|o'.")
    if name == SPLIT:
        return name
    try:
        return parse_entry(name)
    except LayoutError:
        raise LayoutError(
            f"cannot read layout {whole.strip()!r} at {name!r}; entries are S(dim), S, P, B, B/P "
            "and *, with | between alternatives and ! before what is refused, one per mesh axis, "
            "e.g. '(B, S(1))' or '!S'."
        ) from None


def _price(text: str, whole: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*(s|ms|us)\s*", text)
    price = float(match.group(1)) * _UNITS[match.group(2)] if match else 0.0
    if not 0 < price < math.inf:
        raise LayoutError(f"cannot read the price in {whole!r}; write e.g. 'S(1) ~ 0.5 ms'.")
    return _whole_nanoseconds(price)


def _whole_nanoseconds(price_s: float) -> float:
    """As costs are counted; at least one."""
    return max(1, round(price_s * 1e9)) / 1e9


def _slot(name: str, whole: Any) -> Slot:
    for slot in _SLOTS:
        if name == slot:
            return slot
    raise LayoutError(
        f"cannot read {whole!r}: before ':' stands one of {', '.join(_SLOTS)}, not {name!r}."
    )


def _stage(value: Any, whole: Any) -> int:
    try:
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise LayoutError(f"cannot read {whole!r}: a stage is a whole number, such as 0 or -1.")


# -- objects ----------------------------------------------------------------------------------


def _dict_clauses(value: Mapping[Any, Any]) -> tuple[Clause, ...]:
    """Slots and axes by name; axes that are priced apart become clauses of their own."""
    clauses: list[Clause] = []
    pinned: dict[str, Condition] = {}
    for name, each in value.items():
        if not isinstance(name, str):
            raise LayoutError(f"a layout by axis has names of axes as keys, got {name!r}.")
        if name == "stage":
            clauses.append(Clause("stage", Condition(None), stage=_stage(each, dict(value))))
            continue
        if name in _SLOTS:
            clauses += _under(_slot(name, value), each)
            continue
        condition, price_s = _one_axis(each)
        if price_s is None:
            pinned[name] = condition
        else:
            clauses.append(Clause("value", {name: condition}, price_s))
    if pinned:
        clauses.insert(0, Clause("value", pinned))
    if not clauses:
        raise LayoutError("an empty dict says nothing; write e.g. {'tensor': 'S(1)'}.")
    return tuple(clauses)


def _one_axis(value: Any) -> tuple[Condition, float | None]:
    clauses = clauses_of(value)
    where = clauses[0].where
    if len(clauses) != 1 or clauses[0].slot != "value" or not isinstance(where, Condition):
        raise LayoutError(f"{value!r} is not the layout of one axis, such as 'S(1)' or '!S'.")
    return where, clauses[0].price_s


def _under(slot: Slot, value: Any) -> Sequence[Clause]:
    if isinstance(value, Prefer):
        return [
            _priced(each, _whole_nanoseconds(value.ms * 1e-3))
            for each in _under(slot, value.layout)
        ]
    if isinstance(value, str):
        return _text_clauses(f"{slot}: {value}")
    if slot == "op" and isinstance(value, Mapping):
        text = ", ".join(f"{axis}={each}" for axis, each in value.items())
        return _text_clauses(f"{slot}: {text}")
    if slot == "op" and isinstance(value, Sequence):
        return _text_clauses(f"{slot}: ({', '.join(map(str, value))})")
    found = clauses_of(value)
    if any(each.slot != "value" for each in found):
        raise LayoutError(f"cannot read {value!r} below {slot!r}: a layout belongs there.")
    return [Clause(slot, each.where, each.price_s) for each in found]


def _priced(clause: Clause, price_s: float) -> Clause:
    if clause.price_s is not None or clause.slot == "stage":
        raise LayoutError(f"{str(clause)!r} cannot be given a price, or a second one.")
    return Clause(clause.slot, clause.where, price_s)


def _sequence(value: Any) -> Spread:
    if isinstance(value, (Split, Partial, Broadcast)):
        return Condition(frozenset({value}))
    if not isinstance(value, Sequence):
        raise LayoutError(
            f"cannot read {value!r} as a layout; write text such as 'S(1)' or '(B, S(0))', a "
            "Layout, or a dict by axis."
        )
    conditions = tuple(
        _condition(each) if isinstance(each, str) else Condition(frozenset(Layout((each,))))
        for each in value
    )
    return conditions[0] if len(conditions) == 1 else conditions
