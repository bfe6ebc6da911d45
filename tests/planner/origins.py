"""Plans with the origin that lets them be solved again."""

from __future__ import annotations

from typing import Any

from torch import nn

from autoplan.plan import Plan
from autoplan.planning import capture_microbatch, plan_captured
from autoplan.request import make_request
from autoplan.why.origin import Origin, recapture


def planned(
    model: nn.Module, args: tuple[Any, ...], devices: int = 4, **options: Any
) -> tuple[Plan, Origin]:
    """The plan of `model`, and its origin, the arguments' shapes included."""
    request = make_request(devices, **options)
    captured = capture_microbatch(model, args, {}, request)
    name = type(model).__name__
    again = recapture(captured, (args, {}), lambda e: capture_microbatch(model, *e, request))
    return plan_captured(captured, request, name).plan, Origin(captured, request, name, again)
