"""Gradient handlers: a user's function in the place of the reduction of a parameter's gradient.

A program reads a parameter in another layout than it is stored in; the way back of its gradient is
the reduction. With a handler these conversions are taken out of the prologue, and run before it, a
parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from autoplan.boxing import COLLECTIVES, Step
from autoplan.errors import InputError
from autoplan.runtime.communicator import Run, read_step
from autoplan.runtime.last_uses import mark_last_uses
from autoplan.runtime.lockstep import Lockstep
from autoplan.runtime.program import Program

Reduce = Callable[[Tensor], Tensor]
"""The default reduction: a gradient as it is read, on every rank, to the gradient as it is stored.

Collective: every rank of the mesh calls it as often as the others. Takes any floating type.
"""

GradientHandler = Callable[[str, Tensor, Reduce], Tensor]
"""handler(path, gradient, reduce) -> gradient.

gradient: this rank's local gradient of the parameter as the step reads it. Where the parameter is
    read B/P it is an addend, which nothing was added to yet; in data parallelism that is all of it.
returns: this rank's shard of the gradient, as the parameter is stored; `reduce(gradient)` is what
    is done without a handler.
"""

Values = list[Any]
"""One value a rank."""


@dataclass(frozen=True)
class Unreduced:
    """A program whose prologue takes every parameter as it is read, and not as it is stored.

    steps: from there to here, by the parameter's position.
    """

    program: Program
    steps: tuple[tuple[Step, ...], ...]


def unreduced(program: Program) -> Unreduced:
    """Take out of the prologue what boxes one parameter alone: all steps until it is read."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.prologue.graph, {}))
    _, *given = graph.find_nodes(op="placeholder")
    steps = tuple(_take_out(node) for node in given[: len(program.parameters)])
    for node in reversed(graph.find_nodes(op="call_method", target="box_many")):
        _keep_what_is_left(node)
    mark_last_uses(graph)
    prologue = fx.GraphModule(torch.nn.Module(), graph)
    return Unreduced(replace(program, prologue=prologue), steps)


def _take_out(placeholder: fx.Node) -> tuple[Step, ...]:
    """The steps of a parameter while one node alone reads it; readers then read `placeholder`.

    Up to the last one whose way back communicates: what follows is the rank's own.
    """
    steps: list[Step] = []
    chain: list[fx.Node] = [placeholder]
    while (found := _next_step(chain[-1])) is not None:
        step, after = found
        steps.append(step)
        chain.append(after)
    while steps and steps[-1].backward not in COLLECTIVES:
        steps.pop()
        chain.pop()
    if steps:
        chain[-1].replace_all_uses_with(placeholder)
    for before, node in reversed(list(pairwise(chain))):
        many: Any = None if node.target == "box" else node.args[0]
        node.graph.erase_node(node)
        if many is not None:  # trimmed when all parameters are taken out
            values = [None if each is before else each for each in many.args[1]]
            many.args = (many.args[0], values, many.args[2])
    return tuple(steps)


def _next_step(node: fx.Node) -> tuple[Step, fx.Node] | None:
    """The boxing step that alone reads `node`, and its result."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    args: Any = user.args
    options: Any = user.kwargs
    if user.op != "call_method" or user.target not in ("box", "box_many"):
        return None
    if user.target == "box":
        return read_step(args[2], options["axis"], options["sizes"]), user
    if args[1].count(node) > 1:
        return None
    place = args[1].index(node)
    item = next(each for each in user.users if each.args[1] == place)
    return read_step(args[2][place], options["axis"], options["sizes"][place]), item


def _keep_what_is_left(many: fx.Node) -> None:
    """Box only the values that were not taken out."""
    args: Any = many.args
    left = [place for place, value in enumerate(args[1]) if value is not None]
    if not left:
        many.graph.erase_node(many)
        return
    sizes: Any = many.kwargs["sizes"]
    many.args = (args[0], [args[1][at] for at in left], [args[2][at] for at in left])
    many.kwargs = {**many.kwargs, "sizes": [sizes[at] for at in left]}
    for item in list(many.users):
        place: Any = item.args[1]
        item.args = (many, left.index(place))


class _Handled(torch.autograd.Function):
    """The conversion of a parameter on one rank; a handler turns its gradient back."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, path: str, steps: Sequence[Step], run: Run, handler: Any
    ) -> Tensor:
        ctx.given = path, steps, run, handler, value.shape, value.dtype
        ctx.set_materialize_grads(False)
        return _converted(value, steps, run)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        path, steps, run, handler, shape, dtype = ctx.given
        if grad is None:  # on every rank alike
            return None, None, None, None, None
        reduce = partial(_reduce, path, grad.shape, partial(_back, steps=steps, run=run))
        result = _checked(handler(path, grad, reduce), path, shape, dtype)
        return result, None, None, None, None


