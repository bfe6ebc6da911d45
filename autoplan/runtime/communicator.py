"""What an emitted program calls between its local ops: boxing, and random numbers.

One autograd function serves every boxing step: its backward is the step between the duals. How a
value moves is left to a communicator: real process groups here, one process in `simulation`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from autoplan.boxing import COLLECTIVES, Step
from autoplan.layouts import Partial, Split, chunk_range, parse_entry
from autoplan.mesh import Mesh
from autoplan.runtime import random
from autoplan.runtime.algorithms import ALGORITHMS
from autoplan.runtime.blockwise import View, run
from autoplan.runtime.exchange import Exchange, exchange_rows, read_exchange
from autoplan.runtime.regather import Alone, gathered, reduced
from autoplan.runtime.requests import KINDS, Request, perform_on_group
from autoplan.runtime.wire import fill, pack, pad, unpack

Observer = Callable[[str, int, str], None]
"""Called with (kind, bytes before the axis cuts, axis) for every collective that runs."""

_COMMUNICATING = frozenset((*COLLECTIVES, *KINDS))


def read_step(text: str, axis: str, sizes: Sequence[int]) -> Step:
    """The step of `comm.box(x, "P -> S(1)", axis="tensor", sizes=(0, 4096))`."""
    source, target = text.split(" -> ")
    return Step(axis, parse_entry(source), parse_entry(target), (sizes[0], sizes[1]))


class Communicator(abc.ABC):
    """The face that emitted code sees as `comm`, on one rank."""

    def __init__(self, mesh: Mesh, coordinates: tuple[int, ...], seed: int = 0) -> None:
        self.mesh = mesh
        self.coordinates = coordinates
        self.seed = seed
        self.step = 0
        self.device = torch.device("cpu")
        self.observer: Observer | None = None

    @abc.abstractmethod
    def box(self, x: Tensor, text: str, *, axis: str, sizes: tuple[int, int]) -> Tensor:
        """Turn the layout of `x` on one axis; differentiable."""

    @abc.abstractmethod
    def box_many(
        self, values: Sequence[Tensor], texts: Sequence[str], *, axis: str, sizes: Sequence[Any]
    ) -> Sequence[Tensor]:
        """Box several tensors by one collective: steps of equal actions, tensors of one dtype."""

    @abc.abstractmethod
    def gather(
        self, x: Tensor, texts: Sequence[str], *, axes: Sequence[str], sizes: Sequence[Any]
    ) -> Tensor:
        """Box a parameter for one reader, step by step; what is kept for backward is its shard.

        Backward gathers again, and boxes the gradient on its way back at once.
        """

    @abc.abstractmethod
    def reduce(
        self,
        x: Tensor,
        whole: Tensor,
        texts: Sequence[str],
        *,
        axes: Sequence[str],
        sizes: Sequence[Any],
    ) -> Tensor:
        """As `gather`, of what is there already: `whole`, whose gradient goes to `x`."""

    @abc.abstractmethod
    def all_reduce_max(self, x: Tensor, axis: str) -> Tensor:
        """Elementwise maximum over the ranks of an axis; no gradient."""

    @abc.abstractmethod
    def exchange_rows(
        self, x: Tensor, counts: Tensor, *, axis: str, rows: int, length: int | None = None
    ) -> Tensor:
        """Send rows to the ranks of an axis, as many as `counts` says; differentiable.

        counts: [n, n] integers; rank p sends rank q its next counts[p, q] rows, in rank order, and
            what lies beyond stays. The result lays what arrives side by side, in rank order.
        rows: of all ranks together. The sizes that travel depend on data, so that the exchange is
            counted as an all-to-all of so many rows.
        length: rows of the result, zeros after those that arrive; by default those alone.
        """

    @abc.abstractmethod
    def blockwise(self, name: str, *tensors: Tensor, **options: Any) -> Tensor:
        """The algorithm of that name on this rank's shards; differentiable once."""

    def dropout(
        self, x: Tensor, p: float, shape: Sequence[int], starts: Sequence[int], key: int
    ) -> Tensor:
        """Dropout of a shard that starts at `starts` in a tensor of logical `shape`.

        Keeps the flags for backward, a byte an element.
        """
        keep = random.dropout_mask(x, p, shape, starts, self.seed, key, self.step)
        return random.drop(x, keep, p)

    def keep(
        self,
        local_shape: Sequence[int],
        p: float,
        shape: Sequence[int],
        starts: Sequence[int],
        key: int,
    ) -> Tensor:
        """Flags of a shard, each false with probability `p`."""
        return random.keep_mask(local_shape, p, shape, starts, self._key(key), self.device)

    def uniform(
        self,
        local_shape: Sequence[int],
        shape: Sequence[int],
        starts: Sequence[int],
        key: int,
        *,
        dtype: torch.dtype,
    ) -> Tensor:
        """Numbers in [0, 1) for a shard that starts at `starts` in a tensor of logical `shape`."""
        return random.uniform(local_shape, shape, starts, self._key(key), dtype, self.device)

    def normal(
        self,
        local_shape: Sequence[int],
        shape: Sequence[int],
        starts: Sequence[int],
        key: int,
        *,
        dtype: torch.dtype,
    ) -> Tensor:
        """Standard normal numbers for a shard."""
        return random.normal(local_shape, shape, starts, self._key(key), dtype, self.device)

    def integers(
        self,
        local_shape: Sequence[int],
        shape: Sequence[int],
        starts: Sequence[int],
        key: int,
        low: int,
        high: int,
        *,
        dtype: torch.dtype,
    ) -> Tensor:
        """Whole numbers from `low` up to, not with, `high` for a shard."""
        found = random.integers(local_shape, shape, starts, self._key(key), low, high, self.device)
        return found.to(dtype)

    def _key(self, key: int) -> tuple[int, ...]:
        return self.seed, key, self.step

    def causal_mask(self, scores: Tensor, start: int) -> Tensor:
        """Scores [..., q, k], minus infinity where the key comes after query `start` + q."""
        rows = torch.arange(start, start + scores.shape[-2], device=scores.device)
        columns = torch.arange(scores.shape[-1], device=scores.device)
        return scores.masked_fill(columns > rows[:, None], float("-inf"))

    def observe(self, name: str, size_bytes: int, axis: str) -> None:
        if self.observer is not None and name in _COMMUNICATING:
            self.observer(name, size_bytes, axis)


