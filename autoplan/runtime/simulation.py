"""All ranks in one process, in lockstep: node by node, every rank's value before the next node.

The emitted programs run as they are. Boxing runs the emitted backward step, not a derivative that
autograd would find through the simulated collective, so that a wrong dual shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from autoplan.boxing import COLLECTIVES, Step
from autoplan.layouts import Layout, Partial, Split, chunk_range, local_ranges
from autoplan.mesh import Mesh
from autoplan.runtime.algorithms import ALGORITHMS
from autoplan.runtime.blockwise import View, run_all
from autoplan.runtime.communicator import (
    Communicator,
    local_action,
    moved_bytes,
    read_step,
)
from autoplan.runtime.exchange import Exchange, read_exchange
from autoplan.runtime.recompute import run_again_in_backward
from autoplan.runtime.regather import gathered, reduced
from autoplan.runtime.requests import Request, perform_in_one_process
from autoplan.runtime.wire import pad

Values = list[Any]
"""One value per rank."""


class SimulatedCommunicator(Communicator):
    """The local face of a simulated rank; collectives are run by `Simulator` for all at once."""

    def box(self, x: Tensor, text: str, *, axis: str, sizes: tuple[int, int]) -> Tensor:
        raise RuntimeError("a simulated rank cannot box alone; run the program in a Simulator.")

    def box_many(
        self, values: Sequence[Tensor], texts: Sequence[str], *, axis: str, sizes: Sequence[Any]
    ) -> Sequence[Tensor]:
        raise RuntimeError("a simulated rank cannot box alone; run the program in a Simulator.")

    def gather(
        self, x: Tensor, texts: Sequence[str], *, axes: Sequence[str], sizes: Sequence[Any]
    ) -> Tensor:
        raise RuntimeError("a simulated rank cannot gather alone; run the program in a Simulator.")

    def reduce(
        self,
        x: Tensor,
        whole: Tensor,
        texts: Sequence[str],
        *,
        axes: Sequence[str],
        sizes: Sequence[Any],
    ) -> Tensor:
        raise RuntimeError("a simulated rank cannot reduce alone; run the program in a Simulator.")

    def all_reduce_max(self, x: Tensor, axis: str) -> Tensor:
        raise RuntimeError("a simulated rank cannot reduce alone; run the program in a Simulator.")

    def exchange_rows(
        self, x: Tensor, counts: Tensor, *, axis: str, rows: int, length: int | None = None
    ) -> Tensor:
        raise RuntimeError("a simulated rank cannot send alone; run the program in a Simulator.")

    def blockwise(self, name: str, *tensors: Tensor, **options: Any) -> Tensor:
        raise RuntimeError("a simulated rank cannot meet others; run the program in a Simulator.")


class Simulator:
    """Runs the same program part of every rank of `mesh` in lockstep."""

    def __init__(self, mesh: Mesh, seed: int = 0) -> None:
        self.mesh = mesh
        self.comms = [
            SimulatedCommunicator(mesh, mesh.coordinates(rank), seed)
            for rank in range(mesh.num_devices)
        ]

    def run(
        self,
        modules: Sequence[fx.GraphModule],
        inputs: Sequence[Values],
        watch: Callable[[fx.Node, Values], None] | None = None,
    ) -> list[Values]:
        """Outputs per position, each with one value per rank. `inputs`: one `Values` a placeholder.

        `watch` is called with every node (of rank 0) and its values.
        """
        environments: list[dict[fx.Node, Any]] = [{} for _ in modules]
        given = iter([list(self.comms), *inputs])
        for nodes in zip(*(module.graph.nodes for module in modules), strict=True):
            first = nodes[0]
            if first.op == "placeholder":
                results = next(given)
            elif first.op == "output":
                pairs = zip(nodes, environments, strict=True)
                per_rank = [fx.node.map_arg(n.args[0], e.__getitem__) for n, e in pairs]
                return [list(values) for values in zip(*per_rank, strict=True)]
            elif first.op == "call_module":
                parts = [module.get_submodule(str(first.target)) for module in modules]
                results = self._recomputed(parts, _arguments(nodes, environments), watch)
            else:
                results = self._call(nodes, environments)
            for node, environment, result in zip(nodes, environments, results, strict=True):
                environment[node] = result
                for spent in node.meta.get("last_uses", ()):
                    del environment[spent]
            if watch is not None:
                watch(first, results)
        raise RuntimeError("a program part has no output node.")

    def _recomputed(
        self,
        parts: Sequence[Any],
        calls: Sequence[tuple[Any, Any]],
        watch: Callable[[fx.Node, Values], None] | None,
    ) -> Values:
        """A recomputed part on every rank; where somebody watches, as if it were not."""
        modules = [part.part for part in parts]

        def run(*flat: Any) -> tuple[Any, ...]:
            outputs = self.run(modules, _columns(flat, len(modules)), watch)
            return tuple(zip(*outputs, strict=True))

        flat = [value for args, _ in calls for value in args[1:]]
        return list(run(*flat) if watch else run_again_in_backward(run, self.comms, flat))

    def _call(self, nodes: Sequence[fx.Node], environments: Sequence[dict[fx.Node, Any]]) -> Values:
        calls = _arguments(nodes, environments)
        first = nodes[0]
        if first.op == "call_method":
            if first.target == "box":
                steps = [read_step(args[2], kw["axis"], kw["sizes"]) for args, kw in calls]
                return self.box([args[1] for args, _ in calls], steps)
            if first.target == "box_many":
                many = [
                    [
                        read_step(text, kw["axis"], size)
                        for text, size in zip(args[2], kw["sizes"], strict=True)
                    ]
                    for args, kw in calls
                ]
                tensors = list(zip(*(args[1] for args, _ in calls), strict=True))
                boxed = self.box_many(tensors, list(zip(*many, strict=True)))
                return list(zip(*boxed, strict=True))
            if first.target in ("gather", "reduce"):
                ways = [
                    list(map(read_step, args[-1], kw["axes"], kw["sizes"])) for args, kw in calls
                ]
                together = Together(self, list(zip(*ways, strict=True)))
                shards = [args[1] for args, _ in calls]
                if first.target == "gather":
                    return gathered(together, shards)
                return reduced(together, shards, [args[2] for args, _ in calls])
            if first.target == "exchange_rows":
                exchanges = []
                for comm, (args, kw) in zip(self.comms, calls, strict=True):
                    index = comm.coordinates[self.mesh.index(kw["axis"])]
                    length = kw.get("length")
                    exchanges.append(read_exchange(args[2], index, kw["axis"], kw["rows"], length))
                return self.exchange_rows([args[1] for args, _ in calls], exchanges)
            if first.target == "blockwise":
                return self.blockwise(calls)
            if first.target == "all_reduce_max":
                return self._all_reduce_max([args[1] for args, _ in calls], calls[0][0][2])
            return [getattr(args[0], str(first.target))(*args[1:], **kw) for args, kw in calls]
        return [
            node.target(*args, **kw)  # type: ignore[operator]
            for node, (args, kw) in zip(nodes, calls, strict=True)
        ]

    def box(self, values: Sequence[Tensor], steps: Sequence[Step]) -> Values:
        """One boxing step on every rank; differentiable. `values` and `steps`: one a rank."""
        return self.box_many([values], [steps])[0]

    def box_many(
        self, tensors: Sequence[Sequence[Tensor]], steps: Sequence[Sequence[Step]]
    ) -> list[Values]:
        """Several tensors by one collective; both are given per tensor, then per rank."""
        flat = itertools.chain.from_iterable(tensors)
        results = _SimulatedBoxing.apply(self, tuple(map(tuple, steps)), *flat)  # type: ignore[no-untyped-call]
        return _rows(results, self.mesh.num_devices)

    def exchange_rows(self, values: Sequence[Tensor], exchanges: Sequence[Exchange]) -> Values:
        """Rows from every rank to others; differentiable. One value and one exchange a rank."""
        return list(_SimulatedExchange.apply(self, tuple(exchanges), *values))  # type: ignore[no-untyped-call]

    def exchange(self, values: Sequence[Tensor], exchanges: Sequence[Exchange]) -> Values:
        """What the exchanges, on one axis, do to the values of all ranks."""
        results: Values = list(values)
        for group in self.mesh.groups(exchanges[0].axis):
            pieces = [
                torch.split(values[rank][: sum(exchanges[rank].sent)], list(exchanges[rank].sent))
                for rank in group
            ]
            for index, rank in enumerate(group):
                each = exchanges[rank]
                self.comms[rank].observe("all_to_all", each.size_bytes(values[rank]), each.axis)
                arrived = torch.cat([sent[index] for sent in pieces])
                results[rank] = pad(arrived, 0, each.length)
        return results

    def blockwise(self, calls: Sequence[tuple[Any, Any]]) -> Values:
        """Arguments and options of `Communicator.blockwise` on every rank."""
        algorithms = [ALGORITHMS[args[1]](**options) for args, options in calls]
        views = [View(self.mesh, comm.coordinates) for comm in self.comms]
        tensors = [args[2:] for args, _ in calls]
        return run_all(algorithms, views, tensors, self._perform)

    def _perform(self, requests: Sequence[Request]) -> Values:
        results: Values = [None] * len(requests)
        for comm, request in zip(self.comms, requests, strict=True):
            comm.observe(request.kind, request.num_bytes, request.axis)
        for group in self.mesh.groups(requests[0].axis):
            answers = perform_in_one_process([requests[rank] for rank in group])
            for rank, answer in zip(group, answers, strict=True):
                results[rank] = answer
        return results

    def _all_reduce_max(self, values: Values, axis: str) -> Values:
        results: Values = list(values)
        for group in self.mesh.groups(axis):
            largest = torch.stack([values[rank].detach() for rank in group]).amax(0)
            for rank in group:
                size = largest.numel() * largest.element_size()
                self.comms[rank].observe("all_reduce", size, axis)
                results[rank] = largest
        return results

    def move(
        self, tensors: Sequence[Sequence[Tensor]], steps: Sequence[Sequence[Step]]
    ) -> list[Values]:
        """What the steps, of one action on one axis, do to the values of all ranks."""
        name, axis = steps[0][0].forward, steps[0][0].axis
        for rank, comm in enumerate(self.comms):
            pairs = zip(tensors, steps, strict=True)
            size = sum(moved_bytes(values[rank], step[rank]) for values, step in pairs)
            comm.observe(name, size, axis)
        return [
            self._move_one(name, axis, values, step)
            for values, step in zip(tensors, steps, strict=True)
        ]

    def _move_one(
        self, name: str, axis: str, values: Sequence[Tensor], steps: Sequence[Step]
    ) -> Values:
        parts = self.mesh.size(axis)
        results: Values = [None] * len(values)
        for group in self.mesh.groups(axis):
            whole = None
            if name in COLLECTIVES:
                whole = _whole(name, [values[rank] for rank in group], steps[group[0]])
            for index, rank in enumerate(group):
                if whole is None:
                    results[rank] = local_action(name, values[rank], steps[rank], parts, index)
                else:
                    results[rank] = _part(name, whole, steps[rank], parts, index)
        return results


def _arguments(
    nodes: Sequence[fx.Node], environments: Sequence[dict[fx.Node, Any]]
) -> list[tuple[Any, Any]]:
    """Positional and named arguments of a node on every rank."""
    looks = [environment.__getitem__ for environment in environments]
    return [
        (fx.node.map_arg(node.args, look), fx.node.map_arg(node.kwargs, look))
        for node, look in zip(nodes, looks, strict=True)
    ]


def _columns(flat: Sequence[Any], ranks: int) -> list[Values]:
    """Values given rank by rank, as rows of one value a rank."""
    length = len(flat) // ranks
    return [list(flat[position::length]) for position in range(length)]


def _rows(flat: Sequence[Any], length: int) -> list[Values]:
    return [list(flat[at : at + length]) for at in range(0, len(flat), length)]


_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


def _whole(name: str, values: Values, step: Step) -> Tensor:
    if name in ("all_gather", "all_to_all"):
        assert isinstance(step.source, Split)
        return torch.cat(values, step.source.dim)
    reduction = step.source.reduction if isinstance(step.source, Partial) else "sum"
    combine = _COMBINE[reduction]
    total: Tensor = values[0]
    for value in itertools.islice(values, 1, None):
        total = combine(total, value)
    return total


def _part(name: str, whole: Tensor, step: Step, parts: int, index: int) -> Tensor:
    if name in ("all_gather", "all_reduce"):
        return whole.clone()
    assert isinstance(step.target, Split)
    start, stop = chunk_range(step.sizes[1], parts, index)
    return whole.narrow(step.target.dim, start, stop - start).clone()


class Together:
    """The way of one parameter on all ranks: of every step, one a rank."""

    def __init__(self, simulator: Simulator, steps: Sequence[Sequence[Step]]) -> None:
        self.simulator, self.steps = simulator, steps

    def there(self, shards: Sequence[Tensor]) -> Values:
        """The whole on every rank."""
        values = list(shards)
        for steps in self.steps:
            (values,) = self.simulator.move([values], [steps])
        return values

    def again(self, shards: Sequence[Tensor], rank: int) -> Tensor:
        """The whole on one rank; only this one is observed to communicate."""
        observers = [comm.observer for comm in self.simulator.comms]
        for number, comm in enumerate(self.simulator.comms):
            comm.observer = comm.observer if number == rank else None
        try:
            whole: Tensor = self.there(shards)[rank]
            return whole
        finally:
            for comm, observer in zip(self.simulator.comms, observers, strict=True):
                comm.observer = observer

    def back(self, grads: Sequence[Tensor | None], shapes: Sequence[torch.Size]) -> Values:
        """The gradients of the shards; differentiable."""
        values = _filled(list(zip(grads, shapes, strict=True)))
        if values is None:
            return [None] * len(grads)
        for steps in reversed(self.steps):
            values = self.simulator.box(values, [step.reversed for step in steps])
        return values


class _SimulatedBoxing(torch.autograd.Function):
    """A boxing step on all ranks at once; backward is the step between the duals."""

    @staticmethod
    def forward(
        ctx: Any, simulator: Simulator, steps: tuple[tuple[Step, ...], ...], *values: Tensor
    ) -> Any:
        ctx.simulator, ctx.steps = simulator, steps
        moved = simulator.move(_rows(values, simulator.mesh.num_devices), steps)
        results = tuple(itertools.chain.from_iterable(moved))
        ctx.shapes = [each.shape for each in results]
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        ranks = ctx.simulator.mesh.num_devices
        per_tensor = _rows(list(zip(grads, ctx.shapes, strict=True)), ranks)
        # What no gradient reaches on any rank keeps none: optimizers skip it.
        filled = {number: _filled(each) for number, each in enumerate(per_tensor)}
        reached = {number: each for number, each in filled.items() if each is not None}
        results: list[Values] = [[None] * ranks for _ in per_tensor]
        if reached:
            steps = [[step.reversed for step in ctx.steps[number]] for number in reached]
            # Through itself, so that the gradient of the gradient is boxing a -> b again.
            boxed = ctx.simulator.box_many(list(reached.values()), steps)
            results = [
                boxed.pop(0) if number in reached else none for number, none in enumerate(results)
            ]
        return None, None, *itertools.chain.from_iterable(results)


def _filled(ranks: Sequence[tuple[Tensor | None, Any]]) -> Values | None:
    """Gradients of one tensor on all ranks, zero where one has none; None where none has any."""
    like = next((grad for grad, _ in ranks if grad is not None), None)
    if like is None:
        return None
    return [like.new_zeros(shape) if grad is None else grad for grad, shape in ranks]


class _SimulatedExchange(torch.autograd.Function):
    """Rows of all ranks at once; backward is the same way back."""

    @staticmethod
    def forward(
        ctx: Any, simulator: Simulator, exchanges: tuple[Exchange, ...], *values: Tensor
    ) -> Any:
        ctx.simulator = simulator
        ctx.exchanges = [
            each.reversed(value.shape[0]) for each, value in zip(exchanges, values, strict=True)
        ]
        return tuple(simulator.exchange(values, exchanges))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # Through itself, so that the gradient of the gradient is the exchange again.
        return None, None, *ctx.simulator.exchange_rows(grads, ctx.exchanges)


class _Scatter(torch.autograd.Function):
    """A logical tensor as every rank's shard; the shards' gradients make the logical gradient.

    Splits are laid side by side. Where ranks hold the same whole value (B), every one of them has
    the whole gradient too, and the first is taken.
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, layout: Layout, mesh: Mesh) -> Any:
        ctx.layout, ctx.mesh, ctx.shape = layout, mesh, whole.shape
        shards = [shard(whole, layout, mesh, rank).clone() for rank in range(mesh.num_devices)]
        ctx.shapes = [each.shape for each in shards]
        ctx.set_materialize_grads(False)
        return tuple(shards)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        filled = _filled(list(zip(grads, ctx.shapes, strict=True)))
        if filled is None:
            return None, None, None
        return _Join.apply(ctx.layout, ctx.mesh, tuple(ctx.shape), *filled), None, None  # type: ignore[no-untyped-call]