def handled(
    value: Tensor, path: str, steps: Sequence[Step], run: Run, handler: GradientHandler
) -> Tensor:
    """A parameter as it is read, whose gradient `handler` reduces."""
    result: Tensor = _Handled.apply(value, path, steps, run, handler)  # type: ignore[no-untyped-call]
    return result


def _converted(value: Tensor, steps: Sequence[Step], run: Run) -> Tensor:
    for step in steps:
        (value,) = run([value], [step])
    return value if steps else value.view_as(value)


def _back(gradient: Tensor, steps: Sequence[Step], run: Run) -> Tensor:
    return _converted(gradient, [step.reversed for step in reversed(steps)], run)


def _reduce(path: str, shape: Sequence[int], back: Reduce, gradient: Tensor) -> Tensor:
    if not isinstance(gradient, Tensor) or gradient.shape != shape:
        raise InputError(
            f"a gradient handler called reduce with {_form(gradient)} for {path!r}; it takes a "
            f"tensor of the shape of the gradient that was given, {list(shape)}."
        )
    with torch.no_grad():
        return back(gradient)


def _checked(result: Any, path: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if isinstance(result, Tensor) and result.shape == shape and result.dtype == dtype:
        return result
    raise InputError(
        f"a gradient handler returned {_form(result)} for {path!r}; the gradient's shard here is "
        f"{str(dtype).removeprefix('torch.')}{list(shape)}: return what `reduce` returns, in the "
        "parameter's type."
    )


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


# -- all ranks in one process ----------------------------------------------------------------------

Move = Callable[[Sequence[Tensor], Sequence[Step]], Sequence[Tensor]]
"""One boxing step of one tensor: values and steps of every rank."""


class _SimulatedHandled(torch.autograd.Function):
    """The conversion of a parameter on all ranks; each rank's handler turns its gradient back."""

    @staticmethod
    def forward(
        ctx: Any,
        path: str,
        steps: Sequence[Sequence[Step]],
        move: Move,
        handler: GradientHandler,
        *values: Tensor,
    ) -> Any:
        ctx.given = path, steps, move, handler, [(v.shape, v.dtype) for v in values]
        ctx.set_materialize_grads(False)
        result = _all_converted(values, steps, move)
        ctx.shapes = [each.shape for each in result]
        return tuple(result)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        path, steps, move, handler, forms = ctx.given
        like = next((grad for grad in grads if grad is not None), None)
        if like is None:
            return None, None, None, None, *grads
        filled = [
            like.new_zeros(shape) if grad is None else grad
            for grad, shape in zip(grads, ctx.shapes, strict=True)
        ]
        back = [[step.reversed for step in each] for each in reversed(steps)]
        ranks = Lockstep(len(filled), lambda given: _all_converted(given, back, move))

        def on_rank(rank: int) -> Tensor:
            meet = partial(ranks.meet, rank, path)
            reduce = partial(_reduce, path, filled[rank].shape, meet)
            return _checked(handler(path, filled[rank], reduce), path, *forms[rank])

        return None, None, None, None, *ranks.run(on_rank, path)


def handled_on_all(
    values: Sequence[Tensor],
    path: str,
    steps: Sequence[Sequence[Step]],
    move: Move,
    handler: GradientHandler,
) -> Values:
    """`handled` on every rank of a simulation; `steps`: of every rank, one after the other."""
    return list(_SimulatedHandled.apply(path, steps, move, handler, *values))  # type: ignore[no-untyped-call]


def _all_converted(
    values: Sequence[Tensor], steps: Sequence[Sequence[Step]], move: Move
) -> list[Tensor]:
    result = list(values)
    for each in steps:
        result = list(move(result, each))
    return result if steps else [value.view_as(value) for value in result]
