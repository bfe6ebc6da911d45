"""Families of models under plans that split them, beside the original on one device.

By default every family that autoplan promises, with labels, on simulated (2, 4) and on four real
ranks; marked slow the same on one axis of 8, without labels, in float32 and under random plans, and
all other families.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

import autoplan
from tests.end_to_end.arbitrary import any_choice
from tests.models import ideal_cluster
from tests.runtime.launch import run_ranks
from tests.zoo.families import every_family, seeded, without_labels
from tests.zoo.ranks import Outcome, train_all

FAMILIES = every_family()

PROMISED = (
    "gpt2", "bert", "roberta", "t5", "vit", "llama", "qwen2", "qwen3", "mixtral_batched_mm",
    "mixtral_grouped_mm", "resnet", "whisper", "transformer_encoder", "multihead_attention",
    "resnet_with_batch_norm", "unet_with_group_norm", "lstm", "recommender", "two_towers",
    "structured", "low_rank_adapters", "parameters_used_twice", "no_parameters",
)  # fmt: skip
LABELLED = tuple(name for name in PROMISED if FAMILIES[name].source == "transformers")

REFUSED = {
    "mixtral_eager": "batched_mm|branch on data",
    "dbrx": "batched_mm|branch on data",
    "jetmoe": "depends on data",
    "longformer": "branch on data",
    "ibert": "branch on data",
    "detr": "branch on data",
    "wav2vec2_transcribed": "depends on data",
    "glpn": "depends on data",
    "encodec": "branch on data",
    "vilt": "branch on data",
    "time_series": "layerdrop",
    "led": "branch on data",
    "prophetnet": "branch on data",
    "fsmt": "branch on data",
    "switch": "self.classifier.to",
    "hypernetwork": "torch.vmap",
    "loss_gaussian": "branch on data",
    "gradient_reversal": "autograd.Function",
    "exponential_moving_average": "changed in place",
}
"""Families that compute with the data's values in Python, and what the refusal says."""

NOT_YET = {"complex_parameters": "float64 proofs leave complex64 as it is"}

OTHERS = tuple(
    pytest.param(name, marks=pytest.mark.xfail(reason=NOT_YET[name])) if name in NOT_YET else name
    for name in FAMILIES
    if name not in (*PROMISED, *REFUSED)
)

MESHES: dict[str, dict[str, int]] = {"8": {"a": 8}, "2 x 4": {"a": 2, "b": 4}}
TWO_AXES = MESHES["2 x 4"]


def needs_transformers(name: str) -> None:
    if FAMILIES[name].source == "transformers":
        pytest.importorskip("transformers")


def check(
    name: str,
    mesh: dict[str, int],
    labels: bool = True,
    precision: Any = "float64",
    seed: int | None = None,
) -> None:
    """Outputs, gradients, buffers, and weights after two steps, on each of 8 simulated ranks."""
    needs_transformers(name)
    model, args, kwargs = seeded(name)
    if not labels:
        kwargs = without_labels(model, kwargs)
    options: dict[str, Any] = {"parallel": {"mesh": mesh}, "cluster": ideal_cluster(8)}
    with nullcontext() if seed is None else any_choice(seed):
        module = autoplan.parallelize(model, args, kwargs, devices=8, time_limit_s=20, **options)
    if seed is None:
        assert module.plan.collectives, "a plan that splits nothing proves nothing"
    # In lower precision a step on rounded gradients rounds once more.
    steps = 2 if precision == "float64" else 0
    found = module.verify(args, kwargs, steps=steps, precision=precision)
    assert found.ok, str(found)
    assert found.tolerance == (1e-9 if precision == "float64" else 1e-4)


@pytest.mark.parametrize("name", PROMISED)
def test_promised_families_on_two_axes(name: str) -> None:
    check(name, TWO_AXES)


@pytest.mark.parametrize("name", ["gpt2", "t5", "mixtral_grouped_mm"])
def test_without_labels(name: str) -> None:
    check(name, TWO_AXES, labels=False)


@pytest.mark.parametrize("name", ["bert", "resnet_with_batch_norm"])
def test_in_float32(name: str) -> None:
    check(name, TWO_AXES, precision="model")


# -- real ranks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Outcome]]:
    pytest.importorskip("transformers")
    return run_ranks(train_all, 4, PROMISED, timeout_s=280)


@pytest.mark.parametrize("name", PROMISED)
def test_promised_families_on_four_real_ranks(
    four_ranks: list[dict[str, Outcome]], name: str
) -> None:
    for outcomes in four_ranks:
        found = outcomes[name]
        assert found.failure == ""
        assert found.objective_error < 1e-9
        assert all(error < 1e-9 for error in found.gradient_errors.values()), found
        assert found.splits, "a plan that splits nothing proves nothing"


# -- slow: everything ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED)
def test_promised_families_on_one_axis(name: str) -> None:
    check(name, MESHES["8"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("mesh", MESHES)
def test_promised_families_without_labels(name: str, mesh: str) -> None:
    check(name, MESHES[mesh], labels=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED)
def test_promised_families_in_float32(name: str) -> None:
    check(name, TWO_AXES, precision="model")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize(("mesh", "seed"), [("8", 0), ("2 x 4", 1), ("2 x 4", 2)])
def test_any_plan_of_promised_families(name: str, mesh: str, seed: int) -> None:
    check(name, MESHES[mesh], seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_families(name: str) -> None:
    check(name, TWO_AXES)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_place_and_the_edit(name: str) -> None:
    needs_transformers(name)
    model, args, kwargs = seeded(name)
    with pytest.raises(autoplan.CaptureError, match=REFUSED[name]) as refused:
        autoplan.plan(model, args, kwargs, devices=8)
    assert ".py:" in str(refused.value)
