"""Shrinks a failing program: fewer lines, fewer outputs, as long as some plan of it still fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.draft import NAMES, Program
from tests.fuzz.run import Case, Outcome, run_case

DRAWS = 24
"""Plans tried of each smaller program: few of them may go wrong."""


def shrink(case: Case, program: Program, outcome: Outcome) -> tuple[Program, Outcome]:
    """The smallest program found whose failure begins as that of `program` does."""
    kind = _kind(outcome)
    found = program, outcome
    changed = True
    while changed:
        changed = False
        for smaller in _smaller(found[0]):
            failure = _still_fails(case, smaller, kind)
            if failure is not None:
                found, changed = (smaller, failure), True
                break
    return found


def _kind(outcome: Outcome) -> str:
    """The class of an exception; all differences are alike."""
    return outcome.text.split(":")[0] if outcome.error else ""


def _still_fails(case: Case, program: Program, kind: str) -> Outcome | None:
    for draw in (case.number * 8, *range(DRAWS)):
        try:
            outcome = run_case(case, program, draw)
        except Exception:  # the smaller program is none
            return None
        if outcome.kind == "failed" and _kind(outcome) == kind:
            return outcome
    return None


def _smaller(program: Program) -> Iterator[Program]:
    values = _values(program)
    real = [n for n, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()]
    for name in reversed(real):
        cut = replace(program, result=name).without_what_nothing_reads()
        if program.result not in real or len(cut.statements) < len(program.statements):
            yield cut
    for at in reversed(range(len(program.statements))):
        statement = program.statements[at]
        rest = (*program.statements[:at], *program.statements[at + 1 :])
        if not statement.defines:
            yield replace(program, statements=rest).without_what_nothing_reads()
            continue
        new = [
            f"self.s{name} = {_stand_in(values[name], int(name[1:]))}" for name in statement.defines
        ]
        renamed = {name: f"self.s{name}" for name in statement.defines}
        cut = replace(
            program,
            attributes=(*program.attributes, *new),
            statements=tuple(replace(s, text=_renamed(s.text, renamed)) for s in rest),
            result=_renamed(program.result, renamed),
        ).without_what_nothing_reads()
        if len(cut.statements) < len(program.statements):
            yield cut


def _renamed(text: str, names: dict[str, str]) -> str:
    return re.sub(r"(?<![\w.])v\d+\b", lambda m: names.get(m[0], m[0]), text)


def _stand_in(value: Any, seed: int) -> str:
    """A parameter for real values, a constant for others."""
    sizes = ", ".join(map(str, value.shape))
    if value.is_floating_point():
        return f"nn.Parameter(real({', '.join(filter(None, (str(seed + 900), sizes)))}))"
    if value.dtype == torch.bool:
        return f"nn.Buffer(flags({', '.join(filter(None, (str(seed + 900), sizes)))}))"
    high = int(value.max()) + 1 if value.numel() else 1
    return f"nn.Buffer(whole({', '.join(filter(None, (str(seed + 900), str(high), sizes)))}))"


def _values(program: Program) -> dict[str, Any]:
    """What every line makes."""
    names = dict(NAMES)
    exec(program.text, names)
    module = names["Fuzzed"]()
    values = dict(names["example"])
    for statement in program.statements:
        exec(statement.text, {**NAMES, "self": module}, values)
    return {name: value for name, value in values.items() if name.startswith("v")}
