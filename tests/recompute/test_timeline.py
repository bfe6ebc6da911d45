"""What recomputed blocks do to the bytes alive, moment by moment, under any choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.memory.liveness import timeline_of
from autoplan.memory.schedule import Block
from tests.recompute.cases import NAMES, Posed, posed, random_choices

ROUNDING = 1.0
"""Bytes: sums of whole numbers in float64."""


def entering_bytes(case: Posed, block: Block, choices: Sequence[int]) -> float:
    """What a block reads from outside, as it lies, each value once; its base may be larger."""
    sites, inside = case.annotated.sites, set(block.sites)
    values = {
        (source.site, source.output)
        for at in block.sites
        for source in sites[at].inputs
        if source.site not in inside and not sites[source.site].parameter_only
    }
    return float(sum(sites[at].outputs[output].num_bytes for at, output in values))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Posed, list[int], tuple[Block, ...]]:
    case = posed(draw(st.sampled_from(NAMES)), draw(st.sampled_from([1, 2])))
    choices = random_choices(case.annotated, draw(st.integers(0, 10**6)))
    picked = draw(st.lists(st.booleans(), min_size=len(case.blocks), max_size=len(case.blocks)))
    return case, choices, tuple(b for b, yes in zip(case.blocks, picked, strict=True) if yes)


def both(case: Posed, choices: Any, blocks: Sequence[Block]) -> tuple[Any, Any, Any]:
    """Totals without and with recomputation at the same moments, and the schedule."""
    again = timeline_of(case.annotated, case.pricer, blocks)
    plain = timeline_of(case.annotated, case.pricer, (), blocks)
    return plain.totals(choices), again.totals(choices), again.schedule


@settings(max_examples=40, deadline=None)
@given(cases())
def test_forward_holds_no_more_than_before_and_what_enters_blocks(drawn: Any) -> None:
    case, choices, blocks = drawn
    plain, again, schedule = both(case, choices, blocks)
    entering = sum(entering_bytes(case, block, choices) for block in blocks)
    assert len(plain) == len(again) == schedule.last + 3
    turn = len(case.annotated.sites)
    assert (again[: turn + 1] <= plain[: turn + 1] + entering + ROUNDING).all()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_backward_of_a_block_holds_what_it_held_before(drawn: Any) -> None:
    """Once a block has run again it is as if nothing had been given up; but for what enters it."""
    case, choices, blocks = drawn
    for block in blocks:
        plain, again, schedule = both(case, choices, [block])
        own = [schedule.backward[at] for at in block.sites if block.first <= at < block.last]
        entering = entering_bytes(case, block, choices)
        assert (again[own] >= plain[own] - ROUNDING).all()
        assert (again[own] <= plain[own] + entering + ROUNDING).all()


@settings(max_examples=20, deadline=None)
@given(cases())
def test_what_is_no_activation_stays_as_it_is(drawn: Any) -> None:
    case, choices, blocks = drawn
    again = timeline_of(case.annotated, case.pricer, blocks)
    plain = timeline_of(case.annotated, case.pricer, (), blocks)
    for moment in range(0, again.num_moments, 5):
        for kind in ("parameters", "gradients", "optimizer", "gathered", "inputs"):
            kinds = [each.at(choices, moment).kinds.get(kind, 0.0) for each in (plain, again)]
            assert kinds[0] == pytest.approx(kinds[1])


@pytest.mark.parametrize("name", NAMES)
def test_idle_moments_change_no_peak(name: str) -> None:
    case = posed(name)
    for seed in range(5):
        choices = random_choices(case.annotated, seed)
        plain = timeline_of(case.annotated, case.pricer)
        idle = timeline_of(case.annotated, case.pricer, (), case.blocks)
        assert idle.num_moments > plain.num_moments == 2 * len(case.annotated.sites) + 3
        assert idle.totals(choices).max() == pytest.approx(plain.totals(choices).max())


@pytest.mark.parametrize("name", NAMES)
def test_limits_of_all_moments_add_up_to_the_totals(name: str) -> None:
    case = posed(name)
    timeline = timeline_of(case.annotated, case.pricer, case.blocks[::2])
    for seed in range(3):
        choices = random_choices(case.annotated, seed)
        totals = timeline.totals(choices)
        assert (totals >= 0).all()
        for moment in range(timeline.num_moments):
            assert timeline.limit(moment, 1e18).total(choices) == pytest.approx(totals[moment])


def test_moments_have_names_in_the_order_in_which_a_step_runs() -> None:
    case = posed("gpt2")
    last = case.blocks[-1]
    timeline = timeline_of(case.annotated, case.pricer, [last])
    names = [timeline.name(moment) for moment in range(timeline.num_moments)]
    assert names[0] == "gathering parameters"
    assert names[-2:] == ["reducing gradients", "the optimizer's step"]
    again = [at for at, name in enumerate(names) if name.startswith("recomputation of ")]
    assert again == [*range(again[0], again[-1] + 1)]
    assert len(again) == len({*last.again, *last.reading})
    assert names[again[-1] + 1].startswith("backward of ")
    assert all(f" in {last.name}" in names[at] for at in again)
    assert np.all(np.diff(sorted(timeline.schedule.backward)) >= 1)


def test_a_block_of_a_transformer_gives_up_most_of_its_activations() -> None:
    case = posed("gpt2")
    choices = [0] * len(case.annotated.sites)
    plain, again, _ = both(case, choices, case.blocks)
    turn = len(case.annotated.sites)
    held = plain[turn] - plain[1]
    assert again[turn] - again[1] < 0.5 * held
    assert again.max() < plain.max()
