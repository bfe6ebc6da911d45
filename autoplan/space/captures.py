"""Captures: one model at every number of microbatches in question."""

from __future__ import annotations

from collections.abc import Callable

from autoplan.capture import Captured
from autoplan.errors import CaptureError
from autoplan.parallel.parts import divisors
from autoplan.pipelining.pieces import pieces_of
from autoplan.space.refit import refitted
from autoplan.space.shorten import Short, shorten

_FEWEST_ROWS = 2
"""Of a capture that others are refitted from: models treat a single row as a case of its own."""


class Captures:
    """A model on one microbatch of each number of them.

    `rows`: of the whole batch; None where the arguments have no batch. `alike`: whether blocks may
    stand for each other, which hints on single ones forbid.
    """

    def __init__(
        self, capture: Callable[[int], Captured], rows: int | None, alike: bool = True
    ) -> None:
        self._capture, self.rows, self._alike = capture, rows, alike
        self._real: dict[int, Captured] = {}
        self._refitted: dict[int, Captured] = {}
        self._short: dict[int, Short] = {}
        counts = [n for n in divisors(rows or 1) if (rows or 1) // n >= _FEWEST_ROWS]
        self._anchors = tuple(reversed(counts[-2:])) if len(counts) > 1 else ()

    def whole(self, microbatches: int) -> Captured:
        """The model captured on one of so many microbatches, to be planned and emitted."""
        if microbatches not in self._real:
            self._real[microbatches] = self._capture(microbatches)
        return self._real[microbatches]

    def priced(self, microbatches: int) -> Captured:
        """The same to be priced only: of captures of few rows others are inferred."""
        if microbatches in self._real or microbatches in self._anchors or not self._anchors:
            return self.whole(microbatches)
        if microbatches not in self._refitted:
            try:
                one, other = (self.whole(count) for count in self._anchors)
            except CaptureError:  # a model that takes no such batch
                self._anchors = ()
                return self.whole(microbatches)
            rows = [(self.rows or 1) // count for count in (*self._anchors, microbatches)]
            found = refitted(one, rows[0], other, rows[1], rows[2])
            if found is None:
                return self.whole(microbatches)
            self._refitted[microbatches] = found
        return self._refitted[microbatches]

    def short(self, microbatches: int) -> Short:
        """What is priced, with its repeats left out."""
        if microbatches not in self._short:
            whole = self.priced(microbatches)
            pieces = pieces_of(whole)
            alone = Short(whole, pieces, tuple(range(len(pieces))))
            self._short[microbatches] = shorten(whole, pieces) if self._alike else alone
        return self._short[microbatches]

    @property
    def any(self) -> int:
        """Microbatches at which the model is captured anyhow."""
        return next(iter((*self._real, *self._anchors)), 1)
