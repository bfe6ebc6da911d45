"""SUMMA as a choice of products: what it emits, moves and holds (van de Geijn & Watts 1997).

A label `b~` splits rows b and streams the weight, `o~` splits columns o and streams the input; on
two axes together they are SUMMA on a grid. The cuts of both along the contracted index need not
agree: what travels at once is a range that one rank of either axis owns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoplan.layouts import chunk_range
from autoplan.strategies.local import LocalContext
from autoplan.strategies.memory import Memory
from autoplan.strategies.rule import InnerCollective, OpCall, OpMemory, is_streaming

Block = tuple[int, int, int, int]
"""A range of the contracted index, and its owners on the axes that stream w and x."""


@dataclass(frozen=True)
class Streamed:
    """The streamed product of one candidate on one rank.

    row: the axis that streams w, column: the one that streams x, if any. blocks: what travels at
    once, in order. x, w: positions of the factors.
    """

    x: int
    w: int
    row: str | None
    column: str | None
    blocks: tuple[Block, ...]


def streamed(call: OpCall, context: LocalContext) -> Streamed | None:
    """How the candidate streams; None for one that does not."""
    rule = context.rule
    if rule is None or rule.streams is None or not any(map(is_streaming, context.split)):
        return None
    bound = rule.bound(call)
    streams = {
        label: stream for label, stream in rule.streams_of(bound).items() if label in context.split
    }
    x, w = rule.streams
    (contracted,) = {stream.contracted for stream in streams.values()}
    axes = {stream.factor: context.split[label][0] for label, stream in streams.items()}
    row, column = axes.get(w), axes.get(x)
    cut_by = context.axes(contracted)
    blocks = _blocks(context, bound.sizes[contracted], cut_by, row, column)
    return Streamed(x, w, row, column, blocks)


def _blocks(
    context: LocalContext, size: int, cut_by: tuple[str, ...], row: str | None, column: str | None
) -> tuple[Block, ...]:
    """The common refinement of both cuts of what `cut_by` leave of the contracted index.

    Ranks that hold less of it have empty blocks, so that all have equally many.
    """
    mesh = context.mesh
    rows, columns = (1 if axis is None else mesh.size(axis) for axis in (row, column))

    def held(indices: Sequence[int]) -> int:
        length = size
        for axis, index in zip(cut_by, indices, strict=True):
            start, stop = chunk_range(length, mesh.size(axis), index)
            length = stop - start
        return length

    def refined(length: int) -> dict[tuple[int, int], tuple[int, int]]:
        of_w, of_x = max(-(-length // rows), 1), max(-(-length // columns), 1)
        starts = sorted({*range(0, length, of_w), *range(0, length, of_x)})
        return {
            (start // of_w, start // of_x): (start, stop)
            for start, stop in itertools.pairwise((*starts, length))
        }

    everyone = itertools.product(*(range(mesh.size(axis)) for axis in cut_by))
    owners = {each for length in set(map(held, everyone)) for each in refined(length)}
    own = refined(held([context.coordinates[mesh.index(axis)] for axis in cut_by]))
    return tuple((*own.get(each, (0, 0)), *each) for each in sorted(owners))


# -- programs -------------------------------------------------------------------------------


def linear_program(context: LocalContext, x: Any, w: Any, bias: Any = None) -> Any:
    """`x W^T + b`."""
    return _emit(context, x, w, bias, transposed=True)


def product_program(context: LocalContext, x: Any, w: Any) -> Any:
    """`x W`."""
    return _emit(context, x, w, None)


def addition_program(
    context: LocalContext, addend: Any, x: Any, w: Any, *, beta: float = 1, alpha: float = 1
) -> Any:
    """`beta A + alpha x W`."""
    factors = {"alpha": alpha, "beta": beta}
    return _emit(context, x, w, addend, **{name: f for name, f in factors.items() if f != 1})


def _emit(context: LocalContext, x: Any, w: Any, addend: Any, **options: Any) -> Any:
    found = streamed(context.call, context)
    assert found is not None
    tensors = [x, w]
    if addend is not None:
        tensors.append(addend)
        (other,) = {0, 1, 2} - {found.x, found.w}
        options["addend"] = list(context.input_meta(other).shape)
    axes = {"row": found.row, "column": found.column}
    options |= {name: axis for name, axis in axes.items() if axis is not None}
    return context.comm.blockwise("summa", *tensors, blocks=list(found.blocks), **options)


# -- prices ---------------------------------------------------------------------------------


def _block_bytes(context: LocalContext, found: Streamed) -> Iterator[tuple[int, int]]:
    """Bytes of every block of x and of w, as they come by on this rank."""
    x, w = context.input_meta(found.x), context.input_meta(found.w)
    rows, columns = math.prod(x.shape[:-1]), context.output_meta().shape[-1]
    for start, stop, _, _ in found.blocks:
        yield rows * (stop - start) * x.itemsize, columns * (stop - start) * w.itemsize


def inner(call: OpCall, context: LocalContext) -> Iterator[InnerCollective]:
    """The blocks of a streaming candidate: each broadcast forward, and for the other's gradient.

    That of its own gradient is reduced.
    """
    found = streamed(call, context)
    if found is None:
        return
    wants_x, wants_w = (call.inputs[at].requires_grad for at in (found.x, found.w))
    for of_x, of_w in _block_bytes(context, found):
        for axis, size, wanted, wanted_by_other in (
            (found.column, of_x, wants_x, wants_w),
            (found.row, of_w, wants_w, wants_x),
        ):
            if axis is None:
                continue
            yield InnerCollective("broadcast", size, axis)
            if wanted_by_other:
                yield InnerCollective("broadcast", size, axis, backward=True)
            if wanted:
                yield InnerCollective("reduce", size, axis, backward=True)


def memory_beside(plain: Memory | None) -> Memory:
    """The memory of a product whose candidates without streams need what `plain` says."""

    def memory(call: OpCall, context: LocalContext, given: OpMemory) -> OpMemory:
        found = streamed(call, context)
        if found is not None:
            return _memory(call, context, given, found)
        return given if plain is None else plain(call, context, given)

    return memory


def _memory(call: OpCall, context: LocalContext, given: OpMemory, found: Streamed) -> OpMemory:
    """Its own shards are kept. A block of each streamed factor lives at a time.

    Backward first the gradient of a block of x is made, then that of w: each beside the block of
    the other, then beside the sum that it goes into, if other ranks add to it.
    """
    forward = backward = 0
    for of_x, of_w in _block_bytes(context, found):
        brought_x, brought_w = of_x * (found.column is not None), of_w * (found.row is not None)
        forward = max(forward, brought_x + brought_w)
        if call.inputs[found.x].requires_grad:
            backward = max(backward, of_x + max(brought_w, brought_x))
        if call.inputs[found.w].requires_grad:
            backward = max(backward, of_w + max(brought_x, brought_w))
    return replace(given, forward=forward, backward=backward)
