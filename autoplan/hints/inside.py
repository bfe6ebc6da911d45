"""Hints inside forward: `autoplan.hint(x, layout)` pins the value at this place of the model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch

from autoplan.cleanup.pins import HINT, PinnedValue
from autoplan.cleanup.places import innermost, is_users
from autoplan.errors import HintTextError, LayoutError
from autoplan.hints import Hint, HintValue, conditions_by_axis, with_conditions
from autoplan.hints.conditions import Condition
from autoplan.hints.text import Clause, clauses_of, stage_number, text_of
from autoplan.mesh import Mesh

_MARKING: ContextVar[bool] = ContextVar("autoplan_marks_hints", default=False)


def hint(x: torch.Tensor, layout: HintValue) -> torch.Tensor:
    """Pin how `x` lies where this line of a model's forward runs; returns `x` itself.

    Without a plan it does nothing. Under a plan the value lies as asked when it is read, whatever
    reads it. `layout` is any hint of a value: "S(1)", "(B, S(0))", "!S", Prefer("S(1)", ms=0.5); or
    the pipeline stage that computes it: "stage: 1".
    Raises HintTextError, with file and line of the call, for a layout that cannot be read or that
    speaks of dimensions which `x` does not have.
    """
    if torch.compiler.is_dynamo_compiling():
        return x
    try:
        if not isinstance(x, torch.Tensor):
            raise LayoutError(f"it pins a tensor, got {type(x).__name__}.")
        _check(clauses_of(layout), x.ndim)
    except (LayoutError, HintTextError) as error:
        raise HintTextError(f"autoplan.hint(..., {layout!r}) at {_place()}: {error}") from error
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
    pins: Sequence[PinnedValue],
    mesh: Mesh,
    named_axes: Sequence[str] = (),
    num_stages: int = 1,
) -> tuple[Hint, ...]:
    """The hints of a captured model's `pins` on `mesh`; `named_axes` also names those of size 1.

    Raises HintTextError where a hint names another axis, has another number of entries, or asks for
    none of the `num_stages` stages.
    """
    result: list[Hint] = []
    for pin in pins:
        origin = pin_origin(pin)
        try:
            for clause in clauses_of(pin.layout):
                if clause.slot == "stage":
                    stage = stage_number(clause.stage, num_stages)
                    found = Hint(pin.place, "stage", {}, origin, node=pin.node, stage=stage)
                else:
                    found = Hint(
                        pin.place, "value", {}, origin, price_s=clause.price_s, node=pin.node
                    )
                    conditions = conditions_by_axis(clause, mesh, named_axes)
                    found = with_conditions(found, conditions).on(mesh)
                result.append(found)
        except LayoutError as error:
            raise HintTextError(f"{origin}: {error}") from error
    return tuple(result)


def pin_origin(pin: PinnedValue) -> str:
    """A hint inside forward as the user wrote it."""
    return f"autoplan.hint(..., {pin.layout!r}) at {pin.place}"


def _check(clauses: Sequence[Clause], ndim: int) -> None:
    for clause in clauses:
        if clause.slot == "stage":
            continue  # how many there are is known when a plan is made
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
