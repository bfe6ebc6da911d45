"""Batches: the model on a part of a batch, without capturing it on the whole batch first."""

from __future__ import annotations

from collections.abc import Callable

from autoplan.batch import arguments_without_batch
from autoplan.capture import Captured
from autoplan.errors import CaptureError
from autoplan.registry import rules_in_force
from autoplan.runtime.batches import Example, microbatches


class Parts:
    """The first of so many equal parts of a batch, captured.

    Which arguments carry the batch is read off the graph of a part that is cut by sizes. Where this
    graph says that one was no batch, or there is none, the graph of the whole batch decides.
    """

    def __init__(self, capture: Callable[[Example], Captured], example: Example) -> None:
        self._capture, self._example = capture, example
        self._without: frozenset[int] | None = None

    def __call__(self, count: int) -> Captured:
        """Raises InputError for a batch that is no multiple of `count`."""
        if count == 1:
            return self._capture(self._example)
        if self._without is None:
            try:
                guess = self._capture(microbatches(self._example, count)[0])
            except CaptureError:
                guess = None
            if guess is not None and not arguments_without_batch(guess, rules_in_force()):
                self._without = frozenset()
                return guess
            whole = self._capture(self._example)
            self._without = arguments_without_batch(whole, rules_in_force())
        return self._capture(microbatches(self._example, count, self._without)[0])
