"""What a search found: the best choices on one mesh, with all that describes and emits them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autoplan.hints import Hint
from autoplan.memory.schedule import Block
from autoplan.memory.stage_memory import StageMemory, stage_memory
from autoplan.plan import Memory
from autoplan.pricing import Pricer
from autoplan.sites import Annotated
from autoplan.solver import Solution


@dataclass(frozen=True)
class Found:
    """The best choices on one mesh. The objective of the solution also counts soft hints.

    limited: whether choices that are faster may take too much memory.
    """

    hints: tuple[Hint, ...]
    annotated: Annotated
    pricer: Pricer
    solution: Solution
    memory: Memory
    recomputed: tuple[Block, ...] = ()
    limited: bool = True

    @property
    def step_time_s(self) -> float:
        """Seconds of a step, without what wishes of soft hints are worth."""
        penalty_s = self.annotated.penalty_s(self.solution.choices)
        return self.solution.certificate.objective - penalty_s

    @property
    def peak_memory_bytes(self) -> int:
        """Predicted bytes at the peak, on the rank with the largest shards."""
        return self.memory.total

    @cached_property
    def held(self) -> StageMemory:
        """What is alive at each event of a schedule that runs it as a stage."""
        choices = self.solution.choices
        return stage_memory(self.annotated, choices, self.pricer, self.recomputed)
