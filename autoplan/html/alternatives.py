"""Alternatives: what else each distinct op or parameter could be, and what that would add.

One choice is forced, the decisions near it are solved again, all others stay: what is told is a
whole plan that can be had, so a choice adds at most that much. `Plan.explain` solves all again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.errors import AutoplanError
from autoplan.html.tree import Node, Tree
from autoplan.html.wiring import Asked
from autoplan.memory.timeline import FloatArray, Term
from autoplan.repeated import template
from autoplan.solver import ProblemBuilder, restrict, solve

BUDGET_S = 8.0
"""Seconds that the alternatives of one report may take; those of most work come first."""
_NEAR = 28
"""Decisions that are solved again beside a forced one."""
_MOST = 6
"""Choices of one decision that are tried, those first that cost least by themselves."""


@dataclass(frozen=True)
class Alternative:
    """A choice, the layout of its result, and what a step and the peak would have more than now.

    `time_s` None: no plan near this one has it.
    """

    choice: str
    layout: str
    time_s: float | None
    memory_bytes: float = 0.0
    fits: bool = True
    is_plan: bool = False


@dataclass(frozen=True)
class Alternatives:
    """By node; `left_out`: nodes that have others, which the time was not enough for.

    `more`: by node, how many choices were not tried. `like`: nodes that have the rows of another,
    the same decision of another block, and its path.
    """

    found: dict[Node, tuple[Alternative, ...]]
    more: dict[Node, int]
    like: dict[Node, str]
    left_out: int


def alternatives_of(tree: Tree, asked: Sequence[Asked], budget_s: float) -> Alternatives:
    """The alternatives of every distinct op that does something, and of every parameter."""
    deadline = time.perf_counter() + budget_s
    found: dict[Node, tuple[Alternative, ...]] = {}
    more: dict[Node, int] = {}
    waiting: list[tuple[float, int, Node, _Near, int]] = []
    for each in asked:
        near = _Near(each)
        seen: set[Node] = set()
        for at, site in enumerate(each.question.annotated.sites):
            key = site.path if site.kind == "parameter" else each.question.keys[at]
            node = tree.places.get((each.number, key))
            if node is None or node in seen or node.is_view or len(site.candidates) < 2:
                continue
            if site.kind in ("op", "parameter"):
                seen.add(node)
                waiting.append((near.weight(at), len(waiting), node, near, at))
    waiting.sort(key=lambda entry: (-entry[0], entry[1]))
    known: dict[Hashable, Node] = {}
    like: dict[Node, str] = {}
    left_out = 0
    for is_new in (True, False):
        for _, _, node, near, at in waiting:
            kind = template(node.path), str(near.sites[at].candidates[near.given[at]])
            if node in found or (is_new and kind in known):
                continue
            if time.perf_counter() < deadline:
                rows, more[node] = near.alternatives(at)
                found[node] = rows
                known.setdefault(kind, node)
            elif kind in known and not is_new:
                first = known[kind]
                found[node], more[node], like[node] = found[first], more[first], first.path
            elif not is_new:
                left_out += 1
    return Alternatives(found, more, like, left_out)


class _Near:
    """A question around its answer: who is next to whom, and the bytes alive at every moment."""

    def __init__(self, asked: Asked) -> None:
        self.question, self.given = asked.question, asked.given.choices
        self.sites = self.question.annotated.sites
        self.problem = self.question.problem
        self.around: list[dict[int, FloatArray]] = [{} for _ in self.sites]
        self.array_of: dict[tuple[int, int], int] = {}
        for (u, v), matrix in self.problem.edges.items():
            self.around[u][v] = matrix
            self.around[v][u] = matrix.T
            self.array_of[u, v] = self.array_of[v, u] = id(matrix)
        self.solved: dict[Hashable, tuple[int, ...] | None] = {}
        self.totals = self.question.timeline.totals(self.given)
        self.terms: dict[int, list[Term]] = {}
        for term in self.question.timeline.terms:
            for at in {term.site, term.site if term.reader is None else term.reader}:
                self.terms.setdefault(at, []).append(term)

    def weight(self, at: int) -> float:
        """How much a decision is about: its own seconds, and a parameter's bytes as seconds."""
        site = self.sites[at]
        size = sum(meta.num_bytes for meta in site.outputs) / 1e12
        own = float(self.problem.variables[at].cost[self.given[at]])
        return own + (size if site.kind == "parameter" else size / 100)

    def alternatives(self, at: int) -> tuple[tuple[Alternative, ...], int]:
        """The plan's choice and others, cheapest first; and how many more there are."""
        site = self.sites[at]
        labels: dict[str, list[int]] = {}
        for index in self._by_own_cost(at):
            labels.setdefault(str(site.candidates[index]), []).append(index)
        mine = str(site.candidates[self.given[at]])
        tried = [label for label in labels if label != mine][: _MOST - 1]
        near = self._nearest(at)
        rows = [self._forced(at, label, labels[label], near) for label in tried]
        candidate = site.candidates[self.given[at]]
        rows.append(Alternative(mine, str(candidate.outputs[0]), 0.0, is_plan=True))
        rows.sort(key=lambda row: (row.time_s is None, row.time_s or 0.0, not row.is_plan))
        return tuple(rows), len(labels) - len({*tried, mine})

    def _by_own_cost(self, at: int) -> Iterable[int]:
        least = self.problem.variables[at].cost.copy()
        for matrix in self.around[at].values():
            least = least + matrix.min(axis=1)
        return (int(i) for i in np.argsort(least, kind="stable") if np.isfinite(least[i]))

    def _nearest(self, at: int) -> list[int]:
        """The site, and those that are fewest edges away."""
        found, queue = {at: None}, deque([at])
        while queue and len(found) < _NEAR:
            for other in self.around[queue.popleft()]:
                if other not in found and len(found) < _NEAR:
                    found[other] = None
                    queue.append(other)
        return list(found)

    def _forced(self, at: int, label: str, indices: Sequence[int], near: list[int]) -> Alternative:
        layout = str(self.sites[at].candidates[indices[0]].outputs[0])
        key = tuple(indices), self._kind(near)
        if key not in self.solved:
            self.solved[key] = self._solved(at, indices, near)
        best = self.solved[key]
        if best is None:
            return Alternative(label, layout, None)
        choices = list(self.given)
        for site, choice in zip(near, best, strict=True):
            choices[site] = choice
        more_s = self._cost(choices, near) - self._cost(self.given, near)
        peak = self._peak(choices, near)
        extra = peak - float(self.totals.max())
        fits = peak <= max(self.question.request.memory_bytes, float(self.totals.max()))
        return Alternative(label, layout, more_s, extra, fits)

    def _kind(self, near: list[int]) -> Hashable:
        """What is to be solved near a site: equal blocks share their arrays, and have it once."""
        position = {site: i for i, site in enumerate(near)}
        return tuple(
            (
                id(self.problem.variables[site].cost),
                *(
                    (self.array_of[site, other], position.get(other, ~self.given[other]))
                    for other in self.around[site]
                ),
            )
            for site in near
        )

    def _solved(self, at: int, indices: Sequence[int], near: list[int]) -> tuple[int, ...] | None:
        """The choices of the sites `near` one that has one of `indices`."""
        position = {site: i for i, site in enumerate(near)}
        builder = ProblemBuilder()
        for site in near:
            cost = self.problem.variables[site].cost
            for other, matrix in self.around[site].items():
                if other not in position:
                    cost = cost + matrix[:, self.given[other]]
            builder.add_variable(self.problem.variables[site].name, cost)
        for site in near:
            for other, matrix in self.around[site].items():
                if site < other and other in position:
                    builder.add_edge(position[site], position[other], matrix)
        mask = np.zeros(len(self.sites[at].candidates), dtype=np.bool_)
        mask[list(indices)] = True
        try:
            return solve(restrict(builder.build(), {0: mask}), time_limit_s=1.0).choices
        except AutoplanError:  # infeasible, or not decided in time
            return None

    def _cost(self, choices: Sequence[int], near: Collection[int]) -> float:
        """Seconds of what may have changed."""
        inside = set(near)
        total = 0.0
        for site in near:
            total += float(self.problem.variables[site].cost[choices[site]])
            for other, matrix in self.around[site].items():
                if other not in inside or site < other:
                    total += float(matrix[choices[site], choices[other]])
        return total

    def _peak(self, choices: Sequence[int], near: Collection[int]) -> float:
        """Bytes at the peak, from the terms of sites whose choice is another."""
        timeline = self.question.timeline
        changed = [site for site in near if choices[site] != self.given[site]]
        terms = {id(term): term for site in changed for term in self.terms.get(site, ())}
        change = np.zeros(timeline.num_moments + 1)
        for term in terms.values():
            value = timeline.value(term, choices) - timeline.value(term, self.given)
            change[term.first] += value
            change[term.last + 1] -= value
        return float((self.totals + np.cumsum(change)[:-1]).max())
