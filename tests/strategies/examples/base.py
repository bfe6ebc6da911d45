"""What an example is, and the tensors of examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_GENERATOR = torch.Generator().manual_seed(7)


@contextlib.contextmanager
def drawn_apart(seed: int) -> Iterator[None]:
    """Examples whose numbers leave those of later ones as they are."""
    state = _GENERATOR.get_state()
    _GENERATOR.manual_seed(seed)
    yield
    _GENERATOR.set_state(state)


@dataclass(frozen=True)
class Example:
    """One call of `op`. `reference` stands for `fn` where the op draws random numbers."""

    op: str
    variant: str
    fn: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    reference: Callable[..., Any] | None = None

    def __str__(self) -> str:
        return f"{self.op.removeprefix('aten.')}-{self.variant}"


def real(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_GENERATOR, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    return real(*shape).abs() + 0.5


def complex_numbers(*shape: int) -> Tensor:
    """Through which no gradient flows: examples are parameters only where they are real."""
    return torch.complex(real(*shape), real(*shape))


def whole(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=_GENERATOR)


def flags(*shape: int) -> Tensor:
    return real(*shape) > 0


def constant(tensor: Tensor) -> Tensor:
    """A float tensor through which no gradient flows."""
    return nn.Buffer(tensor)


EXAMPLES: list[Example] = []


def add(op: str, **variants: tuple[Any, ...]) -> None:
    """`name=(fn, *tensors)`, each a variant of `op`."""
    for name, (fn, *tensors) in variants.items():
        EXAMPLES.append(Example(f"aten.{op}", name, fn, tuple(tensors)))


eighths = whole(-9, 9, 7, 4).float() / 8
"""Exact in every type that they are cast to."""
