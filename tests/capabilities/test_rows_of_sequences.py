"""Row 30 of the capability table: a sequence split over four ranks, with ring attention."""

from __future__ import annotations

from typing import Any

import pytest

from tests.end_to_end.ring_ranks import WHOLE_KEYS, Block, dense_block, run_block
from tests.runtime.launch import run_ranks

pytestmark = pytest.mark.timeout(900)  # many processes, on machines of two cores


def on_this_rank(rank: int) -> Block:
    return run_block(4)


@pytest.fixture(scope="module")
def blocks() -> dict[str, list[Any]]:
    """Causal attention with its sequence over four ranks: in one process, and on real ones."""
    return {"one process": [run_block(4)], "real ranks": run_ranks(on_this_rank, 4)}


@pytest.mark.parametrize("where", ["one process", "real ranks"])
def test_row_30_ring_attention_equals_dense(blocks: dict[str, list[Any]], where: str) -> None:
    for each in blocks[where]:
        assert each.choices == {"ring"}
        assert each.loss_error <= 1e-9
        assert len(each.gradient_errors) == 7
        assert max(each.gradient_errors.values()) <= 1e-9


@pytest.mark.parametrize("where", ["one process", "real ranks"])
def test_row_30_no_rank_holds_the_whole_keys(blocks: dict[str, list[Any]], where: str) -> None:
    """Forward and backward; on one device they are there to be seen."""
    assert dense_block().largest >= WHOLE_KEYS
    for each in blocks[where]:
        assert each.largest < WHOLE_KEYS
