"""Leaves: where the body's gradients wait for the backward of the prologue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _own(grad: Tensor) -> Tensor:
    """A gradient that a leaf may accumulate: no view of another one.

    Boxing returns views where nothing moves. A leaf takes a gradient that nobody else holds as its
    own, and adds the next one to it in place; it does not see that another leaf has the memory.
    """
    return grad.clone() if grad._is_view() else grad


class _Owned(torch.autograd.Function):
    """The value of a parameter, whose gradient is its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taken: set[int]) -> Tensor:
        ctx.taken = taken
        ctx.set_materialize_grads(False)  # what no gradient reaches has none, and is not zero
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None
        grad = _own(grad)
        if grad.data_ptr() in ctx.taken:
            grad = grad.clone()
        ctx.taken.add(grad.data_ptr())
        return grad, None


def owned(parameter: Tensor, taken: set[int]) -> Tensor:
    """A parameter as a program takes it.

    `taken`: where gradients lie that parameters of this run have taken. An op may hand one gradient
    to two parameters, as a sum does; a DTensor hides from autograd that others hold its memory.
    """
    result: Tensor = _Owned.apply(parameter, taken)  # type: ignore[no-untyped-call]
    return result


def leaf_of(value: Tensor) -> Tensor:
    """A leaf with the memory of `value`, which adds up the gradients of all microbatches.

    Its gradients become its own in a hook, not in a node between it and its readers: autograd runs
    a node that is older than all readers last, and would hold every gradient of a microbatch till
    then.
    """
    leaf = value.detach().requires_grad_(value.requires_grad)
    if leaf.requires_grad:
        leaf.register_hook(_own)  # type: ignore[no-untyped-call]
    return leaf


class _Waiting(torch.autograd.Function):
    """Nothing, made of a value; its backward gives the gradient that waits, and keeps it not."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, waiting: list[Tensor]) -> Tensor:
        ctx.waiting = waiting
        return value.new_empty(0)

    @staticmethod
    def backward(ctx: Any, nothing: Tensor) -> Any:
        return ctx.waiting.pop(), None


class Handover:
    """The way of a gradient from a leaf to the value that the leaf was detached from.

    Holds the graph of `value` and not its memory, which may be a whole gathered parameter; and a
    gradient only until the backward of that graph takes it.
    """

    def __init__(self, value: Tensor) -> None:
        self._waiting: list[Tensor] = []
        self._root: Tensor | None = None
        if value.requires_grad:
            self._root = _Waiting.apply(value, self._waiting)  # type: ignore[no-untyped-call]

    def take(self, leaf: Tensor) -> Tensor | None:
        """Have the gradient of `leaf` wait; the root of the backward that hands it on."""
        if self._root is None or leaf.grad is None:
            return None
        self._waiting.append(leaf.grad)
        leaf.grad = None
        return self._root


def backward(roots: Sequence[Tensor | None]) -> None:
    """Hand on the gradients that wait at `roots`."""
    given = [root for root in roots if root is not None]
    if given:
        torch.autograd.backward(given, [torch.empty_like(root) for root in given])
