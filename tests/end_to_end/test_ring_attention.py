"""Models with their sequence split: trained as on one device; and rings never hold whole keys."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.end_to_end.ring_ranks import (
    BLOCKS,
    WHOLE_KEYS,
    Block,
    dense_block,
    everything,
    run_block,
    trained,
)
from tests.end_to_end.training import Case, Outcome
from tests.runtime.launch import run_ranks

pytestmark = pytest.mark.timeout(900)  # many processes, on machines of two cores

TOLERANCE = 1e-9
RING: dict[str, Any] = {"preset": "ring"}
ULYSSES: dict[str, Any] = {"preset": "ulysses"}
LAYERS = {"gpt2": {"n_layer": 2}, "llama": {"num_hidden_layers": 2}}

REAL = [
    *(Case(model, RING, rows=2, name="ring") for model in LAYERS),
    Case("llama", ULYSSES, rows=2, name="ulysses"),
    Case("gpt2", RING, rows=4, microbatches=2, name="ring 2 microbatches"),
    Case("llama", {**RING, "recompute": True}, LAYERS["llama"], rows=2, name="ring recomputed"),
    Case(
        "gpt2",
        {**RING, "parallel": {"pipeline": 2}},
        LAYERS["gpt2"],
        rows=4,
        microbatches=2,
        name="ring in stages",
    ),
]
"""On four real ranks."""

EIGHT_HEADS = {
    "gpt2": {"n_head": 8},
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 4},
}
SIMULATED = [
    *((4, Case(m, RING, LAYERS[m], rows=2, name="ring")) for m in LAYERS),
    *((4, Case(m, ULYSSES, LAYERS[m], rows=2, name="ulysses")) for m in LAYERS),
    *((8, Case(m, RING, rows=2, name="ring")) for m in LAYERS),
    *((8, Case(m, ULYSSES, EIGHT_HEADS[m], rows=2, name="ulysses")) for m in LAYERS),
]


@pytest.fixture(scope="module")
def real() -> list[dict[str, Any]]:
    return run_ranks(everything, 4, 4, REAL, timeout_s=600)


@cache
def simulated(name: str) -> Block:
    return run_block(4, **BLOCKS[name])


@pytest.mark.parametrize("case", REAL, ids=str)
def test_four_real_ranks_train_as_one_device(real: list[dict[str, Any]], case: Case) -> None:
    outcomes = [result[str(case)] for result in real]
    for outcome in outcomes:
        assert isinstance(outcome, Outcome), outcome
        assert outcome.losses == outcomes[0].losses
        assert outcome.loss_error <= TOLERANCE
        assert max(outcome.weight_errors.values()) <= TOLERANCE, outcome.weight_errors
    for path in outcomes[0].gradient_errors:  # of every parameter where it is held
        assert min(each.gradient_errors[path] for each in outcomes) <= TOLERANCE, path
        if "stages" not in case.name:
            assert max(each.gradient_errors[path] for each in outcomes) <= TOLERANCE, path


@pytest.mark.parametrize("case", [c for c in REAL if "stages" not in c.name], ids=str)
def test_collectives_are_those_predicted(real: list[dict[str, Any]], case: Case) -> None:
    for predicted, seen in (real[0][str(case)].step_traffic, real[0][str(case)].call_traffic):
        assert seen == predicted
        assert ("ring" in case.name) == any(kind == "send" for kind, _, _ in seen)


@pytest.mark.parametrize(("ranks", "case"), SIMULATED, ids=str)
def test_simulated_ranks_train_as_one_device(ranks: int, case: Case) -> None:
    outcome = trained(0, ranks, case)
    assert isinstance(outcome, Outcome), outcome
    assert outcome.loss_error <= TOLERANCE
    assert max(outcome.gradient_errors.values()) <= TOLERANCE, outcome.gradient_errors
    assert max(outcome.weight_errors.values()) <= TOLERANCE, outcome.weight_errors
    assert outcome.step_traffic[0] == outcome.step_traffic[1]


# -- no rank ever holds whole keys ----------------------------------------------------------


def test_the_meter_sees_whole_keys_where_they_are() -> None:
    for name, options in BLOCKS.items():
        assert dense_block(**options).largest >= WHOLE_KEYS, name


@pytest.mark.parametrize("name", BLOCKS)
def test_no_rank_holds_whole_keys_or_values(real: list[dict[str, Any]], name: str) -> None:
    """Nothing is larger than a rank's own q, k and v, which travel together to their half-parts.

    That is less than a whole K, but for grouped queries, of which there are twice as many.
    """
    groups = BLOCKS[name].get("groups", 1)
    whole = WHOLE_KEYS // groups
    own = (WHOLE_KEYS + 2 * whole) // 4
    assert own < whole or groups > 1
    for each in (simulated(name), *(result[name] for result in real)):
        assert each.choices == {"ring"}
        assert each.largest <= own
        assert each.loss_error <= TOLERANCE
        assert max(each.gradient_errors.values()) <= TOLERANCE, each.gradient_errors


@pytest.mark.parametrize("name", BLOCKS)
def test_every_rank_computes_as_much_at_every_step(real: list[dict[str, Any]], name: str) -> None:
    counts = [result[name].pairs for result in real]
    length = 64
    whole = length * length if name == "plain" else length * (length + 1) // 2
    for direction in ("forward", "backward"):
        assert len(counts[0][direction]) == 4
        assert all(each[direction] == counts[0][direction] for each in counts)
        assert sum(sum(each[direction]) for each in counts) == whole
