"""Schedules on real gloo ranks: values, gradients, the order of events, and what is held."""

from __future__ import annotations

from collections.abc import Sequence

from autoplan.pipelining.schedules import SCHEDULES, read_schedule
from tests.runtime.launch import run_ranks
from tests.runtime.pipeline_steps import (
    GRAD_BYTES,
    VALUE_BYTES,
    Case,
    Outcome,
    check,
    on_ranks,
    peak_on_rank,
)
from tests.runtime.stage_programs import ALONE, PAIR

LINE = [Case(name, 4, 1 if name == "naive" else 8, ALONE) for name in SCHEDULES]
LINE += [Case(name, 4, 8, ALONE, forward_only=True) for name in ("gpipe", "1f1b", "zbv")]
PAIRS = [Case(name, 2, 1 if name == "naive" else 4, PAIR) for name in SCHEDULES]
PAIRS += [Case("zbv", 2, 4, PAIR, recompute=True)]
PEAKS = [Case("gpipe", 4, 8, ALONE), Case("1f1b", 4, 8, ALONE)]


def check_all(cases: Sequence[Case], per_rank: Sequence[Sequence[Outcome]]) -> None:
    for case, *outcomes in zip(cases, *per_rank, strict=True):
        width = case.mesh.num_devices
        check(case, outcomes, [rank % width for rank in range(len(outcomes))])
        schedule = read_schedule(case.schedule)
        orders = schedule.orders(case.ranks, case.microbatches, case.forward_only)
        for rank, outcome in enumerate(outcomes):
            assert outcome.trace == list(orders[rank // width]), f"{case} on rank {rank}"
        if not case.forward_only:
            held = schedule.in_flight(case.ranks, case.microbatches)
            for outcome in outcomes:
                assert outcome.most == {stage: held[stage] for stage in outcome.most}, str(case)


def run(rank: int) -> tuple[list[Outcome], list[Outcome], list[tuple[int, int]]]:
    peaks = [peak_on_rank(rank, case) for case in PEAKS]
    return on_ranks(rank, LINE), on_ranks(rank, PAIRS), peaks


def test_every_schedule_is_the_unsplit_model() -> None:
    per_rank = run_ranks(run, 4, timeout_s=110.0)
    check_all(LINE, [line for line, _, _ in per_rank])
    check_all(PAIRS, [pairs for _, pairs, _ in per_rank])
    for number, case in enumerate(PEAKS):
        held = read_schedule(case.schedule).in_flight(case.ranks, case.microbatches)
        for rank, (_, _, peaks) in enumerate(per_rank):
            peak, left = peaks[number]
            # Two values that each microbatch in flight saved, three that one works on, and
            # losses; the weights' gradients, unless the peak is before the first backward.
            values = (2 * held[rank] + 3) * VALUE_BYTES
            assert values <= peak <= values + GRAD_BYTES + 8 * case.microbatches, (
                f"{case} on rank {rank}"
            )
            assert left == GRAD_BYTES
