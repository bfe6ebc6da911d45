"""The price of a pin: what a step and its memory would save without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import msgspec

from autoplan.errors import HintError, InfeasibleError

if TYPE_CHECKING:
    from autoplan.hints.demands import Demand


class Costs(Protocol):
    """What a plan costs."""

    @property
    def step_time_s(self) -> float: ...

    @property
    def peak_memory_bytes(self) -> int: ...


TryPlan = Callable[[Sequence["Demand"]], Costs]
"""The best plan under some demands alone; raises HintError or InfeasibleError if there is none."""


class PinPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What giving up one hint or scheme alone would save; `hint` is the user's text.

    time_s, memory_bytes: of a step, and of the peak; negative where it would cost. None where it
    is not known, and `note` says why.
    """

    hint: str
    time_s: float | None
    memory_bytes: int | None
    note: str = ""


def price_pins(
    plan: Costs, demands: Sequence[Demand], try_plan: TryPlan, time_limit_s: float = 60.0
) -> tuple[PinPrice, ...]:
    """The price of every demand but the memory limit, each found by planning without it alone.

    One plan without all of them comes first: where that saves no time, none of them costs any. What
    is not priced within `time_limit_s` says so. Of several, the last row is that of all together.
    """
    pins = [each for each in demands if each.kind != "memory"]
    if not pins:
        return ()
    end = monotonic() + time_limit_s
    rest = [each for each in demands if each.kind == "memory"]
    together = _saved(plan, "all of them together", rest, try_plan)
    if together.time_s is not None and not together.time_s and not together.memory_bytes:
        return tuple(PinPrice(each.text, 0.0, 0, _FREE) for each in pins)
    if len(pins) == 1:
        return (msgspec.structs.replace(together, hint=pins[0].text),)
    prices = []
    for pin in pins:
        if monotonic() > end:
            prices.append(PinPrice(pin.text, None, None, "not priced: the time limit is over"))
            continue
        others = [each for each in demands if each != pin]
        prices.append(_saved(plan, pin.text, others, try_plan))
    return (*prices, together)


_FREE = "costs nothing"


def _saved(plan: Costs, hint: str, others: Sequence[Demand], try_plan: TryPlan) -> PinPrice:
    try:
        without = try_plan(others)
    except (HintError, InfeasibleError) as error:
        return PinPrice(hint, None, None, f"no plan is found without it: {error}")
    time_s = plan.step_time_s - without.step_time_s
    if abs(time_s) <= 1e-9 * plan.step_time_s:
        return PinPrice(hint, 0.0, 0, _FREE)  # this plan is among the best without it, too
    return PinPrice(hint, time_s, plan.peak_memory_bytes - without.peak_memory_bytes)
