"""Running statistics of instance norm, which torch writes without saying so in the op's schema."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import autoplan


class Images(nn.Module):
    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)
        self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x)).square().mean()


@pytest.mark.parametrize("layout", ["S(0)", "S(1)", "B"])
def test_instance_norm_moves_its_running_statistics_as_torch_does(layout: str) -> None:
    model, x = Images(0.3).double(), torch.randn(5, 3, 4, 4, dtype=torch.float64)
    original = copy.deepcopy(model)
    module = autoplan.parallelize(model, (x,), devices=2, hints={"mix": layout})
    check = module.verify((x,))
    assert check.ok, check
    for _ in range(2):
        module(x)
        original(x)
    moved = dict(module.named_buffers())
    for path, buffer in original.named_buffers():
        torch.testing.assert_close(moved[path], buffer, rtol=1e-12, atol=1e-12)
    assert bool((moved["norm.running_mean"] != 0).all())


def test_in_eval_mode_instance_norm_keeps_its_running_statistics() -> None:
    model, x = Images(0.3).double().eval(), torch.randn(5, 3, 4, 4, dtype=torch.float64)
    module = autoplan.parallelize(model, (x,), devices=2, hints={"mix": "S(0)"})
    assert module.verify((x,)).ok
    module(x)
    assert bool((dict(module.named_buffers())["norm.running_mean"] == 0).all())
