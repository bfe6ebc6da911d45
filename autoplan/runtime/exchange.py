"""Rows that go to other ranks by numbers that only the data says, as to the owners of experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Exchange:
    """What one rank sends and receives in `exchange_rows`, rows per rank of the axis.

    length: rows of the result. `whole_rows` only says how the exchange is counted.
    """

    axis: str
    sent: tuple[int, ...]
    received: tuple[int, ...]
    whole_rows: int
    length: int

    def reversed(self, length: int) -> Exchange:
        """What the gradient of an operand of `length` rows does."""
        return Exchange(self.axis, self.received, self.sent, self.whole_rows, length)

    def size_bytes(self, x: Tensor) -> int:
        return self.whole_rows * math.prod(x.shape[1:]) * x.element_size()


def read_exchange(counts: Tensor, index: int, axis: str, rows: int, length: int | None) -> Exchange:
    """The exchange of rank `index` of `axis`; waits for `counts` where they are on a device."""
    table: list[list[int]] = counts.tolist()
    received = tuple(sent[index] for sent in table)
    length = sum(received) if length is None else length
    return Exchange(axis, tuple(table[index]), received, rows, length)


Run = Callable[[Tensor, Exchange], Tensor]
"""What a communicator does to the rows of one rank."""


class _Exchanging(torch.autograd.Function):
    """Rows there; backward is the same way back."""

    @staticmethod
    def forward(ctx: Any, run: Run, exchange: Exchange, x: Tensor) -> Tensor:
        ctx.run, ctx.exchange = run, exchange.reversed(x.shape[0])
        return run(x, exchange)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # Through itself, so that the gradient of the gradient is the exchange again.
        return None, None, exchange_rows(grad, ctx.exchange, ctx.run)


def exchange_rows(x: Tensor, exchange: Exchange, run: Run) -> Tensor:
    """What `run` makes of `x`, with the gradient of an exchange."""
    result: Tensor = _Exchanging.apply(run, exchange, x)  # type: ignore[no-untyped-call]
    return result
