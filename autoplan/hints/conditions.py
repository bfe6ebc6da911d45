"""Conditions: what a hint asks of a layout on one mesh axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoplan.layouts import BP, B, Entry, Layout, Partial, Split

ANY = "*"
SPLIT = "S"
"""Entries that stand for many: anything, and a split of any dimension."""


@dataclass(frozen=True)
class Condition:
    """What the entry of one axis must be: among `allowed`, where that is given; not `refused`.

    What is refused includes its variants: B also refuses B/P, and P every kind of addend. The
    names of a rule's indices stand for entries where ops are pinned.
    """

    allowed: frozenset[Entry | str] | None
    refused: frozenset[Entry | str] = frozenset()

    def accepts(self, entry: Entry | str) -> bool:
        """Whether an entry of a layout, or the name of an index, is as asked."""
        if any(_refuses(each, entry) for each in self.refused):
            return False
        return self.allowed is None or any(_is(each, entry) for each in self.allowed)

    def resolve(self, ndim: int) -> Condition:
        """Negative dimensions counted on a tensor; LayoutError for one that it does not have."""
        allowed = None if self.allowed is None else _resolved(self.allowed, ndim)
        return Condition(allowed, _resolved(self.refused, ndim))

    @property
    def only_splits(self) -> bool:
        """Whether nothing but a split is accepted."""
        allowed = self.allowed or ()
        return bool(allowed) and all(isinstance(e, Split) or e == SPLIT for e in allowed)

    def __str__(self) -> str:
        terms = [f"!{entry}" for entry in sorted(map(str, self.refused))]
        if self.allowed is not None:
            terms.insert(0, "|".join(sorted(map(str, self.allowed))))
        return " & ".join(terms)


Spread = Condition | tuple[Condition, ...] | Mapping[str, Condition]
"""A condition for every axis, one for each in mesh order, or by axis."""


def spread_text(where: Spread) -> str:
    if isinstance(where, Condition):
        return str(where)
    if isinstance(where, tuple):
        return f"({', '.join(map(str, where))})"
    return ", ".join(f"{axis}={condition}" for axis, condition in where.items())


def _resolved(entries: frozenset[Entry | str], ndim: int) -> frozenset[Entry | str]:
    return frozenset(
        each if isinstance(each, str) else Layout((each,)).resolve(ndim)[0] for each in entries
    )


def _is(wanted: Entry | str, entry: Entry | str) -> bool:
    return wanted in (ANY, entry) or (wanted == SPLIT and isinstance(entry, Split))


def _refuses(refused: Entry | str, entry: Entry | str) -> bool:
    if refused in (B, "B"):
        return entry in (B, BP, "B", "B/P")
    if refused == Partial():
        return isinstance(entry, Partial)
    return _is(refused, entry)
