"""Models that write in place compute the same without, gradients and buffers included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan
from tests.planner.models import Fn, captured_and_equal

aten = torch.ops.aten


def _slice(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    y[:, 1:3] = x[:, :2] * 2
    y[..., -1] = 7
    return y.sin()


def _row(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    y[0] = 1.0
    y[1].mul_(3)
    return y


def _under_a_view(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    flat, column = y.view(-1), y[:, 0]
    y.add_(1)
    return flat * 2, column + y[:, 1]


def _through_views(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    y.view(4, 3, 4).transpose(1, 2)[:, 0].mul_(2)
    y.t()[3].add_(1)
    y.unsqueeze(0).permute(2, 0, 1)[1] = 0
    y.flatten()[5:9].neg_()
    return y.exp()


def _pieces(self: Any, x: Tensor) -> Tensor:
    """torch writes to pieces where no gradient is recorded only."""
    y = self.linear(x).detach()
    a, b, c = y.chunk(3, 1)
    b += a
    first, *_ = y.unbind(0)
    first.zero_()
    c.fill_(2.0)
    left, right = y.split([5, 7], -1)
    right[:, 0] = left[:, 0]
    return self.linear(y[:, :8] * 2), a + b


def _diagonal(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    y.diagonal().mul_(0.5)
    return y


def _masked(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    y[x[:, :1].expand(4, 12) > 0] = 0.5
    y.masked_fill_(y > 1, 1)
    y[torch.tensor([0, 2]), torch.tensor([1, 1])] += 3
    return y


def _shifted(self: Any, x: Tensor) -> Tensor:
    """As encoder-decoder models shift their labels."""
    ids = (x > 0).long()
    shifted = ids.new_zeros(ids.shape)
    shifted[:, 1:] = ids[:, :-1].clone()
    shifted[:, 0] = 2
    shifted.masked_fill_(shifted == 1, 5)
    return self.linear(x) + shifted.sum()


def _copies(self: Any, x: Tensor) -> Tensor:
    y = torch.empty(4, 12)
    y[:2] = self.linear(x)[:2]
    y[2:].copy_(x[:1].repeat(2, 2)[:, :12])
    return y


def _types(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    y += torch.ones(12, dtype=torch.float64)
    counts = torch.zeros(12, dtype=torch.int64)
    counts += (y > 0).sum(0)
    counts[0] = 2.7
    return y * counts


def _out(self: Any, x: Tensor) -> Tensor:
    y, z = self.linear(x).detach(), torch.zeros(4, 12)
    torch.add(y, 1, out=z)
    return z + self.linear(x)


def _logic(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    mask = y > 0
    mask &= y < 1
    mask |= y > 2
    return y * mask


def _reread(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    before = y * 1
    y.mul_(2)
    after = y * 1
    y += before
    return before, after, y


def _no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.abs().mean(0)
        scale.clamp_(min=0.1)
        scale[0] = 1
    return self.linear(x / scale)


FORWARDS = [
    _slice,
    _row,
    _under_a_view,
    _through_views,
    _pieces,
    _diagonal,
    _masked,
    _shifted,
    _copies,
    _types,
    _out,
    _logic,
    _reread,
    _no_grad,
]


@pytest.mark.parametrize("forward", FORWARDS)
def test_writes_through_views_become_functions(forward: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    captured = captured_and_equal(Fn(forward, linear=nn.Linear(8, 12)), torch.randn(4, 8))
    for node in captured.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable, node
    assert not captured.updates


class Memory(nn.Module):
    """Buffers written in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 12)
        self.register_buffer("queue", torch.zeros(3, 12))
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("still", torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.linear(x) * self.still
        with torch.no_grad():
            self.mean.lerp_(y.mean(0), 0.1)
            self.queue[1:] = self.queue[:-1].clone()
            self.queue[0].copy_(y[0])
        return y + self.mean, self.queue.sum(), self.calls * 2


def test_buffers_have_new_values() -> None:
    torch.manual_seed(0)
    captured = captured_and_equal(Memory(), torch.randn(4, 8))
    assert set(captured.updates) == {"queue", "mean", "calls"}


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(12), nn.BatchNorm1d(12, affine=False, momentum=0.3)]
)
def test_batch_norm_returns_its_running_statistics(norm: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), norm, nn.ReLU(inplace=True), norm)
    captured = captured_and_equal(model, torch.randn(5, 8))
    assert set(captured.updates) == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    model.eval()
    assert not captured_and_equal(model, torch.randn(5, 8)).updates


def test_a_loss_after_writes_trains() -> None:
    torch.manual_seed(0)
    model = Fn(lambda self, x, y: F.cross_entropy(_pieces(self, x)[0], y), linear=nn.Linear(8, 12))
    captured_and_equal(model, torch.randn(4, 8), torch.tensor([0, 3, 5, 11]))


def test_a_buffer_under_two_paths_is_one() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(12)
    model = nn.Sequential(nn.Linear(8, 12), norm, nn.ReLU(inplace=True), norm).double()
    x = torch.randn(6, 8, dtype=torch.float64)
    module = autoplan.parallelize(model, (x,), devices=2)
    assert module.verify((x,), steps=3).ok
    module(x)
    model(x)
    assert int(module.get_buffer("1.num_batches_tracked")) == 2
    for path, value in module.full_state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[path])


class Copied(nn.Module):
    """A buffer written with what two others read, made of a buffer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.arange(4))
        self.register_buffer("second", torch.zeros(4, dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = self.first * 3
        self.second.copy_(value)
        return x + value, x * value


def test_a_buffer_may_take_what_the_prologue_makes_and_others_read() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    module = autoplan.parallelize(Copied(), (x,), devices=2)
    assert module.verify((x,)).ok
    module(x)
    assert module.get_buffer("second").tolist() == [0, 3, 6, 9]
