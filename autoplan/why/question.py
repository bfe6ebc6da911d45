"""Questions: what a plan is the answer to, to be asked again with something changed."""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoplan.cost_models import Cluster
from autoplan.describe import site_keys
from autoplan.formulate import formulate
from autoplan.memory.liveness import timeline_of
from autoplan.memory.peak import memory_at_peak
from autoplan.memory.schedule import Block
from autoplan.memory.timeline import Timeline
from autoplan.memory.within_memory import fastest_that_fits, repeated_classes
from autoplan.pricing import Pricer
from autoplan.recompute.blocks import blocks_of
from autoplan.recompute.pricing import SecondRuns
from autoplan.request import Request
from autoplan.sites import Annotated
from autoplan.solver import Problem, restrict

Kept = Mapping[int, NDArray[np.bool_]]
"""Site -> which of its candidates stay; the others are forbidden."""


@dataclass(frozen=True)
class Answer:
    """Choices of a question, and what they cost.

    `objective`: seconds, with what wishes of soft hints are charged; `step_time_s` without. `gap`:
    of the objective, 0.0 where it is proven to be the least. `moments`: of the timeline, those
    whose memory had to be limited.
    """

    choices: tuple[int, ...]
    objective: float
    step_time_s: float
    peak_memory_bytes: int
    gap: float
    moments: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Question:
    """What a plan is the answer to: sites and prices on one mesh, within a memory limit."""

    annotated: Annotated
    keys: tuple[str, ...]
    """Of the sites, as in plans."""
    request: Request
    pricer: Pricer
    problem: Problem
    timeline: Timeline
    recomputed: tuple[Block, ...] = ()

    def with_cluster(self, cluster: Cluster) -> Question:
        """The same question on other hardware."""
        return pose(self.annotated, replace(self.request, cluster=cluster), self._names)

    def within(self, memory_bytes: int) -> Question:
        """The same question with another memory limit."""
        return replace(self, request=replace(self.request, memory_bytes=memory_bytes))

    def named(self, choices: Sequence[int]) -> dict[str, str]:
        """`choices` as plans hold them; arguments and constants, which have no choice, left out."""
        return {
            key: str(site.candidates[choice])
            for key, site, choice in zip(self.keys, self.annotated.sites, choices, strict=True)
            if site.kind in ("parameter", "op", "box")
        }

    def choices_of(self, named: Mapping[str, str]) -> tuple[int, ...] | None:
        """The choices called so; None where one is not possible here, or not mentioned."""
        positions: dict[int, dict[str, int]] = {}
        choices = []
        for key, site in zip(self.keys, self.annotated.sites, strict=True):
            if site.kind not in ("parameter", "op", "box"):
                choices.append(0)
                continue
            known = positions.get(id(site.candidates))
            if known is None:
                known = {str(each): i for i, each in reversed([*enumerate(site.candidates)])}
                positions[id(site.candidates)] = known
            if named.get(key) not in known:
                return None
            choices.append(known[named[key]])
        return tuple(choices)

    def price(self, choices: Sequence[int], gap: float = 1.0) -> Answer:
        """What given choices cost; nothing is proven of them."""
        objective = self.problem.objective(choices)
        return Answer(
            tuple(choices),
            objective,
            objective - self.annotated.penalty_s(choices),
            memory_at_peak(self.timeline, choices).total,
            gap,
        )

    def solve(
        self,
        kept: Kept | None = None,
        start: Sequence[int] | None = None,
        time_limit_s: float | None = None,
        moments: Sequence[int] = (),
    ) -> Answer:
        """The best choices within the memory limit, with some candidates forbidden.

        `start`: choices to begin with. `moments`: of the timeline, limited from the beginning.
        Raises InfeasibleError where nothing is left that fits.
        """
        limit_s = self.request.time_limit_s if time_limit_s is None else time_limit_s
        found = fastest_that_fits(
            restrict(self.problem, kept) if kept else self.problem,
            self.timeline,
            self._classes(kept or {}),
            float(self.request.memory_bytes),
            time.perf_counter() + limit_s,
            self.request.gap,
            start,
            moments,
        )
        answer = self.price(found.solution.choices, found.solution.certificate.gap)
        return replace(answer, moments=found.moments)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.recomputed)

    def _classes(self, kept: Kept) -> list[Hashable] | None:
        """Repeated blocks, but for those that `kept` speaks of: these are blocks of their own."""
        classes = repeated_classes(self.annotated)
        if classes is None:
            return None
        sites = self.annotated.sites
        alone = {_block(sites[at].path) for at in kept} - {""}
        return [
            (label, at) if at in kept or _block(sites[at].path) in alone else label
            for at, label in enumerate(classes)
        ]


def pose(annotated: Annotated, request: Request, recomputed: Sequence[str] = ()) -> Question:
    """The question of `request` on annotated sites, with the blocks `recomputed` that a plan has.

    They stay: what is asked is how the layouts would change.
    """
    pricer = request.pricer(annotated.mesh)
    blocks = blocks_of(annotated, pricer, recomputed) if recomputed else ()
    problem = formulate(annotated, pricer, request.whole_outputs)
    problem = SecondRuns.of(annotated, pricer).added_to(problem, blocks)
    timeline = timeline_of(annotated, pricer, blocks)
    keys = tuple(site_keys(annotated))
    return Question(annotated, keys, request, pricer, problem, timeline, blocks)


def _block(path: str) -> str:
    """The path up to its first number: the block that a site stands in, if any."""
    match = re.match(r"^(.*?(?:^|\.)\d+)(?=\.|$)", path)
    return match.group(1) if match else ""
