"""What a plan would lose is refused, or noted; what it keeps behaves as in the original."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import autoplan
from tests.models import Mlp, ideal_cluster, vector_batch


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class Reversing(Mlp):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(_Reversal.apply(self.fc1(x)[:, :12]), y)


def test_a_custom_backward_is_refused_at_its_line() -> None:
    with pytest.raises(autoplan.CaptureError, match=r"_Reversal.*test_refusals\.py:\d+.*custom_op"):
        autoplan.plan(Reversing(), *vector_batch(), devices=2)


def test_gradient_hooks_are_refused() -> None:
    model = Mlp()
    handle = model.fc1.weight.register_hook(lambda grad: grad * 2)
    with pytest.raises(autoplan.ConfigError, match=r"'fc1\.weight' has a gradient hook"):
        autoplan.parallelize(model, *vector_batch(), devices=2)
    handle.remove()
    model.fc2.register_full_backward_hook(lambda module, before, after: None)
    with pytest.raises(autoplan.ConfigError, match=r"'fc2' has a backward hook"):
        autoplan.parallelize(model, *vector_batch(), devices=2)


class Counting(Mlp):
    """Plain numbers of its own, one changed by forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.temperature = 0, 2.0

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        return super().forward(x / self.temperature, y)


def test_plain_attributes_are_part_of_the_plan() -> None:
    module = autoplan.parallelize(Counting(), *vector_batch(), devices=2)
    assert "forward changes calls (from 0 to 1)" in module.report()
    with pytest.raises(autoplan.ConfigError, match="'temperature' is an attribute of the model"):
        module.temperature = 1.0
    module.comment = "mine"  # what the model has not may be set


class Parts(nn.Module):
    """Dropout, a norm, a part that no gradient reaches, and two losses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.norm(self.dropout(self.first(x)))
        return self.second(h).square().mean(), self.third(h).sum(), self.third(x).detach()


@pytest.fixture(params=["ddp", "fsdp", "solver"])
def parts(request: Any) -> tuple[autoplan.ParallelModule, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Parts(), torch.randn(6, 8, dtype=torch.float64)
    preset = None if request.param == "solver" else request.param
    module = autoplan.parallelize(model, (x,), devices=4, preset=preset, cluster=ideal_cluster(4))
    return module, model, x


def test_what_no_gradient_reaches_has_none(parts: Any) -> None:
    """Zeros would let weight decay move it."""
    module, _, x = parts
    module(x)[0].backward()
    without = {path for path, each in module.named_parameters() if each.grad is None}
    assert without == {"third.weight", "third.bias"}
    assert module.verify((x,), steps=3).ok


def test_parts_have_modes_of_their_own(parts: Any) -> None:
    module, model, x = parts
    for each in (module, model):
        each.dropout.eval()
        each.norm.eval()
    assert module(x)[0].item() == pytest.approx(model(x)[0].item(), rel=1e-12)
    module.train()
    assert module.dropout.training


def test_frozen_and_thawed_parts_verify(parts: Any) -> None:
    module, _, x = parts
    module(x)
    module.first.requires_grad_(False)
    module(x)[0].backward()
    assert module.first.weight.grad is None
    assert module.verify((x,)).ok
    module.first.requires_grad_(True)
    assert module.verify((x,), steps=2).ok


def test_gradients_of_gradients(parts: Any) -> None:
    module, model, x = parts
    module.dropout.eval()
    model.dropout.eval()
    found = []
    for each in (module, copy.deepcopy(model)):
        weight = dict(each.named_parameters())["second.weight"]
        [grad] = torch.autograd.grad(each(x)[0], [weight], create_graph=True)
        grad.square().sum().backward()
        found.append(dict(each.named_parameters())["first.weight"].grad)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)


class Leaving(nn.Module):
    """A layer, and something that a capture would lose."""

    def __init__(self, lost: str) -> None:
        super().__init__()
        self.lost = lost
        self.linear = nn.Linear(8, 8, dtype=torch.float64)
        self.plain = torch.zeros((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.lost == "backward":
            y.sum().backward()
        elif self.lost == "python":
            y = y * random.random()
        elif self.lost == "numpy":
            y = y * float(numpy.random.rand())
        elif self.lost == "no_grad":
            with torch.autocast("cpu", enabled=False), torch.no_grad():
                y = y + self.linear(x)
        elif self.lost == "hook":
            y.register_hook(lambda grad: grad * 2)
        elif self.lost == "write":
            y = x * 2
            with torch.no_grad():
                y.mul_(3)
        elif self.lost == "caught check":
            try:
                if x.sum() < 1e9:
                    raise KeyError
            except KeyError:
                y = y * 3
        elif self.lost == "attribute":
            self.plain += 1
            y = y * self.plain
        return y.square().mean()


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        ("backward", r"runs a backward pass at .*test_refusals\.py:\d+"),
        ("python", r"draws from random"),
        ("numpy", r"draws from numpy\.random"),
        ("no_grad", r"no_grad inside torch\.autocast at .*test_refusals\.py:\d+"),
        ("hook", r"registers a gradient hook at .*test_refusals\.py:\d+"),
        ("write", r"changed in place where no gradient is recorded"),
        ("caught check", r"cannot branch on data"),
        ("attribute", r"'plain', a plain attribute .*register it as a buffer"),
    ],
)
def test_what_export_loses_is_refused(lost: str, text: str) -> None:
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    with pytest.raises(autoplan.CaptureError, match=text):
        autoplan.plan(Leaving(lost), (x,), devices=2)


class Caching(nn.Module):
    """A table made at the first call, and a part under inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "table") or self.table.shape[0] < x.shape[0]:
            self.table = torch.arange(x.shape[0], dtype=torch.float64).unsqueeze(1)
        with torch.inference_mode():
            scale = self.linear(x).mean()
        return (self.linear(x) * self.table[: x.shape[0]] + scale).mean()


