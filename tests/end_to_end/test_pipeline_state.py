"""A pipeline's checkpoint goes on with other stages, without any, and in simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.pipeline_state import PLANS, Resumed, everything, given_by_one, resume
from tests.runtime.launch import run_ranks

STATES = 3
"""What AdamW keeps of a parameter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def four_ranks(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(everything, 4, str(folder), timeout_s=300)


def check(found: Resumed) -> None:
    """To the bit before the step, and to rounding after it: other stages add in other orders."""
    assert found.weights == []
    assert found.optimizer == []
    assert found.states > 0
    assert found.states % STATES == 0
    assert found.rate == 1e-3
    assert found.loss_error < 1e-12
    assert found.after_error < 1e-12


@pytest.mark.parametrize("name", PLANS)
def test_a_checkpoint_of_4_stages_goes_on(four_ranks: list[dict[str, Any]], name: str) -> None:
    for result in four_ranks:
        check(result[name])


@pytest.mark.parametrize("name", ["4 stages", "no pipeline"])
@pytest.mark.usefixtures("four_ranks")
def test_a_checkpoint_of_4_stages_goes_on_in_simulation(folder: Path, name: str) -> None:
    check(resume(name, str(folder)))


def test_whole_weights_of_one_rank(four_ranks: list[dict[str, Any]]) -> None:
    assert all(result["given"] == [True, True] for result in four_ranks)
    assert given_by_one(0)
