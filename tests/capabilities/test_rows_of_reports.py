"""Rows 38 and C of the capability table: what each strategy moves, and what is proven of a plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoplan
from autoplan.errors import ConfigError, LayoutError
from autoplan.layouts import Layout
from autoplan.memory.within_memory import repeated_classes
from autoplan.plan import Plan
from autoplan.solver import fold, solve
from autoplan.why.origin import Origin
from autoplan.why.traffic import StrategyCosts, strategy_costs
from tests.models import gpt2
from tests.planner.models import MLP, Residual, token_ids
from tests.planner.origins import planned

MESH = {"cluster": "h100", "parallel": {"mesh": {"data": 2, "model": 4}}}


class Product(nn.Module):
    """x[4, 5] @ w[5, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


# -- 38: what each strategy moves ---------------------------------------------------------------


def product(training: bool, **given: Any) -> StrategyCosts:
    plan, origin = planned(Product(), (torch.randn(4, 5),), 8, training=training, **MESH)
    return strategy_costs(plan, origin, "/matmul#1", **given)


@pytest.mark.parametrize(
    ("strategy", "sent"),
    [
        # The result is 4 x 8 floats, 128 bytes. A ring gather sends (n-1)/n of what it returns.
        ("B | B", 0.0),
        ("i | B", 128 / 2),  # each half of the rows, gathered over data
        ("B | j", 128 * 3 / 4),  # each quarter of the columns, gathered over model
        ("j | B", 128 / 2),
        ("i | j", 64 * 3 / 4 + 128 / 2),  # half a result over model, then the whole over data
        ("k | B", 2 * 128 / 2),  # whole addends over data: an all-reduce sends twice as much
    ],
)
def test_row_38_operands_and_result_on_every_rank(strategy: str, sent: float) -> None:
    """By hand, without gradients: operands are sliced for free, the result is brought together."""
    assert product(training=False).row(strategy).sent_bytes == sent


def test_row_38_between_given_layouts() -> None:
    """Data splits x's rows, model w's columns: the strategy that is laid out so moves nothing."""
    layouts = {"inputs": ["(S(0), B)", "(B, S(1))"], "output": "(S(0), S(1))"}
    costs = product(training=False, **layouts)
    assert costs.rows[0].strategy == "i | j"
    assert costs.rows[0].sent_bytes == 0.0
    assert costs.inputs == (Layout.parse("(S(0), B)"), Layout.parse("(B, S(1))"))
    # Without any split, x's halves are gathered over data (4 x 5 floats), w's quarters over model.
    assert costs.row("B | B").sent_bytes == 80 / 2 + 160 * 3 / 4
    # Addends of half a result, summed over model, and nothing else: rows stay where they are.
    halves = product(training=False, inputs=["(S(0), S(1))", "(B, S(0))"], output="(S(0), B)")
    assert halves.row("i | k").sent_bytes == 2 * 64 * 3 / 4
    # Rows alone: w is gathered over model, the result's columns are sliced.
    assert costs.row("i | B").sent_bytes == 160 * 3 / 4


def test_row_38_gradients_move_too() -> None:
    """Data parallelism of one product: w's gradient is summed over data, x's needs none."""
    costs = product(training=True, inputs=["(S(0), B)", "(B, B)"], output="(S(0), B)")
    moved = costs.row("i | B").transfers
    assert [(each.kind, each.direction, each.bytes) for each in moved] == [
        ("all_reduce", "backward", 160)
    ]
    assert costs.row("i | B").sent_bytes == 2 * 160 / 2


def test_row_38_a_linear_layer_whose_result_is_a_sum() -> None:
    """The contraction split over n ranks: 2 (n-1)/n of the result, whatever the operands' size."""
    rows, width, hidden, n = 64, 128, 256, 4
    plan, origin = planned(
        MLP(width, hidden), (torch.randn(rows, width),), n, cluster="h100",
        parallel={"mesh": {"x": n}}, training=False,
    )  # fmt: skip
    given = {"inputs": ["S(1)", "S(1)", "B"], "output": "B"}
    costs = strategy_costs(plan, origin, "down/linear#1", **given)
    whole = 4 * rows * width
    assert costs.row("i").sent_bytes == 2 * (n - 1) / n * whole
    scattered = strategy_costs(plan, origin, "down/linear#1", given["inputs"], "S(0)")
    assert scattered.row("i").sent_bytes == (n - 1) / n * whole
    for row in costs.rows:
        assert row.work_s > 0
        assert (row.time_s > 0) == (row.sent_bytes > 0)
    text = str(costs)
    assert all(f"\n  {row.strategy} " in text for row in costs.rows)
    assert "sent by a rank" in text


def test_row_38_what_cannot_be_asked() -> None:
    plan, origin = planned(Product(), (torch.randn(4, 5),), 8, **MESH)
    with pytest.raises(LayoutError, match=r"no op '/matmul#2'; plan.explain\(path\) shows"):
        strategy_costs(plan, origin, "/matmul#2")
    with pytest.raises(LayoutError, match="has 2 operands, got 1 layouts"):
        strategy_costs(plan, origin, "/matmul#1", inputs=["B"])
    with pytest.raises(LayoutError, match=r"no strategy 'z'; there are .*i \| j"):
        strategy_costs(plan, origin, "/matmul#1").row("z")
    with pytest.raises(ConfigError, match="solves again"):
        strategy_costs(plan, None, "/matmul#1")


# -- C: a certificate ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MLP(64, 256), Residual(2, 64)], ids=["mlp", "residual"])
@pytest.mark.parametrize("mesh", [{"x": 4}, {"a": 2, "b": 2}], ids=str)
def test_row_c_bound_and_gap_of_every_plan(model: nn.Module, mesh: dict[str, int]) -> None:
    plan = autoplan.plan(
        model, (torch.randn(32, 64),), devices=4, cluster="h100", parallel={"mesh": mesh}
    )
    proof = plan.certificate
    assert proof.status == "optimal"
    assert proof.gap == 0.0
    assert proof.objective == plan.step_time_s
    assert proof.bound == pytest.approx(proof.objective, rel=1e-9)
    assert "certificate: proven optimal" in plan.report()


def blocks(layers: int, **options: Any) -> tuple[Plan, Origin]:
    ids = token_ids(4, 16)
    model = gpt2(n_layer=layers, n_embd=64, use_cache=False)
    return planned(model, (ids,), 4, cluster="h100", parallel={"mesh": {"x": 4}}, **options)


def test_row_c_what_folding_repeated_blocks_costs() -> None:
    """The best plan of equal blocks less this one; the bound is of blocks as they are."""
    plan, origin = blocks(9)
    proof = plan.certificate
    assert proof.folding
    question, given = origin.answer(plan)
    classes = repeated_classes(question.annotated)
    assert classes is not None
    alike = solve(fold(question.problem, classes).problem)
    lost = alike.certificate.objective - plan.step_time_s
    assert proof.folding_s == pytest.approx(lost, rel=1e-6, abs=1e-12)
    apart = solve(question.problem)
    assert apart.certificate.objective == pytest.approx(given.objective, rel=1e-9)
    assert proof.bound <= apart.certificate.objective * (1 + 1e-9)
    assert f"{proof.num_classes} with repeated blocks alike" in plan.report()


def test_row_c_what_the_time_limit_costs() -> None:
    """Too little time for a proof: the best plan so far, and how far from the best it can be."""
    free, _ = tight(0.3)
    limit = int(0.55 * free.peak_memory_bytes)
    soon, _ = tight(0.3, memory=limit)
    later, _ = tight(1.5, memory=limit)
    for plan in (soon, later):
        proof = plan.certificate
        assert plan.peak_memory_bytes <= limit
        assert proof.bound <= proof.objective
        assert proof.gap == pytest.approx((proof.objective - proof.bound) / proof.objective)
    assert soon.certificate.gap > 0.0
    assert soon.certificate.status != "optimal"
    assert f"gap {soon.certificate.gap:.3%}" in soon.report()
    # What is proven in less time holds for whatever is found in more.
    assert soon.certificate.bound <= later.step_time_s * (1 + 1e-9)
    assert later.certificate.bound <= soon.step_time_s * (1 + 1e-9)


def tight(time_limit_s: float, **options: Any) -> tuple[Plan, Origin]:
    """Three blocks on 2 x 2, whose memory limit is hard to prove optimal choices for."""
    ids = token_ids(8, 32)
    options |= {"cluster": "h100", "parallel": {"mesh": {"a": 2, "b": 2}}}
    model = gpt2(n_layer=3, n_embd=64, use_cache=False)
    return planned(model, (ids,), 4, time_limit_s=time_limit_s, **options)
