"""Alternatives: what it would cost in total to choose otherwise at one place, solved again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoplan.errors import InfeasibleError
from autoplan.sites import Site
from autoplan.units import seconds, size
from autoplan.why.changes import changes, num_changes, shown, without_ties
from autoplan.why.question import Answer, Question
from autoplan.why.tables import table

_MAX_FORCED = 8
_NUM_SHOWN = 4


def decision(question: Question, inside: Sequence[int]) -> int | None:
    """The site to ask about: the parameter, the op of most work, or where an argument is boxed."""
    sites = question.annotated.sites
    open_ = [at for at in inside if len(sites[at].candidates) > 1]
    ops = [at for at in inside if sites[at].call is not None]
    among = [at for at in ops if at in open_] or ops or open_
    kinds = {sites[at].kind for at in inside if sites[at].kind != "box"}
    if kinds == {"parameter"}:
        among = [at for at in inside if sites[at].kind == "parameter"]
    return max(among, key=lambda at: (*_work(sites[at]), -at), default=None)


def _work(site: Site) -> tuple[float, int]:
    """Arithmetic of the whole op, and elements of its results."""
    flops = site.rule.total_flops(site.call) if site.rule is not None and site.call else 0.0
    return flops, sum(math.prod(meta.shape) for meta in site.outputs)


@dataclass(frozen=True)
class Again:
    """Solves the plan's question again, with choices of one site forbidden or forced."""

    question: Question
    given: Answer
    at: int
    deadline: float

    @property
    def site(self) -> Site:
        return self.question.annotated.sites[self.at]

    def without(self, forbidden: Sequence[str]) -> Answer | None:
        """The best without some choices of the site; None where there is none that fits."""
        return self._solved(np.array([str(c) not in forbidden for c in self.site.candidates]))

    def _solved(self, kept: NDArray[np.bool_]) -> Answer | None:
        left_s = max(1.0, self.deadline - time.perf_counter())
        if not kept.any():
            return None
        try:
            answer = self.question.solve(
                {self.at: kept}, start=self.given.choices, time_limit_s=left_s
            )
        except InfeasibleError:
            return None
        kept_alike = without_ties(self.question, answer.choices, self.given.choices, (self.at,))
        return self.question.price(kept_alike, answer.gap)

    def told(self, what: str, answer: Answer | None) -> Iterator[str]:
        """An answer beside the plan, and what it decides otherwise."""
        if answer is None:
            yield f"  {what}: none that fits"
            return
        time_s, percent, memory = self.beside(answer)
        label = self.site.candidates[answer.choices[self.at]]
        yield (
            f"  {what}: {label}, {seconds(answer.step_time_s)} a step ({time_s}, {percent}), "
            f"{size(answer.peak_memory_bytes)} peak ({memory}){_proof(answer)}"
        )
        before, after = self.question.named(self.given.choices), self.question.named(answer.choices)
        key = self.question.keys[self.at]
        count = num_changes(before, after) - 1
        if count:
            others = "1 other decision changes" if count == 1 else f"{count} other decisions change"
            yield f"    {others} with it:"
            own = {key: after[key]}
            lines = changes({**before, **own}, after)
            yield from (f"      {line}" for line in shown(lines, _NUM_SHOWN))

    def beside(self, answer: Answer) -> tuple[str, str, str]:
        """Differences to the plan: time, percent, memory."""
        more_s = answer.step_time_s - self.given.step_time_s
        if abs(more_s) < 1e-12:
            more_s = 0.0
        percent = more_s / self.given.step_time_s if self.given.step_time_s else 0.0
        more = answer.peak_memory_bytes - self.given.peak_memory_bytes
        return (
            _signed(more_s, seconds(abs(more_s))),
            f"{percent:+.2%}",
            _signed(more, size(abs(more))),
        )

    def forced(self, best: Answer | None) -> Iterator[str]:
        """Every other choice with its total, those that cost least by themselves first."""
        labels = self._labels()
        mine = str(self.site.candidates[self.given.choices[self.at]])
        answers: dict[str, Answer | None] = {mine: self.given}
        if best is not None:
            answers[str(self.site.candidates[best.choices[self.at]])] = best
        for label in labels:
            if len(answers) >= _MAX_FORCED or time.perf_counter() > self.deadline:
                break
            if label not in answers:
                kept = np.array([str(c) == label for c in self.site.candidates])
                answers[label] = self._solved(kept)
        rows = sorted(
            answers.items(), key=lambda e: e[1].objective if e[1] is not None else math.inf
        )
        yield f"  choices of {self.question.keys[self.at]}, each forced and all else solved again"
        head = ("choice", "step time", "", "", "peak memory", "")
        lines = [self._row(label, answer, label == mine) for label, answer in rows]
        yield table(head, lines, right=(1, 2, 3, 4), indent="    ")
        left = len(labels) - len(answers)
        if left > 0:
            yield f"    and {left} more, which cost more by themselves, not solved"

    def _row(self, label: str, answer: Answer | None, is_plan: bool) -> tuple[str, ...]:
        if answer is None:
            return (label, "-", "", "", "-", "does not fit")
        time_s, percent, _ = self.beside(answer)
        step, peak = seconds(answer.step_time_s), size(answer.peak_memory_bytes)
        if is_plan:
            return (label, step, "", "", peak, "this plan")
        return (label, step, time_s, percent, peak, _proof(answer).removeprefix(", "))

    def _labels(self) -> list[str]:
        """Choices by the least that they cost at this site and its edges, whatever others do."""
        problem, at = self.question.problem, self.at
        least = problem.variables[at].cost.copy()
        for (u, v), matrix in problem.edges.items():
            if at in (u, v):
                least += matrix.min(axis=1 if u == at else 0)
        order = np.argsort(least, kind="stable")
        return [*dict.fromkeys(str(self.site.candidates[i]) for i in order if least[i] < np.inf)]


def _proof(answer: Answer) -> str:
    return f", gap {answer.gap:.2%}" if answer.gap > 0.0 else ""


def _signed(value: float, text: str) -> str:
    return "+-"[value < 0] + text if value else "+0"
