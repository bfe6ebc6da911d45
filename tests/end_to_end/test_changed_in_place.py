"""What backward needs must not change; ranks and their simulation refuse alike."""

from __future__ import annotations

import pytest

from tests.end_to_end.changed_in_place import (
    OUTCOMES,
    PRESETS,
    backward_after_a_change,
    everywhere,
    verified,
)
from tests.runtime.launch import run_ranks


@pytest.mark.parametrize("preset", PRESETS)
def test_a_changed_parameter_in_simulation(preset: str) -> None:
    assert backward_after_a_change(2, preset) == OUTCOMES[preset]


def test_a_changed_parameter_on_ranks() -> None:
    """The counter of a DTensor counts, which its shard does not share."""
    assert run_ranks(everywhere, 2, 2, PRESETS) == [OUTCOMES, OUTCOMES]


def test_buffers_of_other_stages_are_known_to_verify() -> None:
    for ok, text in run_ranks(verified, 2):
        assert ok, text
