"""The memory of ops whose local program is the op itself on shards, as multiples of its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import OpCall, OpMemory

Memory = Callable[[OpCall, LocalContext, OpMemory], OpMemory]


def result_bytes(call: OpCall, context: LocalContext) -> int:
    """Bytes of the largest local output."""
    return max((context.output_meta(i).num_bytes for i in range(len(call.outputs))), default=0)


def pointwise(backward: float = 0.0, passes: bool = False) -> Memory:
    """An op on each element by itself.

    backward: temporaries of its gradient formula, in results: one for the `2 x` of a square.
    passes: whether the gradient of an input is that of the output itself, as of an addend.
    An input that broadcasts has its gradient summed from one of the result's size.
    """

    def memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
        wanted = [i for i, meta in enumerate(call.inputs) if meta.requires_grad]
        alike = [i for i in wanted if call.inputs[i].shape == call.outputs[0].shape]
        summed = 0 if passes else len(wanted) - len(alike)
        return replace(
            plain,
            backward=int((backward + summed) * result_bytes(call, context)),
            passes=tuple(alike) if passes else (),
        )

    return memory


def scaled(kept: float = 0.0, forward: float = 0.0, backward: float = 0.0) -> Memory:
    """Multiples of the local result."""

    def memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
        size = result_bytes(call, context)
        return replace(
            plain,
            kept=int(kept * size),
            forward=int(forward * size),
            backward=int(backward * size),
        )

    return memory


def passing(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """An op that lays its inputs out anew: their gradients are views of the result's."""
    wanted = (i for i, meta in enumerate(call.inputs) if meta.requires_grad)
    return replace(plain, passes=tuple(wanted))
