"""Calls that a model makes while it is captured and that its graph would lose.

Checks of values, `if ids.max() >= size: raise ...` and `assert mask.any()`, branch on data, which a
graph cannot, but never change what is computed: they pass, and the plan notes that they are not
part of it. Others would be lost without a word, and are refused.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Self
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from autoplan.cleanup.places import at_line, innermost, is_users
from autoplan.errors import CaptureError


class WatchedCalls(TorchFunctionMode):
    """Lets conditions of assertions and of `if ...: raise` pass; `notes` says which.

    Raises CaptureError for a backward pass or a gradient hook inside the model, and for gradients
    switched off inside an autocast region, which export forgets (torch 2.13).
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.autocasts = 0
        self.patches = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # An autocast region shows itself to export's own mode alone.
        kind: Any = torch.amp.autocast_mode.autocast
        enter_region, leave_region = kind.__enter__, kind.__exit__

        def enter(region: Any) -> Any:
            self.autocasts += 1
            return enter_region(region)

        def leave(region: Any, *failure: Any) -> Any:
            self.autocasts -= 1
            return leave_region(region, *failure)

        self.patches.enter_context(mock.patch.object(kind, "__enter__", enter))
        self.patches.enter_context(mock.patch.object(kind, "__exit__", leave))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        self.patches.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__:
            verdict = self._check(_asking_frame(sys._getframe(1)))
            if verdict is not None:
                return verdict
        elif func is torch._C._set_grad_enabled and self.autocasts and not args[0]:
            raise CaptureError(
                f"torch.no_grad inside torch.autocast{_asking_place(sys._getframe(1))} is lost "
                "when a model is exported; write it around the autocast, or detach() what it "
                "computes."
            )
        elif func is torch.Tensor.register_hook:
            raise CaptureError(
                f"forward registers a gradient hook{_asking_place(sys._getframe(1))}, which a "
                "graph does not hold; write what it does into the model, or remove it."
            )
        elif func in (torch.Tensor.backward, torch.autograd.grad, torch.autograd.backward):
            raise CaptureError(
                f"forward runs a backward pass{_asking_place(sys._getframe(1))}, which cannot be "
                "captured; run it outside the model, on what the model returns."
            )
        return func(*args, **(kwargs or {}))

    def _check(self, frame: FrameType | None) -> bool | None:
        """The value with which the check at this line passes; None where there is no check."""
        verdict = _passing(frame) if frame is not None else None
        if verdict is not None and frame is not None:
            name, number = frame.f_code.co_filename, frame.f_lineno
            text = linecache.getline(name, number).strip()
            note = f"the check at {name}:{number} is not part of the plan: {text}"
            if note not in self.notes:
                self.notes.append(note)
        return verdict


_TORCH = str(Path(torch.__file__).parent)
_ASKS = tuple(f"{_TORCH}/{each}" for each in ("nn/", "distributions/", "functional.py"))
"""Parts of torch that check values for the user."""


def _asking_frame(frame: FrameType) -> FrameType | None:
    """The innermost frame of a model's code, or of what torch has of models."""
    return innermost(frame, lambda name: is_users(name) or name.startswith(_ASKS))


def _asking_place(frame: FrameType) -> str:
    return at_line(_asking_frame(frame))


def _passing(frame: FrameType) -> bool | None:
    """The truth value with which the check at this line passes; None where it is no check."""
    for statement in _statements(frame.f_code.co_filename):
        if not _spans(statement.test, frame.f_lineno):
            continue
        if any(isinstance(each, ast.NamedExpr) for each in ast.walk(statement.test)):
            return None
        if isinstance(statement, ast.Assert):
            return _value_for(statement.test, True)
        if all(isinstance(each, ast.Raise) for each in statement.body):
            return _value_for(statement.test, False)
    return None


def _value_for(test: ast.expr, wanted: bool) -> bool | None:
    """What tensors in `test` must be for it to be `wanted`; None where they are not all alike."""
    negations = sum(
        isinstance(each, ast.UnaryOp) and isinstance(each.op, ast.Not) for each in ast.walk(test)
    )
    if negations == 0:
        return wanted
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and negations == 1:
        return not wanted
    return None


def _spans(code: ast.expr | ast.stmt, line: int) -> bool:
    return code.lineno <= line <= (code.end_lineno or code.lineno)


@functools.lru_cache(maxsize=256)
def _statements(filename: str) -> tuple[ast.If | ast.Assert, ...]:
    """Conditions and assertions of a file, but for those whose failure is caught and goes on."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return ()
    nodes = list(ast.walk(tree))
    caught = [
        each for node in nodes if isinstance(node, ast.Try) and node.handlers for each in node.body
    ]
    return tuple(
        each
        for each in nodes
        if isinstance(each, (ast.If, ast.Assert))
        and not any(_spans(body, each.lineno) for body in caught)
    )
