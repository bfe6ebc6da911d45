"""Rows 1 to 4, 13, 15, 17, 34 and 36 of the capability table, simulated and on real gloo ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autoplan
from autoplan import B, S
from tests.capabilities.ranks import (
    PRODUCTS,
    WIDE_PINS,
    Held,
    accumulated,
    huge_linear,
    product,
    rows_on_four,
    rows_on_two,
    wide_mlp,
)
from tests.models import Mlp, Product, gpt2, language_batch, vector_batch
from tests.runtime.launch import run_ranks


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(rows_on_two, 2, timeout_s=200)


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Any]]:
    return run_ranks(rows_on_four, 4, timeout_s=200)


# -- 1: huge FC, column-parallel ----------------------------------------------------------------


def check_huge_linear(ranks: list[Held]) -> None:
    assert len(ranks) == 2
    for held in ranks:
        assert held.local["0"] == (32, 16384)
        assert held.weights == {"0.weight": (16384, 2048), "0.bias": (16384,)}
        assert held.shape == (32, 32768)
        assert held.error < 1e-5


def test_row_01_column_parallel_fc() -> None:
    check_huge_linear(huge_linear(2))


def test_row_01_column_parallel_fc_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    check_huge_linear([result["1"] for result in two_ranks])


# -- 2: 2-D MLP ---------------------------------------------------------------------------------


def check_wide_mlp(ranks: list[Held]) -> None:
    assert len(ranks) == 4
    for held in ranks:
        assert held.mesh == "data 2 x tensor 2"
        assert held.local["fc1"] == (16, 8192)
        assert held.local["fc2"] == (16, 1024)
        assert held.shape == (32, 1024)
        assert held.error < 1e-5


def test_row_02_mlp_in_two_dimensions_by_pins() -> None:
    ranks = wide_mlp(4, parallel={"mesh": {"data": 2, "tensor": 2}}, hints=WIDE_PINS)
    check_wide_mlp(ranks)
    assert all(held.weights["fc1.weight"] == (8192, 1024) for held in ranks)
    assert all(held.weights["fc2.weight"] == (1024, 8192) for held in ranks)


def test_row_02_mlp_in_two_dimensions_by_the_planner() -> None:
    """By the roles of the axes alone; a planner that is free on the same mesh does no worse."""

    def planned(parallel: dict[str, Any]) -> autoplan.Plan:
        model = Mlp(1024, 16384, dtype=torch.float32)
        x = torch.randn(32, 1024)
        return autoplan.plan(model, (x,), devices=4, parallel=parallel, training=False)

    plan = planned({"data": 2, "tensor": {"size": 2, "mode": "1d"}})
    assert plan.tensor("fc1").local_shape == (16, 8192)
    assert plan.tensor("fc2").local_shape == (16, 1024)
    free = planned({"data": 2, "tensor": {"size": 2, "mode": "free"}})
    assert free.tensor("fc1").local_shape == (16, 8192)
    assert free.tensor("fc2").local_shape == (16, 1024)
    assert free.step_time_s <= plan.step_time_s * (1 + 1e-9)


def test_row_02_mlp_in_two_dimensions_on_real_ranks(four_ranks: list[dict[str, Any]]) -> None:
    for name in ("2 pins", "2 planner"):
        check_wide_mlp([result[name] for result in four_ranks])


# -- 3: n-d SBP given by the user ---------------------------------------------------------------

GRID = {"mesh": {"a": 2, "b": 2}}
SAME_LAYOUT = [
    "(S(0), B)",
    "S(0), B",
    " ( S(0) ,B ) ",
    "S(-2), B",
    (S(0), B),
    [S(0), B],
    ["S(0)", "B"],
    autoplan.Layout((S(0), B)),
    {"a": "S(0)", "b": "B"},
    {"a": S(0), "b": B},
]


@pytest.mark.parametrize("layout", SAME_LAYOUT, ids=str)
def test_row_03_layouts_as_text_and_as_objects(layout: Any) -> None:
    plan = autoplan.plan(
        *(Mlp(), *vector_batch()), devices=4, parallel=GRID, hints={"fc1.weight": layout}
    )
    assert plan.layout("fc1.weight") == (S(0), B)
    assert plan.tensor("fc1.weight").local_shape == (16, 12)


def test_row_03_one_entry_means_every_axis_and_bars_leave_a_choice() -> None:
    example = vector_batch()
    plan = autoplan.plan(Mlp(), *example, devices=4, parallel=GRID, hints={"fc1.weight": "S(1)"})
    assert plan.layout("fc1.weight") == (S(1), S(1))
    assert plan.tensor("fc1.weight").local_shape == (32, 3)
    hints = {"fc1.weight": {"a": "S(0)|S(1)", "b": "B"}}
    plan = autoplan.plan(Mlp(), *example, devices=4, parallel=GRID, hints=hints)
    assert plan.layout("fc1.weight") in ((S(0), B), (S(1), B))


def test_row_03_axes_of_size_1_collapse() -> None:
    assert autoplan.Mesh.of(data=4, tensor=1) == autoplan.Mesh.of(data=4)
    plan = autoplan.plan(
        *(Mlp(), *vector_batch()), devices=4, parallel={"data": 4, "tensor": 1, "pipeline": 1}
    )
    assert str(plan.mesh) == "data 4"


@pytest.mark.parametrize("layout", ["(S(0), B)", {"a": "S(0)", "b": "S(1)"}], ids=str)
def test_row_03_axes_of_size_1_collapse_in_hints_too(layout: Any) -> None:
    mesh = {"mesh": {"a": 4, "b": 1}}
    plan = autoplan.plan(
        *(Mlp(), *vector_batch()), devices=4, parallel=mesh, hints={"fc1.weight": layout}
    )
    assert plan.layout("fc1.weight") == (S(0),)


# -- 4: logical and local tensor ----------------------------------------------------------------


def test_row_04_the_report_gives_both_shapes_of_any_tensor() -> None:
    args, kwargs = language_batch()
    plan = autoplan.plan(
        *(gpt2(), args, kwargs),
        devices=4,
        parallel={"data": 2, "tensor": {"size": 2, "mode": "1d"}},
    )
    lines = plan.report().splitlines()
    kinds = set()
    for row in plan.tensors:
        [line, *_] = [each for each in lines if each.split()[:1] == [row.path]] or [""]
        assert str(list(row.shape)) in line, row.path
        assert str(list(row.local_shape)) in line, row.path
        local = autoplan.layouts.local_shape(row.shape, plan.layout(row.path), plan.mesh)
        assert row.local_shape == local
        kinds.add(row.kind)
    assert kinds >= {"parameter", "input", "module"}
    weight = plan.tensor("transformer.h.0.mlp.c_fc.weight")
    assert weight.shape == (16, 64)
    assert 32 in weight.local_shape


# -- 13: gradient accumulation ------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["ddp", "fsdp", "megatron"])
def test_row_13_gradient_accumulation(preset: str) -> None:
    loss_error, gradient_error = accumulated(4, preset)
    assert loss_error < 1e-12
    assert gradient_error < 1e-12


def test_row_13_gradient_accumulation_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    for result in two_ranks:
        assert max(result["13"]) < 1e-12


# -- 15: data parallelism beside the plan --------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"preset": "megatron"}, {"preset": "ddp"}], ids=str)
def test_row_15_the_report_shows_plain_data_parallelism(options: dict[str, Any]) -> None:
    args, kwargs = language_batch()
    plan = autoplan.plan(gpt2(), args, kwargs, devices=4, **options)
    forced = autoplan.plan(gpt2(), args, kwargs, devices=4, preset="ddp")
    assert plan.baseline.step_time_s == pytest.approx(forced.step_time_s, rel=1e-9)
    assert plan.baseline.peak_memory_bytes == pytest.approx(forced.peak_memory_bytes, rel=0.1)
    [line] = [line for line in plan.report().splitlines() if line.startswith("data parallel")]
    assert "x this plan's time" in line
    if not options:
        assert plan.step_time_s <= forced.step_time_s * (1 + 1e-9)


def test_row_15_where_data_parallelism_cannot_run_the_report_says_why() -> None:
    plan = autoplan.plan(Mlp(), *vector_batch(3), devices=8)
    assert plan.baseline.step_time_s is None
    assert "3 rows" in plan.baseline.note
    assert "not possible" in plan.report()


# -- 17: data 2 x tensor 4 ----------------------------------------------------------------------


def test_row_17_groups_of_data_2_tensor_4() -> None:
    args, kwargs = language_batch()
    parallel = {"data": 2, "tensor": {"size": 4, "mode": "1d"}}
    module = autoplan.parallelize(gpt2(), args, kwargs, devices=8, parallel=parallel)
    assert module.plan.mesh.groups("tensor") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert module.plan.mesh.groups("data") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    text = module.report()
    assert "mesh: data 2 x tensor 4" in text
    assert "tensor: ranks [[0, 1, 2, 3], [4, 5, 6, 7]]" in text
    assert module.verify(args, kwargs).ok
    inferred = autoplan.plan(
        *(gpt2(), args, kwargs), devices=8, parallel={"tensor": {"size": 4, "mode": "1d"}}
    )
    assert inferred.mesh == module.plan.mesh


# -- 34: one matrix product, two ways (the third needs stages) -----------------------------------


def check_product(ranks: list[Held], way: str) -> None:
    _, local = PRODUCTS[way]
    assert len(ranks) == 2
    for held in ranks:
        assert held.weights["0.weight"] == local["0.weight"]
        assert held.local["0"] == local["0"]
        assert held.shape == (4, 8)
        assert held.error < 1e-15


@pytest.mark.parametrize("way", PRODUCTS)
def test_row_34_matmul(way: str) -> None:
    hints, local = PRODUCTS[way]
    check_product(product(2, way), way)
    x = torch.randn(4, 5, dtype=torch.float64)
    plan = autoplan.plan(torch.nn.Sequential(Product(5, 8)), (x,), devices=2, hints=hints)
    for path, shape in local.items():
        assert plan.tensor(path).local_shape == shape
        assert plan.layout(path) == autoplan.Layout.parse(hints[path])


@pytest.mark.parametrize("way", PRODUCTS)
def test_row_34_matmul_on_real_ranks(two_ranks: list[dict[str, Any]], way: str) -> None:
    check_product([result[f"34 {way}"] for result in two_ranks], way)


# -- 36: everything on a CPU ----------------------------------------------------------------------


def test_row_36_everything_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rows run here without a GPU; nothing reaches for one, and CPUs are the default."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda *_: pytest.fail("a GPU was asked for"))
    args, kwargs = language_batch()
    module = autoplan.parallelize(gpt2(), args, kwargs, devices=4, preset="fsdp")
    assert module.plan.cluster == "cpu"
    optimizer = torch.optim.AdamW(module.parameters())
    before = float(module.train_step(args, kwargs).loss)
    optimizer.step()
    assert float(module(*args, **kwargs).loss.detach()) < before
    assert {p.device.type for p in module.parameters()} == {"cpu"}
    assert module.verify(args, kwargs).ok
    elsewhere = autoplan.parallelize(gpt2(), args, kwargs, devices=4, cluster="h100")
    assert elsewhere.verify(args, kwargs).ok  # planned for GPUs, run here
