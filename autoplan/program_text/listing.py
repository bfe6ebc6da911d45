"""Listings: the parts of an emitted program as functions, with a comment for each value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

from autoplan.runtime.program import Program
from autoplan.runtime.recompute import parts_of

_FREE = re.compile(r";\s+(?:\w+ = )+None\s*")
_ASSIGN = re.compile(r"^\s+(\w+) = ")
_KNOWN = ("torch", "fx_pytree", "pytree")


def functions_of(program: Program, suffix: str = "", epilogue: bool = True) -> str:
    """The parts of a program as Python functions; `suffix` tells the stages of one file apart.

    Recomputed parts come first, each below `@recomputed`.
    """
    again = dict(parts_of(program.body))
    names = {name: run_name(name, suffix) for name in again}
    texts = [function(f"prologue{suffix}", program.prologue)]
    texts += ["@recomputed\n" + function(names[name], part) for name, part in again.items()]
    texts.append(function(f"body{suffix}", program.body, names))
    if epilogue:
        texts.append(function(f"epilogue{suffix}", program.epilogue))
    return "\n\n\n".join(texts)


def run_name(part: str, suffix: str = "") -> str:
    """What the function of a recomputed part is called: not as the value that it returns."""
    return f"run_{part}{suffix}"


def function(name: str, module: fx.GraphModule, called: Mapping[str, str] | None = None) -> str:
    """A graph as a function: arguments and values below what lies where, and whose they are.

    called: how the modules that it calls are named here.
    """
    nodes = list(module.graph.nodes)
    notes = {node.name: node.meta["note"] for node in nodes if node.meta.get("note")}
    given = [str(node.target) for node in nodes if node.op == "placeholder"]
    lines = [f"def {name}("]
    for argument in given:
        note = _spelled(notes.get(argument, ""))
        lines.append(f"    {argument},  # {note}" if note else f"    {argument},")
    lines.append("):")
    return "\n".join([*lines, *_body(module, notes, called or {})])


def _body(
    module: fx.GraphModule, notes: Mapping[str, str], called: Mapping[str, str]
) -> Iterator[str]:
    said = ""
    for line in _statements(module.code):
        match = _ASSIGN.match(line)
        note = _spelled(notes.get(match.group(1), "") if match else "")
        if note and note != said:
            yield f"    # {note}"
        said = note
        line = line.replace("torch.ops.aten.", "aten.")
        for attribute, own in called.items():
            line = line.replace(f"self.{attribute}(", f"{own}(")
        yield line


def _statements(code: str) -> Iterator[str]:
    """What a module's forward does, without what frees its values."""
    inside = False
    for line in code.strip().splitlines():
        if inside and line.strip():
            yield _FREE.sub("", line).rstrip()
        inside = inside or line.startswith("def forward(")


def _spelled(note: str) -> str:
    """A note with the model itself named where no module is."""
    return f"the model{note}" if note.startswith(": ") else note


def globals_of(program: Program, text: str) -> Iterator[str]:
    """Lines that define what functions of `text` read beside torch."""
    parts: list[fx.GraphModule] = [program.prologue, program.body, program.epilogue]
    parts += [part for _, part in parts_of(program.body)]
    found: dict[str, Any] = {}
    for part in parts:
        found |= part.graph.python_code("self").globals
    for name, value in found.items():
        if name in _KNOWN or not re.search(rf"(?<![\w.]){name}\b(?!\s*=)", text):
            continue
        yield _defined(name, value)


def _defined(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f'{name} = float("{value}")'
    if name == "NoneType":
        return "NoneType = type(None)"
    module, own = value.__module__, value.__qualname__
    return f"from {module} import {own}" + (f" as {name}" if own != name else "")
