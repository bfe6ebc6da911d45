"""Preset `expert`: mixtures on 4 ranks, simulated and real, train as one device does."""

from __future__ import annotations

from typing import Any

import pytest

import autoplan
from autoplan.layouts import BP, Layout, S
from tests.end_to_end.experts import MIXTURES, mixture, parallel, train, train_on_four
from tests.models import Mlp, ideal_cluster, vector_batch
from tests.runtime.launch import run_ranks

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, tuple[bool, float, str]]]:
    return run_ranks(train_on_four, 4, timeout_s=300)


@pytest.mark.parametrize("name", MIXTURES)
def test_simulated_ranks_equal_one_device(name: str) -> None:
    """Outputs, every gradient, and the weights after 3 steps of AdamW."""
    check = train(name)
    assert check.ok, str(check)
    assert check.tolerance == 1e-9


@pytest.mark.parametrize("name", MIXTURES)
def test_real_ranks_equal_one_device(four_ranks: list[Any], name: str) -> None:
    for found in four_ranks:
        ok, tolerance, text = found[name]
        assert ok, text
        assert tolerance == 1e-9


@pytest.mark.parametrize("name", MIXTURES)
def test_what_is_split(name: str) -> None:
    """Experts by expert, the batch by row; every other parameter is read whole."""
    plan = parallel(name).plan
    experts = 0
    for row in plan.tensors:
        if row.kind == "parameter":
            stored, use = (Layout.parse(text)[0] for text in (row.layout, row.use))
            if ".experts." in row.path:
                assert stored == use == S(0), row.path
                experts += 1
            else:
                assert use == BP, row.path
    assert experts >= 2
    assert plan.layout("input_ids") == (S(0),)
    grouped = [row for row in plan.operations if "grouped_mm" in row.op]
    assert {row.choice for row in grouped} == {"te"}
    moved = {row.kind for row in plan.collectives if row.path.endswith("experts")}
    assert "all_to_all" in moved


def test_experts_that_do_not_divide_have_shards_of_their_own_size() -> None:
    """7 experts on 4 ranks: 2, 2, 2 and 1."""
    check = train("mixtral", num_local_experts=7)
    assert check.ok, str(check)


@pytest.mark.parametrize(("experts", "use"), [(2, "use 2 ranks"), (6, "use 2, 3, 6 ranks")])
def test_ranks_without_an_expert_are_refused(experts: int, use: str) -> None:
    says = rf"{experts} experts \(model.layers.0.mlp.experts.*\) leave some of the 4 ranks.*{use}"
    with pytest.raises(autoplan.ConfigError, match=says):
        parallel("mixtral", num_local_experts=experts)


def test_a_model_without_experts_is_refused() -> None:
    args, kwargs = vector_batch(8)
    with pytest.raises(
        autoplan.ConfigError, match=r"splits experts, and the model multiplies none"
    ):
        autoplan.plan(Mlp(), args, kwargs, devices=4, cluster=ideal_cluster(4), preset="expert")


def test_beside_a_data_axis() -> None:
    """Data 2 x expert 2: experts are copied over the data axis, the batch is split on both."""
    model, args, kwargs = mixture("mixtral")
    module = autoplan.parallelize(
        model, args, kwargs, devices=4, cluster="cpu",
        parallel={"data": {"size": 2, "mode": "ddp"}, "expert": 2},
    )  # fmt: skip
    plan = module.plan
    data, expert = (plan.mesh.index(axis) for axis in ("data", "expert"))
    row = plan.tensor("model.layers.0.mlp.experts.down_proj")
    assert Layout.parse(row.use)[expert] == S(0)
    assert Layout.parse(row.use)[data] == BP
    check = module.verify(args, kwargs, steps=3)
    assert check.ok, str(check)
