"""What a plan cannot keep of a model: refused, or noted, before anything runs."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy
import torch
from torch import nn

from autoplan.cleanup.places import at_line, innermost, is_users
from autoplan.errors import CaptureError, ConfigError


def refuse_hooks(model: nn.Module) -> None:
    """Raise ConfigError for hooks on gradients, which an emitted program would not call."""
    for path, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigError(
                f"parameter {path!r} has a gradient hook, which would be lost; register it on the "
                "parallel module's own parameter after parallelize()."
            )
    for path, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise ConfigError(
                f"module {path!r} has a backward hook, which an emitted program does not call; "
                "remove it, or write what it does into the model."
            )


@contextlib.contextmanager
def custom_gradients_refused() -> Iterator[None]:
    """Raise CaptureError at a custom `autograd.Function`: export keeps its forward alone.

    torch's own, such as checkpointing's, have the gradient of their forward.
    """
    function: Any = torch.autograd.Function
    before = function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if not cls.__module__.startswith("torch."):
            place = at_line(innermost(sys._getframe(1), is_users))
            raise CaptureError(
                f"{cls.__name__}, a custom autograd.Function, is called{place}; its backward "
                "cannot be captured. Make it an op, with torch.library.custom_op and "
                "register_autograd, or write it with detach(): y.detach() + (x - x.detach()) "
                "has the value of y and the gradient of x."
            )
        return before.__get__(None, cls)(*args, **kwargs)

    with mock.patch.object(function, "apply", classmethod(apply)):
        yield


@contextlib.contextmanager
def changed_numbers_noted(model: nn.Module, notes: list[str]) -> Iterator[None]:
    """Note numbers that forward changes on the model's modules; export gives them back."""
    paths = {id(module): path for path, module in model.named_modules()}
    before = nn.Module.__setattr__
    noted: set[tuple[int, str]] = set()

    def set_attribute(self: nn.Module, name: str, value: Any) -> None:
        old = self.__dict__.get(name)
        if id(self) in paths and (id(self), name) not in noted and _changes(old, value):
            noted.add((id(self), name))
            where = ".".join(filter(None, (paths[id(self)], name)))
            change = "" if isinstance(old, torch.Tensor) else f" (from {old!r} to {value!r})"
            notes.append(
                f"forward changes {where}{change}; a plan keeps the value that it was captured "
                "with: make it a buffer if forward computes with it"
            )
        before(self, name, value)

    with mock.patch.object(nn.Module, "__setattr__", set_attribute):
        yield


def _changes(old: Any, new: Any) -> bool:
    """Whether an attribute goes from a number to another, or from a tensor to a tensor."""
    if isinstance(old, torch.Tensor):
        return isinstance(new, torch.Tensor) and new is not old
    numbers = (bool, int, float)
    return isinstance(old, numbers) and isinstance(new, numbers) and old != new


@contextlib.contextmanager
def inference_mode_as_no_grad() -> Iterator[None]:
    """Export does not see `torch.inference_mode`; `no_grad` says the same of gradients."""
    kind: Any = torch.inference_mode

    def enter(self: Any) -> None:
        self.as_no_grad = torch.no_grad() if self.mode else contextlib.nullcontext()
        self.as_no_grad.__enter__()

    def leave(self: Any, *failure: Any) -> None:
        self.as_no_grad.__exit__(*failure)

    with (
        mock.patch.object(kind, "__enter__", enter),
        mock.patch.object(kind, "__exit__", leave),
    ):
        yield


@contextlib.contextmanager
def other_random_numbers_refused(model: nn.Module) -> Iterator[None]:
    """Raise CaptureError where forward draws from Python's or NumPy's generator.

    A captured graph would hold the numbers of its capture for ever.
    """
    python, numbers = random.getstate(), numpy.random.get_state()
    yield
    drawn = [
        name
        for name, changed in (
            ("random", random.getstate() != python),
            ("numpy.random", not _same_state(numpy.random.get_state(), numbers)),
        )
        if changed
    ]
    if drawn:
        raise CaptureError(
            f"forward of {type(model).__name__} draws from {drawn[0]}, whose numbers a plan would "
            "keep for ever; draw with torch, or outside the model (in transformers configs, "
            "set mask_time_prob=0 or layerdrop=0)."
        )


def _same_state(one: Any, other: Any) -> bool:
    return all(numpy.array_equal(a, b) for a, b in zip(one, other, strict=True))
