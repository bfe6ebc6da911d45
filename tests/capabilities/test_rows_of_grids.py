"""Rows 26 to 29 and 38 of the capability table: tensor parallelism in one to three dimensions.

What the product of two n x n matrices moves on P ranks is compared with the formulas of the papers,
in words that a rank receives: as predicted, and as it runs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import autoplan
from autoplan import ConfigError
from autoplan.cost_models import collective_bytes
from tests.capabilities.ranks import Held, hold
from tests.end_to_end.grids import GRIDS, MODELS, parallel_on, sequences, verified
from tests.end_to_end.training import predicted, watched

EQUAL = "equal within 1e-09 (float64)"


# -- 26 to 29: equal to one device --------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", GRIDS)
def test_rows_26_to_29_equal_one_device(mode: str, name: str) -> None:
    """Forward, gradients, and three steps of AdamW."""
    assert verified(name, mode, GRIDS[mode]).startswith(EQUAL)


# -- 27 to 29: what a rank holds ----------------------------------------------------------------


def held_on(mode: str, size: int) -> list[Held]:
    """x[8, 4, 16], which a layer before it made, by w[24, 16] on a grid."""
    torch.manual_seed(0)
    layers = (nn.Linear(*each, bias=False, dtype=torch.float64) for each in ((8, 16), (16, 24)))
    example = (sequences(8, 4, 8),), {}
    parallel = parallel_on(mode, size)
    ranks = hold(nn.Sequential(*layers), example, devices=size, parallel=parallel)
    assert len(ranks) == size
    assert all(each.error < 1e-12 for each in ranks)
    return ranks


def test_row_27_inputs_weights_and_outputs_are_split_both_ways() -> None:
    for held in held_on("2d", 4):
        assert held.mesh == "tensor_row 2 x tensor_column 2"
        assert held.local["0"] == (4, 4, 8)
        assert held.weights["1.weight"] == (12, 8)
        assert held.local["1"] == (4, 4, 12)


def test_row_28_layers_of_grids_share_weights_and_split_rows() -> None:
    for held in held_on("2.5d", 8):
        assert held.mesh == "tensor_depth 2 x tensor_row 2 x tensor_column 2"
        assert held.local["0"] == (2, 4, 8)
        assert held.weights["1.weight"] == (12, 8)
        assert held.local["1"] == (2, 4, 12)


def test_row_29_memory_per_rank_is_even() -> None:
    """Of inputs, weights and outputs every rank holds an eighth, and of addends a quarter."""
    ranks = held_on("3d", 8)
    for held in ranks:
        assert held.mesh == "tensor_input 2 x tensor_output 2 x tensor_weight 2"
        assert numel(held.local["0"]) * 4 == 8 * 4 * 16
        assert numel(held.weights["1.weight"]) * 8 == 24 * 16
        assert numel(held.local["1"]) * 4 == 8 * 4 * 24
    assert len({str(held.local) for held in ranks}) == 1
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 24))
    plan = autoplan.plan(model, (torch.randn(8, 4, 8),), devices=8, parallel=parallel_on("3d", 8))
    for path, whole in (("input", 8 * 4 * 8), ("0", 8 * 4 * 16), ("1", 8 * 4 * 24)):
        assert numel(plan.tensor(path).local_shape) * 8 == whole


def numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def test_row_29_input_and_output_change_roles_from_product_to_product() -> None:
    """So that the second product reads what the first one wrote, as it lies."""
    model = nn.Sequential(*(nn.Linear(16, 16, dtype=torch.float64) for _ in range(4)))
    plan = autoplan.plan(model, (sequences(4, 4, 16),), devices=8, parallel=parallel_on("3d", 8))
    labels = [row.choice.split(" | ") for row in plan.operations if "linear" in row.op]
    assert [each[0] for each in labels] == ["o", "i", "o", "i"]
    assert [each[1] for each in labels] == ["i", "o", "i", "o"]
    assert all(each[2].startswith("b") for each in labels)
    first, second, third, _ = (plan.layout(str(number)) for number in range(4))
    assert first == third != second
    moved = {row.kind for row in plan.collectives if row.path in ("1", "2", "3")}
    assert moved == {"all_gather", "reduce_scatter"}


# -- 27 to 29: what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ({"size": 8, "mode": "2d"}, r"size=8 .*'2d'.* q x q ranks; use size=4 or 9"),
        ({"size": 8, "mode": "2.5d", "depth": 4}, r"depth=4.* 4 x q x q .*q >= 4; use depth=2"),
        ({"size": 8, "mode": "2.5d", "depth": 1}, r"depth=1.*; use depth=2, or size=4 or 9"),
        ({"size": 6, "mode": "2.5d"}, r"depth x q x q ranks with depth <= q; use size=4 or 8"),
        ({"size": 4, "mode": "3d"}, r"size=4 .*'3d'.* q x q x q ranks; use size=8"),
        ({"size": 8, "mode": "3d", "depth": 2}, r"'3d' has no depth, got depth=2"),
    ],
    ids=str,
)
def test_rows_27_to_29_wrong_sizes_are_refused(tensor: dict[str, Any], reason: str) -> None:
    model, x = nn.Linear(8, 8), torch.randn(8, 8)
    with pytest.raises(ConfigError, match=reason):
        autoplan.plan(model, (x,), devices=tensor["size"], parallel={"tensor": tensor})


# -- 38: the formulas of the papers -------------------------------------------------------------


def words_received(
    n: int, size: int, tensor: dict[str, Any], together: bool = False, **options: Any
) -> float:
    """Words that a rank receives for y = x w, n x n each; what runs is what is predicted.

    Factors and result lie as the mode has it. `together`: with what makes the result whole.
    """
    side = round(n**0.5)
    model = nn.Sequential(nn.Linear(n, n, bias=False, dtype=torch.float64))
    x = sequences(side, side, n)
    module = autoplan.parallelize(
        model, (x,), devices=size, parallel={"tensor": tensor}, training=False, **options
    )
    with torch.no_grad(), watched(module) as seen:
        out = module(x)
    assert torch.allclose(out, model(x), rtol=1e-12, atol=1e-12)
    assert seen == predicted(module.plan, outputs=True)
    mesh, received = module.plan.mesh, 0.0
    for row in module.plan.collectives:
        if together or row.path != "output 0":
            received += row.count * collective_bytes(row.kind, row.bytes, mesh.size(row.axis))
    return received / x.itemsize


def test_row_38_one_dimension() -> None:
    """A product parallel by columns moves nothing, and n^2 (1 - 1/P) to gather its result; one by
    rows leaves addends, and an all-reduce of 2 n^2 (1 - 1/P) (Shoeybi et al. 2019, section 3; the
    collectives as of Thakur et al. 2005)."""
    n, p = 16, 4
    one = {"size": p, "mode": "1d"}
    columns, rows = ({"hints": {"0": {"op": {"tensor": label}}}} for label in ("o", "i"))
    assert words_received(n, p, one, **columns) == words_received(n, p, one, **rows) == 0
    assert words_received(n, p, one, together=True, **columns) == n**2 * (1 - 1 / p)
    assert words_received(n, p, one, together=True, **rows) == 2 * n**2 * (1 - 1 / p)


@pytest.mark.parametrize("q", [2, 3, 4])
def test_row_38_two_dimensions(q: int) -> None:
    """SUMMA: in q steps a block of each factor, n^2 / P words, which one in q ranks has already:
    2 n^2 / sqrt(P) (1 - 1/q) (van de Geijn & Watts 1997, section 3)."""
    n, p = 36 if q == 3 else 16, q * q
    received = words_received(n, p, {"size": p, "mode": "2d"})
    assert received == pytest.approx(2 * n**2 / p**0.5 * (1 - 1 / q), rel=1e-12)


@pytest.mark.parametrize(("depth", "q"), [(2, 2), (2, 4), (3, 3)])
def test_row_38_two_and_a_half_dimensions(depth: int, q: int) -> None:
    """Tesseract: each layer multiplies n / depth rows by SUMMA, in blocks of n^2 / (depth q^2) and
    n^2 / q^2 words: n^2 / q (1 + 1/depth) (1 - 1/q) (Wang et al. 2021, algorithm 3)."""
    n, p = 36 if q == 3 else 16, depth * q * q
    received = words_received(n, p, {"size": p, "mode": "2.5d", "depth": depth})
    formula = n**2 / q * (1 + 1 / depth) * (1 - 1 / q)
    assert received == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("q", [2, 3])
def test_row_38_three_dimensions(q: int) -> None:
    """Both factors are gathered and the result is scattered over q ranks, n^2 / q^2 words each:
    3 n^2 / P^(2/3) (1 - 1/q) (Agarwal et al. 1995, section 3)."""
    n, p = 36 if q == 3 else 16, q**3
    received = words_received(n, p, {"size": p, "mode": "3d"})
    assert received == pytest.approx(3 * n**2 / p ** (2 / 3) * (1 - 1 / q), rel=1e-12)
