"""What users do with a model works in a pipeline as on one device."""

from __future__ import annotations

import pytest

from tests.end_to_end.composed import USES, Errors, everything
from tests.runtime.launch import run_ranks

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Errors]]:
    return run_ranks(everything, 4, timeout_s=300)


def check(found: Errors) -> None:
    assert found
    assert all(each < TOLERANCE for each in found.values()), found


@pytest.mark.parametrize("name", USES)
def test_simulated(name: str) -> None:
    check(USES[name]())


@pytest.mark.parametrize("name", USES)
def test_on_real_ranks(four_ranks: list[dict[str, Errors]], name: str) -> None:
    for result in four_ranks:
        check(result[name])
