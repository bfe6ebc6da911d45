"""Select: the cheapest blocks to recompute so that given choices fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoplan.errors import InfeasibleError
from autoplan.memory.liveness import timeline_of
from autoplan.memory.schedule import Block
from autoplan.pricing import Pricer
from autoplan.recompute.pricing import SecondRuns
from autoplan.sites import Annotated, Site
from autoplan.solver import Limit, Problem, ProblemBuilder, solve

FloatArray = NDArray[np.float64]

_MOST_ROUNDS = 200
_TIME_LIMIT_S = 5.0


def cheapest_blocks(
    annotated: Annotated,
    pricer: Pricer,
    blocks: Sequence[Block],
    choices: Sequence[int],
    most: float,
) -> tuple[Block, ...] | None:
    """Those of `blocks` whose second runs take least, such that `choices` take `most` bytes.

    None where no set of them is enough. A block is a binary variable; moments at which too much is
    alive become limits one by one. What a block saves depends on others only where two read one
    value from outside: the limits use the most that it saves in any company, so that a set which
    fits is the cheapest, and one that does not after all is forbidden by itself.
    """
    second = SecondRuns.of(annotated, pricer)
    effects = _Effects(annotated, pricer, blocks, choices)
    builder = ProblemBuilder()
    for block in blocks:
        builder.add_variable(block.name, [0.0, second.seconds([block], choices)])
    problem = builder.build()
    limits: list[Limit] = []
    limited: set[int] = set()
    chosen: frozenset[int] = frozenset()
    for _ in range(_MOST_ROUNDS):
        totals = effects.totals(chosen)
        moment = int(totals.argmax())
        if totals[moment] <= most:
            return tuple(blocks[number] for number in sorted(chosen))
        if moment not in limited:
            limited.add(moment)
            limits.append(effects.limit(moment, most))
        else:
            limits.append(_another(chosen, len(blocks)))
        try:
            solution = solve(Problem(problem.variables, {}, tuple(limits)), None, _TIME_LIMIT_S)
        except InfeasibleError:
            return None
        chosen = frozenset(number for number, yes in enumerate(solution.choices) if yes)
    return None


def _another(chosen: frozenset[int], count: int) -> Limit:
    """Every set but `chosen`."""
    vectors = {
        number: np.array([0.0, 1.0 if number in chosen else -1.0]) for number in range(count)
    }
    return Limit("another set", len(chosen) - 1.0, vectors)


def _touched(annotated: Annotated, block: Block) -> set[int]:
    """The sites of a block, those that read of it, and those that it reads, through views."""
    sites = annotated.sites
    touched = set(block.sites)
    waiting = list(block.sites)
    while waiting:
        for source in sites[waiting.pop()].inputs:
            if source.site not in touched:
                touched.add(source.site)
                if _may_be_view(sites[source.site]):
                    waiting.append(source.site)
    inside = set(block.sites)
    touched |= {
        at for at, site in enumerate(sites) if any(each.site in inside for each in site.inputs)
    }
    return touched


def _may_be_view(site: Site) -> bool:
    return site.kind == "box" or (site.rule is not None and site.rule.kind == "free")


class _Effects:
    """What recomputing blocks does to the bytes alive under `choices`, moment by moment."""

    def __init__(
        self,
        annotated: Annotated,
        pricer: Pricer,
        blocks: Sequence[Block],
        choices: Sequence[int],
    ) -> None:
        self.annotated, self.pricer, self.choices = annotated, pricer, choices
        self.blocks = tuple(blocks)
        self._known: dict[frozenset[int], FloatArray] = {}
        every = frozenset(range(len(blocks)))
        self.none = self.totals(frozenset())
        alone = [self._change(each) for each in every]
        self.changes = alone
        together = self.totals(every) - self.none
        if not np.allclose(sum(alone, np.zeros_like(together)), together, rtol=0.0, atol=0.5):
            last = [self.totals(every) - self.totals(every - {each}) for each in every]
            self.changes = [np.minimum(*pair) for pair in zip(alone, last, strict=True)]

    def _change(self, number: int) -> FloatArray:
        """What recomputing one block alone does: only what its sites touch changes."""
        block = self.blocks[number]
        idle = [each for each in self.blocks if each is not block]
        touched = _touched(self.annotated, block)
        after = timeline_of(self.annotated, self.pricer, [block], idle, touched)
        before = timeline_of(self.annotated, self.pricer, [], self.blocks, touched)
        change: FloatArray = after.totals(self.choices) - before.totals(self.choices)
        return change

    def totals(self, chosen: frozenset[int]) -> FloatArray:
        """Bytes alive if the blocks of these numbers are recomputed."""
        if chosen not in self._known:
            again = [block for number, block in enumerate(self.blocks) if number in chosen]
            idle = [block for number, block in enumerate(self.blocks) if number not in chosen]
            timeline = timeline_of(self.annotated, self.pricer, again, idle)
            self._known[chosen] = timeline.totals(self.choices)
        return self._known[chosen]

    def limit(self, moment: int, most: float) -> Limit:
        """At least the bytes alive at one moment, as a sum over the blocks that are recomputed."""
        vectors = {
            number: np.array([0.0, change[moment]]) for number, change in enumerate(self.changes)
        }
        return Limit(f"moment {moment}", most, vectors, {}, float(self.none[moment]))
