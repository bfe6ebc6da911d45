"""Changes: what one set of choices decides otherwise than another, ties left as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoplan.planfiles.diff import spell
from autoplan.planfiles.patterns import Key, grouped
from autoplan.planfiles.write import by_section
from autoplan.why.question import Question

_PASSES = 4


def without_ties(
    question: Question, choices: Sequence[int], before: Sequence[int], held: Sequence[int] = ()
) -> tuple[int, ...]:
    """`choices` with those of `before` wherever that costs nothing and still fits; `held` stay.

    One site at a time, until nothing changes: what differs then differs for a reason, or several
    sites would have to change together.
    """
    problem = question.problem
    edges: dict[int, list[tuple[int, int]]] = {}
    for u, v in problem.edges:
        edges.setdefault(u, []).append((u, v))
        edges.setdefault(v, []).append((u, v))
    result = list(choices)

    def cost(at: int) -> float:
        pairs = (float(problem.edges[u, v][result[u], result[v]]) for u, v in edges.get(at, ()))
        return float(problem.variables[at].cost[result[at]]) + sum(pairs)

    for _ in range(_PASSES):
        changed = False
        for at in (i for i, old in enumerate(before) if result[i] != old and i not in held):
            mine, had = result[at], cost(at)
            result[at] = before[at]
            if cost(at) > had * (1 + 1e-12):
                result[at] = mine
            else:
                changed = True
        if not changed:
            break
    peak = question.timeline.totals(result).max()
    fits = peak <= max(question.request.memory_bytes, question.timeline.totals(choices).max())
    same = problem.objective(result) <= problem.objective(choices) * (1 + 1e-12)
    return tuple(result) if fits and same else tuple(choices)


def num_changes(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """How many decisions differ."""
    return sum(after.get(key) != choice for key, choice in before.items())


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """A line for each decision that differs, repeated blocks as one: parameters, then ops.

    Boxing behind an op follows from it, and is left out where the op or parameter is listed.
    """
    lines = []
    later = by_section(after)
    for section, mine in by_section(before).items():
        theirs = later[section]
        differ = {
            key: f"{spell(choice)} -> {spell(theirs.get(key, 'none'))}"
            for key, choice in mine.items()
            if theirs.get(key) != choice
        }
        shown = {
            Key.of(key): text
            for key, text in differ.items()
            if key.rpartition(":")[0] not in differ
        }
        lines += [f"{pattern}: {text}" for pattern, text in grouped(shown)]
    return lines


def shown(lines: Sequence[str], most: int) -> list[str]:
    """The first lines, and how many more there are."""
    left = len(lines) - most
    return [*lines[:most], *([f"and {left} more"] if left > 0 else [])]
