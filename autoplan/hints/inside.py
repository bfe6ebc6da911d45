"""Hints inside forward: `autoplan.hint(x, layout)` pins the value at this place of the model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch

from autoplan.cleanup.pins import HINT, PinnedValue
from autoplan.cleanup.places import innermost, is_users
from autoplan.errors import HintError, LayoutError
from autoplan.hints import At, Hint, HintValue, conditions_by_axis, with_conditions
from autoplan.hints.conditions import Condition
from autoplan.hints.text import Clause, clauses_of, text_of
from autoplan.mesh import Mesh

_MARKING: ContextVar[bool] = ContextVar("autoplan_marks_hints", default=False)


def hint(x: torch.Tensor, layout: HintValue) -> torch.Tensor:
    """Pin how `x` lies where this line of a model's forward runs; returns `x` itself.

    Without a plan it does nothing. Under a plan the value lies as asked when it is read, whatever
    reads it. `layout` is any hint of a value: "S(1)", "(B, S(0))", "!S", Prefer("S(1)", ms=0.5).
    Raises HintError, with file and line of the call, for a layout that cannot be read or that
    speaks of dimensions which `x` does not have.
    """
    if torch.compiler.is_dynamo_compiling():
        return x
    try:
        if not isinstance(x, torch.Tensor):
            raise LayoutError(f"it pins a tensor, got {type(x).__name__}.")
        _check(clauses_of(layout), x.ndim)
    except (LayoutError, HintError) as error:
        raise HintError(f"autoplan.hint(..., {layout!r}) at {_place()}: {error}") from error
    if not _MARKING.get():
        return x
    marked: torch.Tensor = HINT(x, layout if isinstance(layout, str) else text_of(layout), _place())
    return marked


@contextlib.contextmanager
def marking_hints() -> Iterator[None]:
    """Within, `hint` leaves a mark in the graph that is being captured."""
    token = _MARKING.set(True)
    try:
        yield
    finally:
        _MARKING.reset(token)


def hints_in_forward(
    pins: Sequence[PinnedValue], mesh: Mesh, named_axes: Sequence[str] = ()
) -> tuple[Hint, ...]:
    """The hints of a captured model's `pins` on `mesh`; `named_axes` also names those of size 1.

    Raises HintError where a hint names another axis, or has another number of entries.
    """
    result: list[Hint] = []
    for pin in pins:
        origin = pin_origin(pin)
        for clause in clauses_of(pin.layout):
            try:
                conditions = conditions_by_axis(clause, mesh, named_axes)
            except LayoutError as error:
                raise HintError(f"{origin}: {error}") from error
            at: At = "stage" if clause.slot == "stage" else "value"
            found = Hint(pin.place, at, {}, origin, price_s=clause.price_s, node=pin.node)
            result.append(with_conditions(found, conditions).on(mesh))
    return tuple(result)


def pin_origin(pin: PinnedValue) -> str:
    """A hint inside forward as the user wrote it."""
    return f"autoplan.hint(..., {pin.layout!r}) at {pin.place}"


def _check(clauses: Sequence[Clause], ndim: int) -> None:
    for clause in clauses:
        if clause.slot == "stage":
            if clause.stage not in (0, -1):
                raise LayoutError(
                    f"the plan has 1 stage, so that a stage is 0 or -1, got {clause.stage}."
                )
            continue
        if clause.slot != "value":
            raise LayoutError(
                f"{clause.slot!r} is for the paths of parameters and modules; inside forward a "
                "value is pinned: write the layout alone."
            )
        where = clause.where
        if isinstance(where, Condition):
            where = (where,)
        for condition in where if isinstance(where, tuple) else where.values():
            condition.resolve(ndim)


def _place() -> str:
    frame = innermost(sys._getframe(1), is_users)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "<unknown>"
