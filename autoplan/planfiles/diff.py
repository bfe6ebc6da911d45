"""The difference of two plans by meaning: what was asked, decided, predicted, and sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autoplan.plan import Plan
from autoplan.planfiles.patterns import Key, grouped
from autoplan.planfiles.write import REQUEST, by_section
from autoplan.units import seconds, size


def diff(one: Plan, other: Plan) -> str:
    """What differs, a line each, first plan -> second plan; decisions of repeated blocks as one."""
    lines = [*_asked(one, other), *_predicted(one, other), *_sent(one, other)]
    theirs = by_section(other.choices)
    for section, mine in by_section(one.choices).items():
        lines += _decided(mine, theirs[section])
    return "\n".join(lines) if lines else "no difference"


def _asked(one: Plan, other: Plan) -> Iterator[str]:
    yield from _changed("mesh", one.mesh, other.mesh)
    for name in ("model", *REQUEST, "hints"):
        yield from _changed(name, getattr(one, name), getattr(other, name))


def _predicted(one: Plan, other: Plan) -> Iterator[str]:
    for name, text, a, b in (
        ("step time", seconds, one.step_time_s, other.step_time_s),
        ("peak memory", size, one.peak_memory_bytes, other.peak_memory_bytes),
    ):
        if a != b:
            change = f" ({b / a - 1:+.1%})" if a else ""
            yield f"{name}: {text(a)} -> {text(b)}{change}"
    mine, theirs = one.certificate, other.certificate
    yield from _changed("certificate", mine.status, theirs.status)
    yield from _changed("gap", f"{mine.gap:.3%}", f"{theirs.gap:.3%}")


def _sent(one: Plan, other: Plan) -> Iterator[str]:
    """Collectives of a step by kind and axis: how many, and their bytes and time together."""
    mine, theirs = _totals(one), _totals(other)
    for kind in dict.fromkeys((*mine, *theirs)):
        yield from _changed(kind, mine.get(kind, "none"), theirs.get(kind, "none"))


def _totals(plan: Plan) -> dict[str, str]:
    totals: dict[str, tuple[int, int, float]] = {}
    for row in plan.collectives:
        if row.phase != "outputs":
            name = f"{row.kind} on {row.axis}"
            count, moved, time_s = totals.get(name, (0, 0, 0.0))
            moved += row.count * row.bytes
            totals[name] = (count + row.count, moved, time_s + row.time_s)
    return {
        name: f"{count} of {size(moved)} in {seconds(time_s)}"
        for name, (count, moved, time_s) in totals.items()
    }


def _decided(mine: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[str]:
    changes: dict[Key, str] = {}
    for key in dict.fromkeys((*mine, *theirs)):
        a, b = mine.get(key), theirs.get(key)
        if a is None or b is None:
            held = f"only in the {'second' if a is None else 'first'} plan, {spell(a or b or '')}"
            changes[Key.of(key)] = held
        elif a != b:
            changes[Key.of(key)] = f"{spell(a)} -> {spell(b)}"
    yield from (f"{pattern}: {change}" for pattern, change in grouped(changes))


def spell(choice: str) -> str:
    """A choice without an arrow of its own."""
    stored, arrow, use = choice.partition(" -> ")
    return f"{stored} read as {use}" if arrow and use != stored else stored


def _changed(name: str, a: Any, b: Any) -> Iterator[str]:
    if a != b:
        yield f"{name}: {_text(a)} -> {_text(b)}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "; ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
