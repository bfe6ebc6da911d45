"""What a local program knows while it emits the ops of one node on one rank's shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autoplan.boxing import Step
from autoplan.layouts import Layout, local_ranges
from autoplan.mesh import Mesh
from autoplan.strategies.rule import OpCall, Rule, TensorMeta

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LocalContext:
    """One node of the plan on one rank.

    split: the mesh axes, by name, that split each index of the rule; absent if none does.
    comm: the communicator of the emitted program (collectives, random numbers); a proxy while
        emitting, so that a program is an ordinary function of tensors either way.
    random_key: number of this node among the random ops of the model.
    """

    mesh: Mesh
    coordinates: tuple[int, ...]
    call: OpCall
    rule: Rule | None
    target: Any
    split: Mapping[str, tuple[str, ...]]
    input_layouts: tuple[Layout, ...]
    output_layouts: tuple[Layout, ...]
    comm: Any = None
    random_key: int = 0

    def axes(self, *indices: str) -> tuple[str, ...]:
        """The mesh axes that split any of `indices`."""
        return tuple(axis for index in indices for axis in self.split.get(index, ()))

    def input_ranges(self, position: int) -> Ranges:
        """Start and stop, per dimension, of this rank's shard of a tensor input."""
        shape = self.call.inputs[position].shape
        return local_ranges(shape, self.input_layouts[position], self.mesh, self.coordinates)

    def output_ranges(self, position: int = 0) -> Ranges:
        shape = self.call.outputs[position].shape
        return local_ranges(shape, self.output_layouts[position], self.mesh, self.coordinates)

    def output_shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of this rank's shard of an output."""
        return tuple(stop - start for start, stop in self.output_ranges(position))

    def input_meta(self, position: int) -> TensorMeta:
        """This rank's shard of a tensor input."""
        return self._shard(self.call.inputs[position], self.input_ranges(position))

    def output_meta(self, position: int = 0) -> TensorMeta:
        """This rank's shard of an output."""
        return self._shard(self.call.outputs[position], self.output_ranges(position))

    def _shard(self, meta: TensorMeta, ranges: Ranges) -> TensorMeta:
        return replace(meta, shape=tuple(stop - start for start, stop in ranges))

    def box(self, x: Any, step: Step) -> Any:
        """One boxing step inside the program, as emitted code writes it."""
        text = f"{step.source} -> {step.target}"
        return self.comm.box(x, text, axis=step.axis, sizes=step.sizes)

    def same_op(self, *args: Any, **kwargs: Any) -> Any:
        """The op itself on the shards, its output's shape rewritten where it is an argument."""
        if self.rule is not None and self.rule.sizes is not None:
            position = self.rule.sizes
            args = (*args[:position], list(self.output_shape()), *args[position + 1 :])
        return self.target(*args, **kwargs)