def moved_bytes(x: Tensor, step: Step) -> int:
    """Bytes of the local tensor before `step.axis` cuts it; the same on the whole group."""
    shape = list(x.shape)
    if isinstance(step.source, Split):
        shape[step.source.dim] = step.sizes[0]
    return math.prod(shape) * x.element_size()


def local_action(name: str, x: Tensor, step: Step, parts: int, index: int) -> Tensor:
    """The actions that need no other rank."""
    if name == "identity":
        return x.view_as(x)
    if name == "slice":
        assert isinstance(step.target, Split)
        start, stop = chunk_range(step.sizes[1], parts, index)
        return x.narrow(step.target.dim, start, stop - start)
    if name == "keep_one":
        return x.view_as(x) if index == 0 else torch.zeros_like(x)
    assert name == "zero_pad"
    assert isinstance(step.source, Split)
    start, stop = chunk_range(step.sizes[0], parts, index)
    shape = list(x.shape)
    shape[step.source.dim] = step.sizes[0]
    whole = x.new_zeros(shape)
    whole.narrow(step.source.dim, start, stop - start).copy_(x)
    return whole


Run = Callable[[Sequence[Tensor], Sequence[Step]], Sequence[Tensor]]
"""What a communicator does to tensors that take the same kind of step on one axis together."""


class _Boxing(torch.autograd.Function):
    """Boxing a -> b, whose backward is boxing dual(b) -> dual(a)."""

    @staticmethod
    def forward(ctx: Any, run: Run, steps: Sequence[Step], *values: Tensor) -> Any:
        ctx.run, ctx.steps = run, steps
        ctx.set_materialize_grads(False)
        return tuple(run(values, steps))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        # What no gradient reaches keeps none, on every rank alike: optimizers skip it.
        reached = {number: grad for number, grad in enumerate(grads) if grad is not None}
        results: list[Tensor | None] = [None] * len(grads)
        if reached:
            steps = [ctx.steps[number].reversed for number in reached]
            # Through itself, so that the gradient of the gradient is boxing a -> b again.
            for number, result in zip(
                reached, box(list(reached.values()), steps, ctx.run), strict=True
            ):
                results[number] = result
        return None, None, *results


def box(values: Sequence[Tensor], steps: Sequence[Step], run: Run) -> tuple[Tensor, ...]:
    """What `run` makes of `values` in `steps`, with the gradient of boxing."""
    result: tuple[Tensor, ...] = _Boxing.apply(run, steps, *values)  # type: ignore[no-untyped-call]
    return result


