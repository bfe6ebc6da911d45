"""Activation checkpointing inside a model: left out, for a plan says itself what is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch.utils import checkpoint

NOTE = "torch.utils.checkpoint in the model is left out: recompute= says what is recomputed"


@contextlib.contextmanager
def without_checkpoints(notes: list[str]) -> Iterator[None]:
    """Let `torch.utils.checkpoint` run its function and no more; says so in `notes` if it does.

    Of a reentrant one, export sees a region without gradients; and what either computes anew in
    backward would draw other random numbers. Private names of torch >= 2.11: `checkpoint` calls
    either of the two.
    """

    def note() -> None:
        if NOTE not in notes:
            notes.append(NOTE)

    def reentrant(function: Any, preserve: Any, *args: Any) -> Any:
        note()
        return function(*args)

    def with_hooks(*args: Any, **kwargs: Any) -> Iterator[None]:
        note()
        yield

    with (
        mock.patch.object(checkpoint.CheckpointFunction, "apply", reentrant),
        mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", with_hooks),
    ):
        yield