class _Join(torch.autograd.Function):
    """The logical tensor of shards; its gradient goes whole to every rank that holds all of it."""

    @staticmethod
    def forward(
        ctx: Any, layout: Layout, mesh: Mesh, shape: tuple[int, ...], *values: Tensor
    ) -> Tensor:
        ctx.layout, ctx.mesh = layout, mesh
        return join(list(values), layout, mesh, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, None, *scatter(grad, ctx.layout, ctx.mesh)


class _Gather(torch.autograd.Function):
    """The one logical value of ranks that all hold it whole; each gets the whole gradient."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> Tensor:
        ctx.count = len(values)
        return values[0].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (grad,) * ctx.count


def shard(whole: Tensor, layout: Layout, mesh: Mesh, rank: int) -> Tensor:
    """What `rank` holds of `whole` under a layout of splits and broadcasts; a view."""
    ranges = local_ranges(tuple(whole.shape), layout, mesh, mesh.coordinates(rank))
    for dim, (start, stop) in enumerate(ranges):
        whole = whole.narrow(dim, start, stop - start)
    return whole


def join(values: Values, layout: Layout, mesh: Mesh, shape: tuple[int, ...]) -> Tensor:
    """The logical tensor that shards make, of splits and broadcasts only."""
    whole: Tensor = values[0].new_zeros(shape)
    for rank, value in enumerate(values):
        coordinates = mesh.coordinates(rank)
        if all(at == 0 or isinstance(e, Split) for e, at in zip(layout, coordinates, strict=True)):
            shard(whole, layout, mesh, rank).copy_(value)
    return whole


def scatter(whole: Tensor, layout: Layout, mesh: Mesh) -> Values:
    """Every rank's shard; differentiable."""
    return list(_Scatter.apply(whole, layout, mesh))  # type: ignore[no-untyped-call]


def gather(values: Values) -> Tensor:
    """The logical value that all ranks hold whole; differentiable."""
    result: Tensor = _Gather.apply(*values)  # type: ignore[no-untyped-call]
    return result
