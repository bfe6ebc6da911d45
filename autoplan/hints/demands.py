"""Demands: what a user asks of a plan beyond its model and devices, each to be given up alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from autoplan.capture import Captured
from autoplan.hints import origin_of
from autoplan.hints.inside import pin_origin
from autoplan.parallel import MeshChoice
from autoplan.request import Request
from autoplan.units import size

_UNLIMITED = 1 << 62
"""Bytes that no plan needs."""


@dataclass(frozen=True)
class Demand:
    """A hint, the scheme of one or more mesh axes, or the memory limit, as the user wrote it."""

    kind: Literal["hint", "scheme", "memory"]
    text: str
    path: str = ""
    """The key of a hint, as errors write it."""

    def __str__(self) -> str:
        return f"hint {self.text}" if self.text.startswith(("'", '"')) else self.text


def demands_of(captured: Captured, request: Request) -> tuple[Demand, ...]:
    """Everything in `request`, and inside forward, that can be given up on its own."""
    found = [_of_hint(pattern, value) for pattern, value in request.hints.items()]
    found += [Demand("hint", pin_origin(pin)) for pin in captured.pins]
    for choice in request.meshes:
        found += [Demand("scheme", _scheme(choice, axis)) for axis in choice.schemes]
    found.append(_of_memory(request))
    return tuple(dict.fromkeys(found))


def only(
    captured: Captured, request: Request, kept: Collection[Demand]
) -> tuple[Captured, Request]:
    """The same model and request without the demands that are not `kept`."""
    return (
        replace(
            captured,
            pins=tuple(p for p in captured.pins if Demand("hint", pin_origin(p)) in kept),
        ),
        replace(
            request,
            hints={p: v for p, v in request.hints.items() if _of_hint(p, v) in kept},
            meshes=tuple(_with_schemes(choice, kept) for choice in request.meshes),
            memory_bytes=request.memory_bytes if _of_memory(request) in kept else _UNLIMITED,
        ),
    )


def _with_schemes(choice: MeshChoice, kept: Collection[Demand]) -> MeshChoice:
    dropped = [a for a in choice.schemes if Demand("scheme", _scheme(choice, a)) not in kept]
    return choice.without_schemes(dropped)


def _scheme(choice: MeshChoice, axis: str) -> str:
    return choice.written.get(axis, f"the scheme {choice.schemes[axis]!r} of axis {axis!r}")


def _of_hint(pattern: str, value: object) -> Demand:
    return Demand("hint", origin_of(pattern, value), repr(pattern))


def _of_memory(request: Request) -> Demand:
    return Demand("memory", f"the memory limit of {size(request.memory_bytes)} a device")
