"""What second runs cost: in the problem, and by op and collective."""

from __future__ import annotations

import pytest

from autoplan import ledger
from autoplan.pricing import inner_collectives
from autoplan.recompute.pricing import SecondRuns
from tests.recompute.cases import NAMES, finite_choices, posed, subsets

SEEDS = range(5)


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_problem_counts_what_second_runs_take(name: str, microbatches: int) -> None:
    case = posed(name, microbatches)
    second = SecondRuns(case.annotated, case.pricer)
    for seed, blocks in zip(SEEDS, [*subsets(case.blocks)][:0:-1], strict=False):
        choices = finite_choices(case.problem, seed)
        more = second.added_to(case.problem, blocks).objective(choices)
        taken = second.seconds(blocks, choices)
        assert more - case.problem.objective(choices) == pytest.approx(taken, rel=1e-9)
        assert taken >= sum(second.least_s(block) for block in blocks) > 0.0


@pytest.mark.parametrize("name", NAMES)
def test_every_microbatch_runs_a_second_time(name: str) -> None:
    one, three = posed(name, 1), posed(name, 3)
    choices = finite_choices(one.problem, 0)
    taken = [SecondRuns(c.annotated, c.pricer).seconds(c.blocks, choices) for c in (one, three)]
    assert taken[1] == pytest.approx(3 * taken[0])


@pytest.mark.parametrize("name", NAMES)
def test_second_runs_take_their_ops_and_collectives_once_more(name: str) -> None:
    """Local boxing aside, which costs next to nothing here."""
    case = posed(name, 2)
    sites, pricer = case.annotated.sites, case.pricer
    for seed in SEEDS:
        choices = finite_choices(case.problem, seed)
        chosen = [s.candidates[c] for s, c in zip(sites, choices, strict=True)]
        plain = ledger.collectives(case.annotated, choices, pricer, False)
        for block in case.blocks:
            rows = ledger.collectives(case.annotated, choices, pricer, False, [block])
            again = [row for row in rows if row.direction == ledger.AGAIN]
            assert [row for row in rows if row.direction != ledger.AGAIN] == list(plain)
            assert {row.path for row in again} <= {sites[at].path for at in block.sites}
            assert all(row.count % 2 == 0 for row in again)
            ops_s = 2 * sum(pricer.op_times_s(sites[at], chosen[at])[0] for at in block.again)
            inner_s = 2 * sum(
                pricer.cost_model.collective_time_s(each.kind, float(each.size_bytes), each.axis)
                for at in block.again
                for each in inner_collectives(sites[at], chosen[at], pricer.mesh)
                if not each.backward
            )
            known_s = ops_s + sum(row.time_s for row in again) - inner_s
            taken_s = SecondRuns(case.annotated, pricer).seconds([block], choices)
            assert known_s - 1e-12 <= taken_s <= 1.2 * known_s
