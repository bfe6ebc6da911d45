"""Cut a chain of pieces into pipeline stages: the least seconds of a step, with a certificate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from autoplan.solver.chain.dp import Search, search_boxes
from autoplan.solver.chain.ilp import search_ilp
from autoplan.solver.chain.intervals import Intervals, smallest_bottleneck, tabulate
from autoplan.solver.chain.local import smallest_excess
from autoplan.solver.chain.problem import (
    BoolArray,
    Chain,
    Pipeline,
    StageMemoryError,
    check_cuttable,
)
from autoplan.solver.chain.recompute import Evaluation, evaluate
from autoplan.solver.problem import UndecidedError, relative_gap


@dataclass(frozen=True, eq=False)
class Assignment:
    """Stage s has the pieces first[s] .. first[s + 1] - 1; `evaluation` says what that costs.

    `objective`, `bound`: seconds of a step, and what no assignment goes below; `gap`: relative,
    0.0 if they differ by float noise only. `status`: "optimal", or "time limit" if time ran out.
    `seconds`: wall clock of the solve.
    """

    evaluation: Evaluation
    bound: float
    gap: float
    seconds: float
    status: Literal["optimal", "time limit"]
    method: Literal["shortest paths", "ILP"]

    @property
    def first(self) -> tuple[int, ...]:
        """[S + 1] positions, from 0 to n."""
        return self.evaluation.first

    @property
    def recomputed(self) -> BoolArray:
        """bool[n]."""
        return self.evaluation.recomputed

    @property
    def objective(self) -> float:
        """Seconds of a step."""
        return self.evaluation.objective


def assign(
    chain: Chain,
    pipeline: Pipeline,
    recomputed: npt.ArrayLike | None = None,
    time_limit_s: float = 60.0,
    method: Literal["shortest paths", "ILP"] | None = None,
) -> Assignment:
    """The cut into stages, and the pieces to recompute, with the least seconds of a step.

    `recomputed`: bool[n], the pieces to recompute, instead of a choice (none at all: zeros).
    `method`: by default shortest paths where every stage has a group of its own, which is exact
    and fast, and otherwise an ILP. After `time_limit_s` the best so far, with its gap. Raises
    TooManyStagesError, StageHintError or StageMemoryError if there is no assignment, UndecidedError
    if none was found in time, ValueError for arrays that do not fit each other.
    """
    start = time.perf_counter()
    alone = pipeline.num_groups == pipeline.num_stages
    method = method or ("shortest paths" if alone else "ILP")
    if method == "shortest paths" and not alone:
        raise ValueError("stages that share a group need the ILP")
    asked = chain if recomputed is None else chain.with_recomputed(recomputed)
    check_cuttable(asked, pipeline)
    intervals = tabulate(asked, pipeline)

    def price(first: tuple[int, ...]) -> float:
        evaluation = evaluate(asked, pipeline, first)
        return evaluation.objective if evaluation.fits else np.inf

    search = search_boxes if method == "shortest paths" else search_ilp
    found = search(asked, pipeline, intervals, price, start + time_limit_s)
    if found.first is None:
        raise _nothing_found(asked, pipeline, intervals, found, time_limit_s)
    evaluation = evaluate(chain, pipeline, found.first, recomputed)
    bound = min(found.bound, evaluation.objective)
    gap = relative_gap(evaluation.objective, bound)
    return Assignment(
        evaluation=evaluation,
        bound=bound,
        gap=gap,
        seconds=time.perf_counter() - start,
        status="optimal" if found.finished else "time limit",
        method=method,
    )


def _nothing_found(
    chain: Chain, pipeline: Pipeline, intervals: Intervals, found: Search, time_limit_s: float
) -> StageMemoryError | UndecidedError:
    if not found.finished:
        return UndecidedError(
            f"no cut into {pipeline.num_stages} stages was found in {time_limit_s} s, and none was "
            "ruled out; raise the time limit"
        )
    limits = pipeline.memory_bytes[list(pipeline.group)][:, None, None]
    excess = np.where(intervals.places, intervals.least_bytes - limits, np.inf)
    alone = pipeline.num_groups == pipeline.num_stages
    first = smallest_bottleneck(excess)[1]
    if not alone:
        first = smallest_excess(chain, pipeline, intervals, first)
    least = evaluate(chain, pipeline, first).memory_bytes
    worst = int(np.argmax(least - pipeline.memory_bytes))
    return StageMemoryError(
        float(least[worst]), float(pipeline.memory_bytes[worst]), worst, proven=alone
    )
