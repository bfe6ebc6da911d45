"""Peaks of the stages of a pipeline on real ranks: what `test_pipeline_memory` runs on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from autoplan.runtime.stage_step import StageStep
from tests.end_to_end.peaks import Case, Outcome, least_peak


@dataclass(frozen=True)
class StageOutcome(Outcome):
    """One case on one rank. in_flight: of its stages, the most microbatches that it held.

    planned_in_flight: what the plan says of the same stages.
    """

    in_flight: dict[int, int]
    planned_in_flight: dict[int, int]


def pipeline(
    model: str,
    size: str,
    schedule: str,
    stages: int,
    microbatches: int,
    beside: dict[str, Any] | None = None,
    cut: list[int] | None = None,
    **options: Any,
) -> Case:
    """A model of two layers a stage, cut into `stages` on as many pipeline ranks a chunk.

    beside: what `parallel` says besides the pipeline. cut: the stage map.
    """
    chunks = 1 if schedule in ("gpipe", "1f1b") else 2
    own: dict[str, Any] = {"size": stages // chunks, "schedule": schedule}
    if cut is not None:
        own["stage_map"] = cut
    parallel = {"pipeline": own, "data": 1}
    given = {"parallel": {**parallel, **(beside or {})}, "microbatches": microbatches, **options}
    more = "".join(f", {key} {value}" for key, value in {**(beside or {}), **options}.items())
    name = f"{schedule} of {stages} stages, {microbatches} microbatches{more}"
    return Case(model, size, given, name, layers=max(4, stages), batches=microbatches)


def measure_stages(rank: int, cases: Sequence[Case]) -> list[StageOutcome]:
    """All cases, one after the other, on this rank."""
    return [_measure(case) for case in cases]


def _measure(case: Case) -> StageOutcome:
    """The least peak of some steps, and the microbatches that the first one held."""
    most: Counter[int] = Counter()
    plan, peak = least_peak(case, dist.get_world_size(), _counting(most))
    assert plan.pipeline is not None
    rows = plan.pipeline.stages
    here = {n: row for n, row in enumerate(rows) if dist.get_rank() in row.ranks}
    said = "\n".join(f"stage {n}: {plan.stages[n].memory}" for n in here)
    (predicted,) = {row.rank_peak_memory_bytes for row in here.values()}
    return StageOutcome(
        peak.num_bytes,
        predicted,
        f"{said}\n{peak.table(30)}",
        dict(most),
        {n: row.in_flight for n, row in here.items()},
    )


@contextmanager
def _counting(most: Counter[int]) -> Iterator[None]:
    """Have `most` count, of every stage, the most microbatches that it holds at once."""
    forward = StageStep.forward

    def counted(step: StageStep, *args: Any, **kwargs: Any) -> Any:
        result = forward(step, *args, **kwargs)
        most[step.number] = max(most[step.number], step.in_flight)
        return result

    StageStep.forward = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        StageStep.forward = forward  # type: ignore[method-assign]
