"""Which blocks a plan recomputes: what the user says, or what memory asks for."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import autoplan
from autoplan import ConfigError, InfeasibleError, Plan, PlanFileError
from tests.planner.models import MLP, Residual, gpt2, token_ids

BLOCKS = ("transformer.h.0", "transformer.h.1", "transformer.h.2")


def example() -> Any:
    ids = token_ids(8, 32)
    return (ids,), {"labels": ids}


@cache
def planned(devices: int = 1, **options: Any) -> Plan:
    """A GPT-2 whose activations are most of what it needs."""
    model = gpt2(n_layer=3, resid_pdrop=0.1)
    return autoplan.plan(model, *example(), devices=devices, cluster="cpu", **options)


def test_enough_memory_changes_nothing() -> None:
    fastest = planned(recompute=False)
    for option in (None, "auto", "none"):
        plan = planned(recompute=option)
        assert plan.recomputed == ()
        assert plan.recomputation_s == 0.0
        assert plan.diff(fastest) == "no difference"


def test_all_blocks() -> None:
    plan, fastest = planned(recompute=True), planned(recompute=False)
    assert plan == planned(recompute="all") or plan.diff(planned(recompute="all")) == (
        "no difference"
    )
    assert plan.recomputed == BLOCKS
    assert plan.step_time_s == pytest.approx(fastest.step_time_s + plan.recomputation_s)
    assert plan.recomputation_s > 0.1 * fastest.step_time_s
    assert plan.peak_memory_bytes < 0.75 * fastest.peak_memory_bytes
    assert plan.certificate.gap == 0.0
    assert "3 blocks (transformer.h.*)" in plan.report()


def test_blocks_by_pattern() -> None:
    every, one = planned(recompute=True), autoplan.plan(
        gpt2(n_layer=3, resid_pdrop=0.1),
        *example(),
        cluster="cpu",
        recompute=["transformer.h.[!01]", "lm_head"],
    )  # fmt: skip
    assert set(one.recomputed) <= {"transformer.h.2", "lm_head"}
    assert "transformer.h.2" in one.recomputed
    assert 0.0 < one.recomputation_s < every.recomputation_s


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["transformer.h.9"], "no block of the model matches 'transformer.h.9'.*did you mean"),
        (["transfomer.h.1"], "did you mean 'transformer.h.1'"),
        ([], r"recompute is 'auto', 'all', 'none', or a list .* got \[\]"),
        ("every", "recompute is 'auto'.* got 'every'"),
        (3, "recompute is 'auto'.* got 3"),
        (["transformer.h.0", 1], "named by its path.* got 1"),
    ],
)
def test_what_is_wrong_is_said(option: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        autoplan.plan(gpt2(n_layer=3), *example(), cluster="cpu", recompute=option)


def test_nothing_is_recomputed_without_a_backward() -> None:
    with pytest.raises(ConfigError, match="there is no backward"):
        planned(training=False, recompute=True)
    assert planned(training=False).recomputed == ()
    assert planned(training=False, recompute=False).recomputed == ()


def test_memory_decides_on_one_device() -> None:
    """Exactly where the fastest layouts do not fit, and no more blocks than it takes."""
    free, least = planned(), planned(recompute=True)
    at = free.peak_memory_bytes
    assert planned(memory=at + 8).recomputed == ()
    counts = []
    for part in (1.0, 0.7, 0.4, 0.1):
        limit = int(least.peak_memory_bytes + part * (at - 16 - least.peak_memory_bytes))
        plan = planned(memory=limit)
        assert 0 < len(plan.recomputed) <= 3
        assert plan.peak_memory_bytes <= limit
        assert plan.step_time_s == pytest.approx(free.step_time_s + plan.recomputation_s)
        assert free.step_time_s < plan.certificate.bound <= plan.step_time_s
        with pytest.raises(InfeasibleError):
            planned(memory=limit, recompute=False)
        counts.append(len(plan.recomputed))
    assert counts == sorted(counts)
    assert counts[0] == 1 < counts[-1]
    with pytest.raises(InfeasibleError, match="is too small"):
        planned(memory=int(0.9 * least.peak_memory_bytes))


@pytest.mark.parametrize("part", [0.95, 0.8])
def test_auto_is_never_slower_than_any_forced_choice_that_fits(part: float) -> None:
    free = planned(devices=2)
    limit = int(part * free.peak_memory_bytes)
    plan = planned(devices=2, memory=limit, time_limit_s=8)
    assert plan.peak_memory_bytes <= limit
    assert free.certificate.bound <= plan.certificate.bound <= plan.certificate.objective
    for forced in (False, True):
        try:
            other = planned(devices=2, memory=limit, time_limit_s=8, recompute=forced)
        except InfeasibleError:
            continue
        assert plan.step_time_s <= other.step_time_s * (1 + 1e-9)
        assert plan.certificate.bound <= other.step_time_s * (1 + 1e-9)


def test_a_plan_that_is_not_proven_says_so() -> None:
    plan = planned(memory=planned(recompute=True).peak_memory_bytes + 1000)
    assert plan.certificate.gap > 0.0
    assert plan.certificate.status == "not proven"
    assert "best plan found, with recomputation as a choice, under" in plan.report()


def test_one_block_that_just_fits_is_proven() -> None:
    """The bound counts the cheapest second run, and blocks that are alike cost the same."""
    free = planned()
    plan = planned(memory=free.peak_memory_bytes - 16)
    assert len(plan.recomputed) == 1
    assert plan.certificate.gap == 0.0
    assert plan.certificate.status == "optimal"


def test_a_model_without_blocks_has_none_to_recompute() -> None:
    plan = autoplan.plan(MLP(), (torch.randn(4, 8),), cluster="cpu", recompute=True)
    assert plan.recomputed == ()
    with pytest.raises(InfeasibleError, match="is too small"):
        autoplan.plan(MLP(), (torch.randn(4, 8),), cluster="cpu", memory=100)


def test_repeated_calls_give_the_same_plan() -> None:
    limit = int(0.8 * planned().peak_memory_bytes)
    model, batch = Residual(4), (torch.randn(512, 16),)
    limit = int(0.8 * autoplan.plan(model, batch, cluster="cpu").peak_memory_bytes)
    plans = [autoplan.plan(model, batch, cluster="cpu", memory=limit) for _ in range(2)]
    assert plans[0].recomputed
    assert plans[0].diff(plans[1]) == "no difference"


# -- plan files ---------------------------------------------------------------------------------


def on(path: Path, layers: int = 3, **options: Any) -> Plan:
    model = gpt2(n_layer=layers, resid_pdrop=0.1)
    return autoplan.parallelize(model, *example(), plan=path, **options).plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    planned(recompute=True).save(path)
    return path


def test_a_plan_file_holds_the_blocks(path: Path, tmp_path: Path) -> None:
    loaded, plan = autoplan.load_plan(path), planned(recompute=True)
    assert loaded.recomputed == BLOCKS
    assert plan.diff(loaded) == "no difference"
    back = on(path)
    assert plan.diff(back) == "no difference"
    assert back.notes == plan.notes
    other = tmp_path / "plain.toml"
    planned(recompute=False).save(other)
    assert "recomputation" not in other.read_text()
    assert f"recomputed: none -> {'; '.join(BLOCKS)}" in planned(recompute=False).diff(plan)


def test_blocks_are_edited_by_hand(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace('  "transformer.h.1",\n', ""))
    plan = on(path)
    assert plan.recomputed == ("transformer.h.0", "transformer.h.2")
    assert any("edited by hand" in note for note in autoplan.load_plan(path).notes)
    path.write_text(text.replace('  "transformer.h.1",\n', '  "transformer.h.11",\n'))
    with pytest.raises(PlanFileError, match=r"names 'transformer.h.11'.*did you mean 'transf"):
        on(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("blocks = [", "block = [", "'block' is not known"),
        ('"transformer.h.1",', "1,", "blocks"),
        ('"transformer.h.1",', '"transformer.h.0",', "stands there twice"),
    ],
)
def test_a_damaged_section_is_refused(path: Path, before: str, after: str, message: str) -> None:
    text = path.read_text()
    start, end = re.split(r"(?=\[recomputation\])", text)
    path.write_text(start + end.replace(before, after, 1))
    with pytest.raises(PlanFileError, match=message):
        autoplan.load_plan(path)


def test_a_model_with_fewer_blocks_leaves_the_others_out(path: Path) -> None:
    plan = on(path, layers=2)
    assert plan.recomputed == BLOCKS[:2]
    assert any("left out: transformer.h.2" in note for note in plan.notes)


def test_a_given_plan_decides(path: Path) -> None:
    with pytest.raises(ConfigError, match="recompute=True goes into making a plan"):
        on(path, recompute=True)


def test_questions_keep_the_blocks() -> None:
    plan = planned(devices=2, recompute=True)
    question, answer = plan._origin.answer(plan)  # type: ignore[union-attr]
    assert answer.step_time_s == pytest.approx(plan.step_time_s)
    assert answer.peak_memory_bytes == plan.peak_memory_bytes
    assert tuple(block.name for block in question.recomputed) == BLOCKS
    assert msgspec.structs.asdict(plan)["recomputed"] == BLOCKS