class DistributedCommunicator(Communicator):
    """Collectives over process groups, one per mesh axis (gloo or NCCL)."""

    def __init__(
        self, mesh: Mesh, coordinates: tuple[int, ...], groups: dict[str, Any], seed: int = 0
    ) -> None:
        # Importing this registers the autograd formulas of the functional collectives; without
        # it an all_reduce's backward is silently the identity. Ours runs inside its own function.
        import torch.distributed._functional_collectives  # noqa: F401  (torch >= 2.11)

        super().__init__(mesh, coordinates, seed)
        self._groups = {axis: group.group_name for axis, group in groups.items()}
        self._process_groups = dict(groups)

    def box(self, x: Tensor, text: str, *, axis: str, sizes: tuple[int, int]) -> Tensor:
        return box([x], [read_step(text, axis, sizes)], self._run)[0]

    def box_many(
        self, values: Sequence[Tensor], texts: Sequence[str], *, axis: str, sizes: Sequence[Any]
    ) -> Sequence[Tensor]:
        steps = [read_step(text, axis, size) for text, size in zip(texts, sizes, strict=True)]
        return box(values, steps, self._run)

    def gather(
        self, x: Tensor, texts: Sequence[str], *, axes: Sequence[str], sizes: Sequence[Any]
    ) -> Tensor:
        steps = list(map(read_step, texts, axes, sizes))
        return gathered(Alone(steps, self._run, box), [x])[0]

    def reduce(
        self,
        x: Tensor,
        whole: Tensor,
        texts: Sequence[str],
        *,
        axes: Sequence[str],
        sizes: Sequence[Any],
    ) -> Tensor:
        steps = list(map(read_step, texts, axes, sizes))
        return reduced(Alone(steps, self._run, box), [x], [whole])[0]

    def all_reduce_max(self, x: Tensor, axis: str) -> Tensor:
        self.observe("all_reduce", x.numel() * x.element_size(), axis)
        return self._collective("all_reduce", x.detach().reshape(1, -1), axis, "max").view(x.shape)

    def exchange_rows(
        self, x: Tensor, counts: Tensor, *, axis: str, rows: int, length: int | None = None
    ) -> Tensor:
        index = self.coordinates[self.mesh.index(axis)]
        exchange = read_exchange(counts, index, axis, rows, length)
        return exchange_rows(x, exchange, self._exchange)

    def blockwise(self, name: str, *tensors: Tensor, **options: Any) -> Tensor:
        view = View(self.mesh, self.coordinates)
        return run(ALGORITHMS[name](**options), view, tensors, self._perform)

    def _perform(self, request: Request) -> Any:
        self.observe(request.kind, request.num_bytes, request.axis)
        index = self.coordinates[self.mesh.index(request.axis)]
        group = self._process_groups[request.axis]
        return perform_on_group(request, group, index, self.device)

    def _exchange(self, x: Tensor, exchange: Exchange) -> Tensor:
        self.observe("all_to_all", exchange.size_bytes(x), exchange.axis)
        ops = torch.ops._c10d_functional
        out = ops.all_to_all_single(
            x[: sum(exchange.sent)].contiguous(),
            exchange.received,
            exchange.sent,
            self._groups[exchange.axis],
        )
        return pad(ops.wait_tensor(out), 0, exchange.length)

    def _run(self, values: Sequence[Tensor], steps: Sequence[Step]) -> Sequence[Tensor]:
        """One collective for all `values`: their steps have the same action, their dtype is one."""
        axis, name = steps[0].axis, steps[0].forward
        parts = self.mesh.size(axis)
        index = self.coordinates[self.mesh.index(axis)]
        pairs = list(zip(values, steps, strict=True))
        if name not in COLLECTIVES:
            return [local_action(name, x, step, parts, index) for x, step in pairs]
        self.observe(name, sum(moved_bytes(x, step) for x, step in pairs), axis)
        dtype = values[0].dtype
        packed = [pack(name, x, step, parts) for x, step in pairs]
        widths = [math.prod(each.shape[1:]) for each in packed]
        buffer = fill(packed)
        del packed
        if dtype == torch.bool:
            buffer = buffer.to(torch.uint8)
        elif dtype.is_complex:  # gloo's all-to-all knows reals only
            buffer = torch.view_as_real(buffer).flatten(1)
        source = steps[0].source
        reduction = source.reduction if isinstance(source, Partial) else "sum"
        received = self._collective(name, buffer, axis, reduction, ours=len(pairs) > 1)
        del buffer
        if dtype.is_complex:
            received = torch.view_as_complex(received.reshape(received.shape[0], -1, 2))
        rows = torch.split(received.to(dtype), widths, 1)
        # Detached: parts of one buffer, but nobody else's, so that a leaf may take them as its own.
        return [
            unpack(name, row, x.shape, step, parts, index).detach()
            for row, (x, step) in zip(rows, pairs, strict=True)
        ]

    def _collective(
        self, name: str, buffer: Tensor, axis: str, reduction: str, ours: bool = False
    ) -> Tensor:
        """Run `name` on a [rows, k] buffer; one that is ours alone may be written over."""
        ops, group, parts = torch.ops._c10d_functional, self._groups[axis], self.mesh.size(axis)
        if name == "all_reduce" and ours:
            out = ops.all_reduce_(buffer, reduction, group)
        elif name == "all_reduce":
            out = ops.all_reduce(buffer, reduction, group)
        elif name == "all_gather":
            out = ops.all_gather_into_tensor(buffer, parts, group)
        elif name == "reduce_scatter":
            out = ops.reduce_scatter_tensor(buffer, reduction, parts, group)
        else:
            rows = [1] * parts
            out = ops.all_to_all_single(buffer, rows, rows, group)
        result: Tensor = ops.wait_tensor(out)
        return result
