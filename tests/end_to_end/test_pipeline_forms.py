"""What ranks of a pipeline share, and other forms of arguments, are as on one device."""

from __future__ import annotations

from tests.end_to_end.forms import everything
from tests.runtime.launch import run_ranks


def test_two_real_ranks_agree_with_one_device() -> None:
    for rank in run_ranks(everything, 2, timeout_s=280.0):
        texts = rank.pop("refused")
        for check, errors in rank.items():
            assert errors, check
            assert max(errors.values()) < 1e-12, (check, errors)
        task, mode = texts
        assert "'other.weight'" in task
        assert "first" in task
        assert "'mean'" in mode
        assert "train mode" in mode
