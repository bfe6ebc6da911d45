"""The difference of two plans by meaning: what was asked, decided, predicted, and sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autoplan.plan import Plan
from autoplan.planfiles.patterns import Key, grouped, shortened
from autoplan.planfiles.write import REQUEST, by_section
from autoplan.units import seconds, size


def diff(one: Plan, other: Plan) -> str:
    """What differs, a line each, first plan -> second plan; decisions of repeated blocks as one."""
    lines = [*_asked(one, other), *_predicted(one, other), *_sent(one, other)]
    lines += _cut(one, other)
    lines += _changed("recomputed", one.recomputed, other.recomputed)
    theirs = by_section(_choices(other))
    for section, mine in by_section(_choices(one)).items():
        lines += _decided(mine, theirs[section])
    return "\n".join(lines) if lines else "no difference"


def _asked(one: Plan, other: Plan) -> Iterator[str]:
    yield from _changed("mesh", one.mesh, other.mesh)
    for name in ("model", *REQUEST, "hints"):
        yield from _changed(name, getattr(one, name), getattr(other, name))
    yield from _configured(one, other)


_SAID = ("devices", "training", "optimizer", "microbatches", "memory", "local_inputs", "outputs",
         "hints", "recompute")  # fmt: skip
"""Options that other lines of a difference are about."""


def _configured(one: Plan, other: Plan) -> Iterator[str]:
    """Options that differ, by dotted key; only where both plans have them."""
    if not one.config or not other.config:
        return
    mine, theirs = (
        dict(_flat({key: each for key, each in plan.config.items() if key not in _SAID}))
        for plan in (one, other)
    )
    for key in dict.fromkeys((*mine, *theirs)):
        yield from _changed(f"config {key}", mine.get(key), theirs.get(key))


def _flat(config: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for key, each in config.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{under}{key}.")
        elif not (under == "" and key == "cluster"):  # a name, which the request has
            yield f"{under}{key}", each


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


def _cut(one: Plan, other: Plan) -> Iterator[str]:
    """Schedule and stages of pipelines; parts that moved alike as one line."""
    for name in ("schedule", "size"):
        a, b = (getattr(each.pipeline, name, None) for each in (one, other))
        yield from _changed(f"pipeline {name}", a, b)
    for number in range(max(len(one.stages), len(other.stages))):
        a, b = (each.stages[number].mesh if number < len(each.stages) else None
                for each in (one, other))  # fmt: skip
        if one.stages and other.stages:
            yield from _changed(f"mesh of stage {number}", a, b)
    moves: dict[tuple[int | None, int | None], list[str]] = {}
    for part in dict.fromkeys((*one.stage_map, *other.stage_map)):
        move = one.stage_map.get(part), other.stage_map.get(part)
        if move[0] != move[1]:
            moves.setdefault(move, []).append(part)
    for (before, after), parts in moves.items():
        yield from _changed(f"stage of {', '.join(shortened(parts))}", before, after)


def _choices(plan: Plan) -> dict[str, str]:
    """Decisions by key; where stages of a pipeline differ in one of equal name, each one's."""
    if not plan.stages:
        return plan.choices
    found: dict[str, list[str]] = {}
    for stage in plan.stages:
        for key, text in stage.choices.items():
            texts = found.setdefault(key, [])
            if text not in texts:
                texts.append(text)
    return {key: "; ".join(texts) for key, texts in found.items()}


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
