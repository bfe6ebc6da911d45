"""The doctor: which demands cannot hold together, why, and which one is cheapest to give up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from autoplan.errors import HintError, InfeasibleError
from autoplan.hints.demands import Demand
from autoplan.hints.pins import Costs, TryPlan
from autoplan.units import seconds, size

Failure = HintError | InfeasibleError


@dataclass(frozen=True)
class Conflict:
    """Demands of which every plan must give up one; without any single one there is a plan.

    failure: why there is no plan under these demands alone.
    smallest: whether no smaller set of the demands is a conflict, too; not known where the search
        was cut short.
    """

    demands: tuple[Demand, ...]
    failure: Failure
    smallest: bool


def explain_conflict(
    demands: Sequence[Demand], try_plan: TryPlan, failure: Failure, max_plans: int = 300
) -> Failure:
    """The error for a request that has no plan: the smallest conflict in words.

    `failure` is what planning under all of `demands` raised; a single demand that leaves no plan
    keeps the error that it has alone. At most about `max_plans` plans are tried to find a smaller
    conflict than the first.
    """
    if len(demands) < 2:
        return failure
    trials = _Trials(try_plan, {frozenset(demands): failure})
    conflict = find_conflict(demands, trials, max_plans)
    if conflict is None:
        return failure  # nothing that the user could give up makes a plan
    if len(conflict.demands) == 1:
        return conflict.failure
    memory = any(each.kind == "memory" for each in conflict.demands)
    kind = InfeasibleError if memory else HintError
    return kind(_in_words(conflict, demands, trials))


class _Trials:
    """Plans tried so far. Demands only take plans away: what holds of a set holds of its parts."""

    def __init__(self, try_plan: TryPlan, failures: dict[frozenset[Demand], Failure]) -> None:
        self.try_plan = try_plan
        self.failures = failures
        self.plans: dict[frozenset[Demand], Costs] = {}

    @property
    def count(self) -> int:
        return len(self.plans) + len(self.failures)

    def plan(self, demands: frozenset[Demand]) -> Costs | None:
        """The best plan under exactly these demands; None if there is none."""
        if demands not in self.plans and not any(each <= demands for each in self.failures):
            try:
                self.plans[demands] = self.try_plan(_ordered(demands))
            except (HintError, InfeasibleError) as error:
                self.failures[demands] = error
        return self.plans.get(demands)

    def exists(self, demands: frozenset[Demand]) -> bool:
        return any(demands <= each for each in self.plans) or self.plan(demands) is not None

    def failure(self, demands: frozenset[Demand]) -> Failure:
        """Why there is no plan under exactly these demands, which are known to leave none."""
        if demands not in self.failures:
            try:
                self.try_plan(_ordered(demands))
            except (HintError, InfeasibleError) as error:
                self.failures[demands] = error
            else:
                return next(e for each, e in self.failures.items() if each <= demands)
        return self.failures[demands]


def _ordered(demands: frozenset[Demand]) -> tuple[Demand, ...]:
    return tuple(sorted(demands, key=lambda each: (each.kind, each.text)))


def find_conflict(
    demands: Sequence[Demand], trials: _Trials, max_plans: int = 300
) -> Conflict | None:
    """A smallest conflict; None where there is no plan even without all demands.

    An irreducible set is found by bisection (QuickXplain, Junker 2004). If each of its members is
    in every conflict it is the only one; otherwise all smaller sets are tried, by size.
    """
    everything = frozenset(demands)
    suspects = _named_in(trials.failures[everything], demands)
    if not suspects or trials.exists(frozenset(suspects)):
        if not trials.exists(frozenset()):
            return None
        suspects = list(demands)
    found = frozenset(_irreducible(trials, frozenset(), False, suspects))
    smallest = len(found) == 1 or all(trials.exists(everything - {each}) for each in found)
    if not smallest:
        for count in range(1, len(found)):
            for subset in map(frozenset, combinations(demands, count)):
                if trials.count > max_plans:
                    return Conflict(_as_given(found, demands), trials.failure(found), False)
                if not trials.exists(subset):
                    found = subset
                    break
            else:
                continue
            break
    return Conflict(_as_given(found, demands), trials.failure(found), True)


def _named_in(failure: Failure, demands: Sequence[Demand]) -> list[Demand]:
    """Demands that an error speaks of: most likely the conflict, and quick to try."""
    said = str(failure)
    return [each for each in demands if each.text in said or (each.path and each.path in said)]


def _irreducible(
    trials: _Trials, background: frozenset[Demand], grew: bool, rest: Sequence[Demand]
) -> list[Demand]:
    """Of `rest`, which leaves no plan together with `background`, what is needed for that."""
    if grew and not trials.exists(background):
        return []
    if len(rest) == 1:
        return list(rest)
    first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    of_second = _irreducible(trials, background | frozenset(first), True, second)
    of_first = _irreducible(trials, background | frozenset(of_second), bool(of_second), first)
    return of_first + of_second


def _as_given(found: frozenset[Demand], demands: Sequence[Demand]) -> tuple[Demand, ...]:
    return tuple(each for each in demands if each in found)


# -- in words ---------------------------------------------------------------------------------


def _in_words(conflict: Conflict, demands: Sequence[Demand], trials: _Trials) -> str:
    lines = ["these cannot hold together, though all but any one of them can:"]
    lines += [f"  {each}" for each in conflict.demands]
    lines.append(f"why: {_reason(conflict.failure)}")
    if not conflict.smallest:
        lines.append("a smaller set may conflict, too: the search for one was cut short")
    lines += _ways_out(conflict, demands, trials)
    return "\n".join(lines)


def _reason(failure: Failure) -> str:
    """An error without its advice, which the doctor gives better."""
    return str(failure).partition(" Drop or widen")[0]


def _ways_out(conflict: Conflict, demands: Sequence[Demand], trials: _Trials) -> Iterator[str]:
    """What a step takes without each of the demands, the fastest first."""
    everything = frozenset(demands)
    found: list[tuple[float, str]] = []
    others = ""
    for each in conflict.demands:
        plan = trials.plan(everything - {each})
        if plan is None:
            others = "; the other hints conflict, too, and are left out of these times"
            plan = trials.plan(frozenset(conflict.demands) - {each})
        if plan is not None:
            found.append((plan.step_time_s, _way_out(each, plan)))
    if found:
        found.sort(key=lambda each: each[0])
        (_, best), *rest = found
        yield f"cheapest to drop: {best}{others}"
        yield from (f"or: {text}" for _, text in rest)


def _way_out(demand: Demand, plan: Costs) -> str:
    memory = size(plan.peak_memory_bytes)
    if demand.kind == "memory":
        return f"{demand}; with {memory} a step takes {seconds(plan.step_time_s)}"
    return f"{demand}; without it a step takes {seconds(plan.step_time_s)}, with {memory}"
