"""The cheapest blocks that make given choices fit, against all sets of blocks."""

from __future__ import annotations

import numpy as np
import pytest

from autoplan.memory.liveness import timeline_of
from autoplan.recompute.pricing import SecondRuns
from autoplan.recompute.select import _Effects, cheapest_blocks
from tests.recompute.cases import NAMES, finite_choices, posed, random_choices, subsets


@pytest.mark.parametrize("name", ["chain", "two axes", "gpt2"])
@pytest.mark.parametrize("seed", range(4))
def test_no_set_of_blocks_that_fits_is_cheaper(name: str, seed: int) -> None:
    case = posed(name)
    choices = random_choices(case.annotated, seed)
    second = SecondRuns(case.annotated, case.pricer)
    peaks, costs = [], []
    for blocks in subsets(case.blocks):
        totals = timeline_of(case.annotated, case.pricer, blocks).totals(choices)
        peaks.append(float(totals.max()))
        costs.append(second.seconds(blocks, choices))
    limits = sorted({*peaks, min(peaks) - 1.0})
    assert len(limits) > 2  # blocks do change the peak
    for most in limits:
        fitting = [cost for cost, peak in zip(costs, peaks, strict=True) if peak <= most]
        found = cheapest_blocks(case.annotated, case.pricer, case.blocks, choices, most)
        if not fitting:
            assert found is None
            continue
        assert found is not None
        totals = timeline_of(case.annotated, case.pricer, found).totals(choices)
        assert totals.max() <= most
        assert second.seconds(found, choices) == pytest.approx(min(fitting), rel=1e-9, abs=1e-15)


def test_nothing_is_recomputed_where_all_fits() -> None:
    case = posed("chain")
    choices = random_choices(case.annotated, 0)
    assert cheapest_blocks(case.annotated, case.pricer, case.blocks, choices, np.inf) == ()


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_block_changes_what_its_sites_touch_alone(name: str, microbatches: int) -> None:
    case = posed(name, microbatches)
    for seed in range(3):
        choices = finite_choices(case.problem, seed)
        effects = _Effects(case.annotated, case.pricer, case.blocks, choices)
        for number in range(len(case.blocks)):
            whole = effects.totals(frozenset({number})) - effects.none
            np.testing.assert_allclose(effects._change(number), whole, rtol=0.0, atol=1e-6)