def test_tables_made_at_the_first_call_are_made_anew() -> None:
    torch.manual_seed(0)
    model = Caching()
    module = autoplan.parallelize(model, devices=2, cluster=ideal_cluster(2))
    for rows in (4, 6, 3):
        x = torch.randn(rows, 8, dtype=torch.float64)
        assert module.verify((x,)).ok
        assert module(x).item() == pytest.approx(copy.deepcopy(model)(x).item(), rel=1e-12)
    assert not hasattr(model, "table")


def test_lazy_parameters_are_refused() -> None:
    with pytest.raises(autoplan.ConfigError, match="lazy parameters"):
        autoplan.parallelize(nn.LazyLinear(4), (torch.randn(2, 3),), devices=2)


def test_parts_of_a_parallel_module_do_not_run() -> None:
    module = autoplan.parallelize(Mlp(), *vector_batch(), devices=2)
    for change in (
        lambda: module.fc1.register_forward_hook(print),
        lambda: module.apply(print),
        lambda: setattr(module, "extra", nn.Parameter(torch.zeros(1))),
    ):
        with pytest.raises(autoplan.ConfigError, match=r"original|parallelize"):
            change()


class Weighted(nn.Module):
    """Class weights, positions and a table among the arguments, of the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8, dtype=torch.float64)
        self.embedding = nn.Embedding(8, 8, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, at: Tensor, table: Tensor) -> Tensor:
        logits = self.linear(x) + self.embedding(at).sum(0) + table.sum(0)
        return nn.functional.cross_entropy(logits, y, weight, reduction="sum")


def test_arguments_that_only_have_the_batch_s_size_stay_whole() -> None:
    torch.manual_seed(0)
    model = Weighted()
    x = torch.randn(8, 8, dtype=torch.float64)
    weight, table = torch.rand(8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)
    args = (x, torch.arange(8), weight, torch.arange(8), table)
    module = autoplan.parallelize(model, args, devices=2, microbatches=2)
    loss = module.train_step(args).loss
    assert 2 * loss.item() == pytest.approx(model(*args).item(), rel=1e-12)


def test_gradients_of_arguments_are_compared() -> None:
    x = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    module = autoplan.parallelize(Mlp(), (x,), devices=4, preset="ddp")
    found = module.verify((x,))
    assert found.ok
    assert set(found.argument_errors) == {0}
    assert x.grad is None
