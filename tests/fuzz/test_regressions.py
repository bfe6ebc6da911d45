"""What fuzzing found, each as a small module of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan
from autoplan.runtime.reference import run_reference
from tests.end_to_end.arbitrary import any_choice


class Model(nn.Module):
    """A weight, batch statistics and a buffer around one function of them."""

    def __init__(self, fn: Callable[..., Any], width: int = 4) -> None:
        super().__init__()
        self.fn = fn
        self.weight = nn.Parameter(torch.linspace(0.5, 2.0, width, dtype=torch.float64))
        self.register_buffer("held", torch.ones(width, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(width, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        return self.fn(self, x)


def rows(count: int = 5, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, dtype=torch.float64, generator=generator)


def overwritten(m: Any, x: Tensor) -> Tensor:
    """The buffer's old value is not read."""
    m.held.copy_(x[0].detach())
    return x * m.weight


def overwritten_by_what_was_written(m: Any, x: Tensor) -> Tensor:
    """The buffer's new value is a view, made anew because of the write before it."""
    y = x * m.weight
    y[1:] *= 2.0
    m.held.copy_(y[0].detach())
    return y.sin()


def counted_unread(m: Any, x: Tensor) -> Tensor:
    """The first dropout draws, too, although nothing reads what it drops."""
    F.dropout(x, 0.5, m.training)
    return F.dropout(x * m.weight, 0.5, m.training)


def counted_overwritten(m: Any, x: Tensor) -> Tensor:
    y = F.dropout(x, 0.5, m.training)
    y.copy_(x)
    return F.dropout(y * m.weight, 0.5, m.training)


def normalized_then_written(m: Any, x: Tensor) -> Tensor:
    y = F.batch_norm(x, m.mean, m.variance, m.weight, None, m.training)
    y.abs_()
    total = y.sum()
    y.masked_fill_(x > 0, 0.5)
    return y + total


def view_of_normalized_written(m: Any, x: Tensor) -> Tensor:
    y = F.batch_norm(x, m.mean, m.variance, m.weight, m.weight, m.training)
    y[..., 2].mul_(x.mean())
    return y.cumsum(1)


FOUND = (
    overwritten,
    overwritten_by_what_was_written,
    counted_unread,
    counted_overwritten,
    normalized_then_written,
    view_of_normalized_written,
)


@pytest.mark.parametrize("fn", FOUND, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("preset", [None, "ddp"])
def test_found(fn: Callable[..., Any], preset: str | None) -> None:
    x = rows()
    model, original = Model(fn), Model(fn)
    module = autoplan.parallelize(model, (x,), devices=3, preset=preset)
    found = module.verify((x,))
    assert found.ok, str(found)
    expected = run_reference(original, (x,), {}, 0, 0)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    for path, buffer in original.named_buffers():
        torch.testing.assert_close(module.get_buffer(path), buffer, rtol=1e-12, atol=1e-12)


def test_a_buffer_that_is_not_updated_is_found() -> None:
    """`verify` compares the buffers that the original changes, whatever the program does."""
    x = rows()
    module = autoplan.parallelize(Model(overwritten), (x,), devices=2, preset="ddp")
    [entry] = module._entries.values()
    for program in entry.programs:
        graph = program.body.graph
        [returned] = graph.find_nodes(op="output")
        outputs, changed = returned.args[0][:-1], returned.args[0][-1]
        [held] = [n for n in graph.find_nodes(op="placeholder") if "held" in n.name]
        assert changed is not held
        returned.args = ((*outputs, held),)
        program.body.recompile()
    found = module.verify((x,))
    assert not found.ok
    assert found.buffer_errors["held"] > 1e-3


def test_a_plan_for_inference_has_no_gradients_to_compare() -> None:
    """Its program has none: a sum over ranks that only they need is left out."""
    x = rows(6)
    model = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4)).double().eval()
    for devices in (2, 3):
        module = autoplan.parallelize(
            model, (x,), devices=devices, training=False, hints={"input": "S(0)"}
        )
        found = module.verify((x,))
        assert found.ok, str(found)
        assert found.gradient_errors == {}


def test_constants_of_the_model_are_not_rounded_to_its_precision() -> None:
    class Sloped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight + torch.arange(4, dtype=x.dtype).mul(0.0731)

    x = rows().float()
    found = autoplan.parallelize(Sloped(), (x,), devices=2).verify((x,))
    assert found.ok, str(found)


@pytest.mark.parametrize("preset", [None, "ddp", "fsdp"])
def test_a_parameter_that_no_output_depends_on_has_no_gradient(preset: str | None) -> None:
    """Zeros for it, from being boxed with others, would let an optimizer decay it."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trained = nn.Linear(8, 8)
            self.detached = nn.Linear(8, 8)
            self.unused = nn.Parameter(torch.ones(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return (self.trained(x) + self.detached(x).detach()).square().mean()

    x = rows(8, 8).float()
    module = autoplan.parallelize(Partly(), (x,), devices=4, preset=preset)
    module(x).backward()
    given = {path for path, each in module.named_parameters() if each.grad is not None}
    assert given == {"trained.weight", "trained.bias"}
    found = module.verify((x,), steps=2)  # with AdamW, which decays weights
    assert found.ok, str(found)


class TwoAddends(nn.Module):
    """A mean over the batch, and a term of a parameter alone, added."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(2).square().mean() + self.w.square().sum()


@pytest.mark.parametrize("seed", range(6))
def test_microbatches_whose_gradients_share_memory(seed: int) -> None:
    """Boxing that moves nothing returns views; what accumulates them in place must own them."""
    torch.manual_seed(0)
    model, x = TwoAddends(), torch.randn(10, 3, 4, dtype=torch.float64)
    with any_choice(seed):
        module = autoplan.parallelize(model, (x,), devices=2, microbatches=2)
    module.train_step((x,))
    torch.testing.assert_close(module.w.grad, 2 * model.w.detach(), rtol=1e-12, atol=0.0)


def test_gradients_that_all_vanish_are_equal() -> None:
    """A softmax over what the weight only shifts: its gradient is rounding, on one device too."""

    def fn(self: Model, x: Tensor) -> Tensor:
        y = x + self.weight[:, None]
        return F.kl_div(y.log_softmax(-1), (2 * x).softmax(-1), reduction="sum")

    torch.manual_seed(0)
    x = torch.randn(5, 4, 5, dtype=torch.float64)
    for seed in range(4):
        with any_choice(seed):
            module = autoplan.parallelize(Model(fn), (x,), devices=4)
        found = module.verify((x,))
        assert found.ok, found
