"""Gathering in the body: what waits for backward is a shard, and who gathers how often."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from autoplan.runtime.regather import gathered, keeping_shards, reduced


class Doubling:
    """A way whose whole is the shard twice, one under the other; counts what it is asked."""

    def __init__(self) -> None:
        self.there_calls = self.again_calls = self.back_calls = 0
        self.wholes: list[weakref.ref[Tensor]] = []

    def _whole(self, shard: Tensor) -> Tensor:
        whole = torch.cat([shard.detach(), shard.detach()])
        self.wholes.append(weakref.ref(whole))
        return whole

    def there(self, shards: Sequence[Tensor]) -> list[Tensor]:
        self.there_calls += 1
        return [self._whole(each) for each in shards]

    def again(self, shards: Sequence[Tensor], number: int) -> Tensor:
        self.again_calls += 1
        return self._whole(shards[number])

    def back(
        self, grads: Sequence[Tensor | None], shapes: Sequence[torch.Size]
    ) -> list[Tensor | None]:
        self.back_calls += 1
        return [None if g is None else g[: len(g) // 2] + g[len(g) // 2 :] for g in grads]

    @property
    def alive(self) -> int:
        gc.collect()
        return sum(each() is not None for each in self.wholes)


@pytest.fixture
def operands() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    return x, torch.randn(3, 4, dtype=torch.float64, requires_grad=True)


def _truth(x: Tensor, shard: Tensor) -> tuple[Tensor, ...]:
    loss = torch.nn.functional.linear(x, torch.cat([shard, shard])).square().sum()
    return torch.autograd.grad(loss, [x, shard])


def test_a_shard_waits_and_backward_gathers_once(operands: tuple[Tensor, Tensor]) -> None:
    x, shard = operands
    way = Doubling()
    with keeping_shards(True):
        (whole,) = gathered(way, [shard])
        loss = torch.nn.functional.linear(x, whole).square().sum()
    del whole
    assert way.alive == 0
    found = torch.autograd.grad(loss, [x, shard])
    assert (way.there_calls, way.again_calls, way.back_calls, way.alive) == (1, 1, 1, 0)
    torch.testing.assert_close(found, _truth(x, shard), rtol=1e-12, atol=0.0)


def test_without_hooks_the_whole_waits(operands: tuple[Tensor, Tensor]) -> None:
    """What the other tests would show if the hooks did nothing."""
    x, shard = operands
    way = Doubling()
    with keeping_shards(False):
        loss = torch.nn.functional.linear(x, gathered(way, [shard])[0]).square().sum()
    assert way.alive == 1
    loss.backward()
    assert way.again_calls == 0


def test_views_side_by_side_share_what_backward_gathers(operands: tuple[Tensor, Tensor]) -> None:
    x, shard = operands
    way = Doubling()
    with keeping_shards(True):
        (whole,) = gathered(way, [shard])
        pieces = whole.t().split(2, 1)
        loss = sum((torch.mm(x, each).square().sum() for each in pieces), torch.zeros(()))
    del whole, pieces
    assert way.alive == 0
    found = torch.autograd.grad(loss, [x, shard])
    assert (way.again_calls, way.back_calls, way.alive) == (1, 1, 0)
    torch.testing.assert_close(found, _truth(x, shard), rtol=1e-12, atol=0.0)


def test_a_second_backward_gathers_again(operands: tuple[Tensor, Tensor]) -> None:
    x, shard = operands
    way = Doubling()
    with keeping_shards(True):
        loss = torch.nn.functional.linear(x, gathered(way, [shard])[0]).square().sum()
    first = torch.autograd.grad(loss, [x, shard], retain_graph=True)
    second = torch.autograd.grad(loss, [x, shard])
    assert (way.again_calls, way.alive) == (2, 0)
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0)


def test_frozen_parameters_are_gathered_for_backward_too(
    operands: tuple[Tensor, Tensor],
) -> None:
    x, shard = operands
    way = Doubling()
    with keeping_shards(True):
        (whole,) = gathered(way, [shard.detach()])
        loss = torch.nn.functional.linear(x, whole).square().sum()
    del whole
    (found,) = torch.autograd.grad(loss, [x])
    assert (way.again_calls, way.back_calls, way.alive) == (1, 0, 0)
    torch.testing.assert_close(found, _truth(x, shard)[0], rtol=1e-12, atol=0.0)


def test_a_recomputed_part_gathers_in_its_second_run_alone(
    operands: tuple[Tensor, Tensor],
) -> None:
    x, shard = operands
    way = Doubling()

    def part(x: Tensor, shard: Tensor) -> Tensor:
        (whole,) = gathered(way, [shard])
        return torch.nn.functional.linear(x, whole).square().sum()

    with keeping_shards(True):
        loss: Tensor = checkpoint(part, x, shard, use_reentrant=False)
    assert way.alive == 0
    found = torch.autograd.grad(loss, [x, shard])
    assert (way.there_calls, way.again_calls, way.alive) == (2, 0, 0)
    torch.testing.assert_close(found, _truth(x, shard), rtol=1e-12, atol=0.0)


def test_a_changed_shard_is_refused(operands: tuple[Tensor, Tensor]) -> None:
    x, shard = operands
    with keeping_shards(True):
        loss = torch.nn.functional.linear(x, gathered(Doubling(), [shard])[0]).sum()
    with torch.no_grad():
        shard.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        loss.backward()


def test_a_whole_made_elsewhere_sends_its_gradient_to_the_shard(
    operands: tuple[Tensor, Tensor],
) -> None:
    x, shard = operands
    way = Doubling()
    whole = torch.cat([shard, shard]).detach()
    (read,) = reduced(way, [shard], [whole])
    assert read.data_ptr() == whole.data_ptr()
    found = torch.autograd.grad(torch.nn.functional.linear(x, read).square().sum(), [x, shard])
    assert (way.there_calls, way.again_calls, way.back_calls) == (0, 0, 1)
    torch.testing.assert_close(found, _truth(x, shard), rtol=1e-12, atol=0.0)
