"""A model file as users write one, small."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two products around a ReLU; the mean square of what comes out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))).square().mean()


def build(width: int = 16) -> nn.Module:
    print("a model file may print")
    torch.manual_seed(0)
    return Net(width)


def example_inputs(batch: int = 8, width: int = 16) -> Tensor:
    return torch.ones(batch, width)


def with_arguments(rows: int = 8) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.ones(rows, 16),)


def with_keywords() -> tuple[nn.Module, tuple[()], dict[str, Tensor]]:
    return Net(), (), {"x": torch.ones(4, 16)}


def needs(width: int) -> nn.Module:
    return Net(width)


def a_text() -> str:
    return "no model"


def breaks() -> nn.Module:
    raise KeyError("the number of layers")


MODULE = Net()
