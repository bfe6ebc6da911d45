"""From costs alone the planner finds the schemes that people found: nothing here is pinned."""

from __future__ import annotations

import pytest
import torch

import autoplan
from autoplan.layouts import BP, B, Layout, S
from autoplan.plan import Plan
from tests.planner.models import llama_8b

COLUMN = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
)
ROW = ("self_attn.o_proj", "mlp.down_proj")


def plan_8b(layers: int, batch: int, sequence: int, memory: str = "80GB") -> Plan:
    ids = torch.zeros(batch, sequence, dtype=torch.long)
    return autoplan.plan(
        llama_8b(layers),
        (ids,),
        {"labels": ids},
        devices=8,
        cluster="h100",
        parallel={"mesh": {"x": 8}},
        memory=memory,
    )


def labels_of(plan: Plan, op: str) -> dict[str, str]:
    """Module path -> the index over which its `op` is split."""
    return {row.path: row.choice for row in plan.operations if row.op == f"aten.{op}.default"}


@pytest.mark.parametrize("layers", [1, 2])
def test_one_long_sequence_gives_tensor_parallelism_with_sequence_parallelism(layers: int) -> None:
    """Batch 1, 4096 tokens, 8 x H100: Megatron's layout with its sequence parallelism.

    One sequence leaves no batch to split, and a layer's weights (436 MB in bfloat16) outweigh its
    activations (34 MB): moving activations is cheaper. A residual stream split along the sequence
    costs what a whole one does to reach (reduce-scatter and all-gather are the halves of an
    all-reduce) and saves seven eighths of the norms.
    """
    plan = plan_8b(layers, 1, 4096)
    assert plan.certificate.gap == 0.0
    assert plan.certificate.status == "optimal"
    products = labels_of(plan, "linear")
    for layer in range(layers):
        path = f"model.layers.{layer}"
        for name in COLUMN:
            assert plan.layout(f"{path}.{name}.weight") == (S(0),), name
            assert plan.layout(f"{path}.{name}") == (S(2),), name
            assert products[f"{path}.{name}"] == "o", name
        for name in ROW:
            assert plan.layout(f"{path}.{name}.weight") == (S(1),), name
            assert products[f"{path}.{name}"] == "i", name
        assert plan.layout(path) == (S(1),)  # the residual stream
        for norm in ("input_layernorm", "post_attention_layernorm"):
            assert plan.layout(f"{path}.{norm}") == (BP,)  # where columns are entered
    assert set(labels_of(plan, "scaled_dot_product_attention").values()) == {"h"}
    assert plan.layout("model.norm") == (S(1),)
    # Vocabulary-parallel head: the logits are never whole on a rank, and the loss is computed on
    # their columns.
    assert plan.layout("lm_head.weight") == (S(0),)
    assert plan.layout("lm_head") == (S(2),)
    assert set(labels_of(plan, "cross_entropy_loss").values()) == {"c"}


def test_a_large_batch_gives_fsdp() -> None:
    """64 x 1024 tokens on 8 x H100 with 18 GB: weights stored split, activations split by sequence.

    A layer's activations of 65,536 tokens (512 MB a tensor) now outweigh its weights (436 MB for
    all of them), so weights move. Splitting them where they are stored costs an all-gather and a
    reduce-scatter for data parallelism's all-reduce, the same bytes, and spares seven eighths of
    the optimizer's pass: it is faster even without a limit, and 18 GB do not hold whole storage.
    """
    plan = plan_8b(1, 64, 1024, memory="18GB")
    assert plan.certificate.gap == 0.0
    assert plan.peak_memory_bytes <= 18e9
    assert plan.baseline.peak_memory_bytes is not None
    assert plan.baseline.peak_memory_bytes > 18e9  # plain data parallelism would not fit
    assert plan.baseline.step_time_s is not None
    assert plan.step_time_s < plan.baseline.step_time_s
    products = labels_of(plan, "linear")
    for name in (*COLUMN, *ROW):
        path = f"model.layers.0.{name}"
        assert plan.layout(f"{path}.weight")[0] in (S(0), S(1)), name
        assert products[path] == "b0", name  # computed on the rank's own sequences
        assert plan.layout(path) == (S(0),), name
    for path in ("model.layers.0", "model.layers.0.self_attn", "model.layers.0.mlp", "model.norm"):
        assert plan.layout(path) == (S(0),), path


def test_fsdp_weights_are_read_whole_with_a_partial_gradient() -> None:
    """The same, with room enough: the plan says that the step reads the weights as B/P."""
    plan = plan_8b(1, 64, 1024)
    for name in (*COLUMN, *ROW):
        row = plan.tensor(f"model.layers.0.{name}.weight")
        assert Layout.parse(row.use) == (BP,), name
        assert Layout.parse(row.layout)[0] in (S(0), S(1)), name


def test_where_memory_binds_a_proven_plan_fits() -> None:
    """A little less than what the fastest plan needs: a slower one, and none is faster."""
    free = plan_8b(1, 64, 1024)
    limit = int(0.995 * free.peak_memory_bytes)
    plan = plan_8b(1, 64, 1024, memory=str(limit))
    assert plan.peak_memory_bytes <= limit
    assert free.step_time_s < plan.step_time_s < 1.5 * free.step_time_s
    assert plan.certificate.gap == 0.0


def test_a_small_model_is_not_split_at_all() -> None:
    """Where a kernel launch outweighs the arithmetic, every rank does everything."""
    from tests.planner.models import MLP

    plan = autoplan.plan(MLP(8, 16), (torch.randn(4, 8),), devices=2, cluster="h100")
    assert not plan.collectives
    assert all(plan.layout(f"{name}.weight") == (B,) for name in ("up", "down"))
