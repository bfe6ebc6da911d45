"""Captures: one model at every number of microbatches in question."""

from __future__ import annotations

from collections.abc import Callable

from autoplan.capture import Captured
from autoplan.pipelining.pieces import Pieces, pieces_of
from autoplan.space.refit import refitted
from autoplan.space.shorten import Short, shorten


class Captures:
    """The model captured with one microbatch of each number of them, whole and shortened.

    `rows`: of the whole batch; None where the arguments have no batch. `alike`: whether blocks may
    stand for each other, which hints on single ones forbid.
    """

    def __init__(
        self, capture: Callable[[int], Captured], rows: int | None, alike: bool = True
    ) -> None:
        self._capture, self.rows, self._alike = capture, rows, alike
        self._whole: dict[int, Captured] = {}
        self._short: dict[int, Short] = {}
        self._ends: list[int] = []

    def whole(self, microbatches: int) -> Captured:
        """The model as it is, on one of so many microbatches."""
        if microbatches not in self._whole:
            self._whole[microbatches] = self._capture(microbatches)
        return self._whole[microbatches]

    def pieces(self, microbatches: int) -> Pieces:
        """The pieces of the whole model."""
        return pieces_of(self.whole(microbatches))

    def short(self, microbatches: int) -> Short:
        """The model with its repeats left out; of two real captures, others are inferred."""
        if microbatches not in self._short:
            self._short[microbatches] = self._inferred(microbatches) or self._real(microbatches)
        return self._short[microbatches]

    def _real(self, microbatches: int) -> Short:
        self._ends.append(microbatches)
        whole = self.whole(microbatches)
        pieces = pieces_of(whole)
        return (
            shorten(whole, pieces)
            if self._alike
            else Short(whole, pieces, tuple(range(len(pieces))))
        )

    def _inferred(self, microbatches: int) -> Short | None:
        if len(self._ends) < 2 or self.rows is None:
            return None
        one, other = self._ends[:2]
        first, second = self._short[one], self._short[other]
        if first.stands != second.stands or first.pieces.names != second.pieces.names:
            return None
        rows = [self.rows // count for count in (one, other, microbatches)]
        captured = refitted(first.captured, rows[0], second.captured, rows[1], rows[2])
        return None if captured is None else Short(captured, first.pieces, first.stands)
