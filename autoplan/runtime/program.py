"""An emitted program: what one rank runs, as three readable graph modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.runtime.recompute import parts_of


@dataclass(frozen=True)
class TensorSpec:
    """Logical shape, type and layout of a tensor at the program's face."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout
    requires_grad: bool = False
    reaches_loss: bool = True
    """Of what travels between stages: whether a training step has a gradient for it."""

    @property
    def trains(self) -> bool:
        """Whether its gradient travels back in a training step."""
        return self.requires_grad and self.reaches_loss


@dataclass(frozen=True)
class Program:
    """What the rank at `coordinates` runs.

    prologue(comm, *parameters, *state) -> values: boxing that depends on parameters only.
    body(comm, *values, *buffers, *inputs, *received) -> outputs, sent, new buffers: one microbatch;
        the loss and buffers whole, other outputs as they lie.
    epilogue(comm, *outputs) -> outputs: every output whole on every rank.

    `parameters` are in storage layout, `state` are constants and buffers that stay as they are,
    `updates` are buffers that the body reads and changes, whole on every rank. `inputs` name
    the flat positions of the model's arguments. A pipeline stage gets `received` from the stage
    before it and gives `sent` to the next one, local tensors as they lie. `outputs` has, per flat
    output of the model, the position among the body's outputs, or a plain value.
    """

    mesh: Mesh
    coordinates: tuple[int, ...]
    parameters: tuple[TensorSpec, ...]
    state: tuple[TensorSpec, ...]
    updates: tuple[TensorSpec, ...]
    inputs: tuple[tuple[int, TensorSpec], ...]
    outputs: tuple[OutputSpec | Constant, ...]
    loss: int | None
    prologue: fx.GraphModule
    body: fx.GraphModule
    epilogue: fx.GraphModule
    received: tuple[TensorSpec, ...] = ()
    sent: tuple[TensorSpec, ...] = ()
    gathers: bool = False
    """Whether the body gathers parameters, of which nothing is kept for backward but shards."""

    def parted(self, results: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """What the body returned: outputs, values that are sent on, new buffers."""
        buffers = len(results) - len(self.updates)
        sent = buffers - len(self.sent)
        return list(results[:sent]), list(results[sent:buffers]), list(results[buffers:])

    @property
    def code(self) -> str:
        """Python text of the parts, recomputed ones last, each line with module path and layout."""
        parts = (("prologue", self.prologue), ("body", self.body), ("epilogue", self.epilogue))
        again = parts_of(self.body)
        texts = [annotated_code(name, module) for name, module in (*parts, *again)]
        return "\n\n".join(texts) + "\n"


@dataclass(frozen=True)
class OutputSpec:
    """A tensor output: its place among the body's outputs."""

    position: int


@dataclass(frozen=True)
class Constant:
    """An output that does not depend on tensors."""

    value: Any


_FREE = re.compile(r";\s+(?:\w+ = )+None\s*")
_ASSIGN = re.compile(r"^(\s+)(\w+) = (.*)$")


def annotated_code(name: str, module: fx.GraphModule) -> str:
    """The module's forward as text, one comment a line: what lies where, and whose line it is."""
    notes: Mapping[str, str] = {
        node.name: node.meta["note"] for node in module.graph.nodes if node.meta.get("note")
    }
    lines = []
    for line in module.code.strip().splitlines():
        line = _FREE.sub("", line).replace("torch.ops.", "")
        line = line.replace("def forward(self", f"def {name}(self")
        match = _ASSIGN.match(line)
        note = notes.get(match.group(2)) if match else None
        lines.append(f"{line}  # {note}" if note else line)
    return "\n".join(lines)
