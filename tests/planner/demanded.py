"""Planning under some of a request's demands: what the doctor and the prices of pins are given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from torch import nn

from autoplan.capture import Captured, capture
from autoplan.errors import HintError, InfeasibleError
from autoplan.found import Found
from autoplan.hints.conflicts import explain_conflict
from autoplan.hints.demands import Demand, demands_of, only
from autoplan.request import Request, make_request
from autoplan.search import search

Failure = HintError | InfeasibleError


class Demanded:
    """A small model with a request; plans under any of its demands, each tried once."""

    def __init__(self, captured: Captured, request: Request) -> None:
        self.captured = captured
        self.request = request
        self.demands = demands_of(captured, request)
        self.tried: dict[frozenset[Demand], Found | Failure] = {}

    def plan(self, demands: Sequence[Demand]) -> Found:
        key = frozenset(demands)
        if key not in self.tried:
            try:
                self.tried[key] = search(*only(self.captured, self.request, key))
            except (HintError, InfeasibleError) as error:
                self.tried[key] = error
        found = self.tried[key]
        if isinstance(found, Found):
            return found
        raise found

    def fails(self, demands: Sequence[Demand]) -> Failure | None:
        try:
            self.plan(demands)
        except (HintError, InfeasibleError) as error:
            return error
        return None

    def explained(self) -> Failure:
        """The doctor's error for all demands together, of which there is no plan."""
        failure = self.fails(self.demands)
        assert failure is not None, "there is a plan under all demands"
        return explain_conflict(self.demands, self.plan, failure)

    def conflicts(self) -> list[frozenset[Demand]]:
        """Every smallest conflict, by brute force: all sets of the least size without a plan."""
        for count in range(len(self.demands) + 1):
            sets = [frozenset(each) for each in combinations(self.demands, count)]
            found = [each for each in sets if self.fails(tuple(each)) is not None]
            if found:
                return found
        return []


def demanded(
    model: nn.Module | Captured, args: Any = (), kwargs: Any = None, **options: Any
) -> Demanded:
    captured = model if isinstance(model, Captured) else capture(model, args, kwargs)
    given = {"devices": 4, "cluster": "cpu", "parallel": {"mesh": {"a": 2, "b": 2}}} | options
    return Demanded(captured, make_request(**given))
