"""Read a plan file: every value is checked; an error names the place, what is wrong, and a fix."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import msgspec

from autoplan.errors import PlanFileError
from autoplan.plan import FORMAT, Plan
from autoplan.planfiles.read_pipeline import PIPELINE, read_pipeline
from autoplan.planfiles.sections import asked_of, plan_of
from autoplan.planfiles.values import (
    WrongError,
    check_names,
    check_numbers,
    short,
    table,
    wrong_text,
)
from autoplan.planfiles.write import CONFIG, END, RECOMPUTATION, SECTIONS, fingerprint

EDITED = "the plan file was edited by hand: its figures are those of the plan before"


def read_plan(data: bytes, name: str) -> Plan:
    """The plan of a file's bytes; `name` is for the error, a PlanFileError."""
    try:
        return _plan(_tables(data))
    except WrongError as error:
        raise PlanFileError(
            f"{name!r} is not a plan file of autoplan, or is damaged: {error}."
        ) from error


def _tables(data: bytes) -> dict[str, Any]:
    """The file as TOML, of this format and whole."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongError(f"byte {error.start}", "this is no text in UTF-8") from error
    if not text.strip():
        raise WrongError("line 1", "the file is empty")
    try:
        tables = tomllib.loads(text)
    except RecursionError as error:
        raise WrongError("the text", "values are nested too deep for any plan") from error
    except ValueError as error:
        other = _format_of_json(text)
        if other is not None:
            raise _foreign(other) from error
        raise wrong_text("the text", ValueError(f"it cannot be read as TOML: {error}")) from error
    form = tables.get("format")
    if form is None:
        raise WrongError(
            "the top", f"no format = {FORMAT!r} stands there", "give the path of a plan"
        )
    if form != FORMAT:
        raise _foreign(form)
    if tables.get("end") != {END: True}:
        raise WrongError("[end]", f"{END} = true does not stand there: the file is cut off")
    return tables


def _format_of_json(text: str) -> object:
    """The format that a file names which is JSON, as plan files of version 1 were."""
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return held.get("format") if isinstance(held, dict) else None


def _foreign(form: object) -> WrongError:
    problem = f"the file has the format {short(form)}, this version reads {FORMAT!r}"
    return WrongError("format", problem, "plan again, and save the plan")


def _plan(tables: dict[str, Any]) -> Plan:
    check_numbers(tables, "")
    if PIPELINE in tables:
        plan = read_pipeline(tables)
    else:
        known = ("format", "model", "request", CONFIG, *SECTIONS, RECOMPUTATION, "figures", "end")
        check_names(tables, known, "the top")
        plan = plan_of(asked_of(tables), tables, table(tables, "figures", "the top"))
    of = tables["figures"].get("decisions")
    if not isinstance(of, str):
        problem = "is missing" if of is None else f"is no text, but {short(of)}"
        raise WrongError("[figures]", f"'decisions' {problem}")
    return plan if of == fingerprint(plan) else _edited(plan)


def _edited(plan: Plan) -> Plan:
    """The plan with a note, and without a proof."""
    proof = msgspec.structs.replace(plan.certificate, status=EDITED, bound=0.0, gap=1.0)
    notes = tuple(dict.fromkeys((*plan.notes, EDITED)))
    return msgspec.structs.replace(plan, certificate=proof, notes=notes)
