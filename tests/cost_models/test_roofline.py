"""The roofline model, and the bytes of parameters against what torch.optim really holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoplan.cost_models import (
    Cluster,
    CostModel,
    Roofline,
    Work,
    collective_time_s,
    load_profile,
    parameter_bytes,
)
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh

H100 = load_profile("h100")
MODEL = Roofline(Cluster(H100, 16), Mesh.of(data=2, tensor=8))
LAUNCH_S = H100.kernel_launch_s.value
BANDWIDTH = 3.35e12 * H100.memory_bandwidth_fraction.value


def test_it_answers_the_three_questions() -> None:
    model: CostModel = MODEL
    assert model.op_time_s(Work("memory", 0.0, 0.0, "float32")) == LAUNCH_S


def test_the_longer_of_arithmetic_and_bytes_is_paid() -> None:
    flops = 2.0 * 4096**3
    arithmetic_s = flops / (989.4e12 * H100.matmul_fraction.value)
    assert MODEL.op_time_s(Work("matmul", flops, 3 * 2 * 4096**2, "bfloat16")) == pytest.approx(
        arithmetic_s + LAUNCH_S
    )
    assert MODEL.op_time_s(Work("matmul", 1.0, 1e9, "bfloat16")) == pytest.approx(
        1e9 / BANDWIDTH + LAUNCH_S
    )
    assert MODEL.op_time_s(Work("attention", flops, 0.0, "bfloat16")) == pytest.approx(
        flops / (989.4e12 * H100.attention_fraction.value) + LAUNCH_S
    )


def test_memory_work_does_not_use_the_matrix_units() -> None:
    slow, fast = (Work(kind, 1e12, 0.0, "bfloat16") for kind in ("memory", "matmul"))
    assert MODEL.op_time_s(slow) == MODEL.op_time_s(Work("matmul", 1e12, 0.0, "float32"))
    assert MODEL.op_time_s(slow) > MODEL.op_time_s(fast)


def test_a_view_is_free() -> None:
    assert MODEL.op_time_s(Work("free", 0.0, 1e9, "bfloat16")) == 0


@given(
    kind=st.sampled_from(["matmul", "attention", "memory"]),
    dtype=st.sampled_from(["float64", "float32", "bfloat16", "int64"]),
    flops=st.floats(0, 1e18),
    size=st.floats(0, 1e13),
    factor=st.floats(1, 10),
)
def test_op_times_grow_with_the_work(
    kind: str, dtype: str, flops: float, size: float, factor: float
) -> None:
    small = MODEL.op_time_s(Work(kind, flops, size, dtype))  # type: ignore[arg-type]
    assert small >= LAUNCH_S
    assert small <= MODEL.op_time_s(Work(kind, flops * factor, size, dtype))  # type: ignore[arg-type]
    assert small <= MODEL.op_time_s(Work(kind, flops, size * factor, dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind", ["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send"]
)
@pytest.mark.parametrize("axis", ["data", "tensor"])
def test_a_collective_is_a_launch_and_its_formula(kind: str, axis: str) -> None:
    link = MODEL.cluster.link(MODEL.mesh, axis)
    assert MODEL.collective_time_s(kind, 1e8, axis) == LAUNCH_S + collective_time_s(kind, 1e8, link)


def test_the_network_is_slower_than_the_node() -> None:
    over_nodes = MODEL.collective_time_s("send", 1e8, "data")
    assert over_nodes > 5 * MODEL.collective_time_s("send", 1e8, "tensor")


def test_an_axis_of_one_rank_is_free() -> None:
    model = Roofline(Cluster(H100, 8), Mesh(("data", "tensor"), (1, 8)))
    assert model.collective_time_s("all_reduce", 1e9, "data") == 0


def test_unknown_axes_and_collectives_are_refused() -> None:
    with pytest.raises(ConfigError, match="no mesh axis is called 'model'"):
        MODEL.collective_time_s("all_reduce", 1.0, "model")
    with pytest.raises(ConfigError, match="did you mean 'all_reduce'"):
        MODEL.collective_time_s("all_reduces", 1.0, "data")


OPTIMIZERS: dict[str, Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "sgd_momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_resident_bytes_are_what_torch_optim_holds(optimizer: str, dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3)).to(dtype)
    optim = OPTIMIZERS[optimizer](model.parameters())
    model(torch.ones(2, 7, dtype=dtype)).sum().backward()
    optim.step()
    for parameter in model.parameters():
        assert parameter.grad is not None
        states = [value for name, value in optim.state[parameter].items() if name != "step"]
        held = MODEL.resident_bytes(
            parameter.numel(), str(dtype).removeprefix("torch."), optimizer, trained=True
        )
        assert held.parameter == parameter.nbytes
        assert held.gradient == parameter.grad.nbytes
        assert held.optimizer_state == sum(state.nbytes for state in states if state is not None)
        assert held.total == held.parameter + held.gradient + held.optimizer_state


def test_inference_and_frozen_parameters_hold_nothing_but_themselves() -> None:
    held = parameter_bytes(10, "float32", "adamw", trained=False)
    assert (held.parameter, held.gradient, held.optimizer_state, held.total) == (40, 0, 0, 40)
    assert parameter_bytes(10, "float32", "none", trained=True).total == 80


def test_unknown_optimizers_and_dtypes_are_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'AdamX' .did you mean 'adamw?'"):
        parameter_bytes(1, "float32", "AdamX", trained=True)
    with pytest.raises(ConfigError, match="known: adamw, adam, sgd_momentum"):
        parameter_bytes(1, "float32", "lion", trained=False)
    with pytest.raises(ConfigError, match="did you mean 'float32'"):
        parameter_bytes(1, "float3", "sgd", trained=True)
