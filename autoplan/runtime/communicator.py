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

from autoplan.boxing import COLLECTIVES, Step, action
from autoplan.layouts import Partial, Split, chunk_range, parse_entry
from autoplan.mesh import Mesh
from autoplan.runtime.random import dropout_mask

Observer = Callable[[str, int, str], None]
"""Called with (kind, bytes before the axis cuts, axis) for every collective that runs."""


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
        self.observer: Observer | None = None

    @abc.abstractmethod
    def box(self, x: Tensor, text: str, *, axis: str, sizes: tuple[int, int]) -> Tensor:
        """Turn the layout of `x` on one axis; differentiable."""

    @abc.abstractmethod
    def all_reduce_max(self, x: Tensor, axis: str) -> Tensor:
        """Elementwise maximum over the ranks of an axis; no gradient."""

    def dropout(
        self, x: Tensor, p: float, shape: Sequence[int], starts: Sequence[int], key: int
    ) -> Tensor:
        """Dropout of a shard that starts at `starts` in a tensor of logical `shape`."""
        keep = dropout_mask(x, p, shape, starts, self.seed, key, self.step)
        return x * (keep.to(x.dtype) / (1.0 - p if p < 1.0 else 1.0))

    def causal_mask(self, scores: Tensor, start: int) -> Tensor:
        """Scores [..., q, k], minus infinity where the key comes after query `start` + q."""
        rows = torch.arange(start, start + scores.shape[-2], device=scores.device)
        columns = torch.arange(scores.shape[-1], device=scores.device)
        return scores.masked_fill(columns > rows[:, None], float("-inf"))

    def observe(self, name: str, size_bytes: int, axis: str) -> None:
        if self.observer is not None and name in COLLECTIVES:
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


class _Boxing(torch.autograd.Function):
    """Boxing a -> b, whose backward is boxing dual(b) -> dual(a)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Step, run: Callable[[Tensor, Step], Tensor]) -> Tensor:
        ctx.step, ctx.run = step, run
        return run(x, step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # Through itself, so that the gradient of the gradient is boxing a -> b again.
        return box(grad, ctx.step.reversed, ctx.run), None, None


def box(x: Tensor, step: Step, run: Callable[[Tensor, Step], Tensor]) -> Tensor:
    """What `run` makes of `x` in `step`, with the gradient of boxing."""
    result: Tensor = _Boxing.apply(x, step, run)  # type: ignore[no-untyped-call]
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

    def box(self, x: Tensor, text: str, *, axis: str, sizes: tuple[int, int]) -> Tensor:
        return box(x, read_step(text, axis, sizes), self._run)

    def all_reduce_max(self, x: Tensor, axis: str) -> Tensor:
        self.observe("all_reduce", x.numel() * x.element_size(), axis)
        return self._all_reduce(x.detach(), axis, "max")

    def _run(self, x: Tensor, step: Step) -> Tensor:
        name = action(step.source, step.target)
        parts = self.mesh.size(step.axis)
        index = self.coordinates[self.mesh.index(step.axis)]
        if name not in COLLECTIVES:
            return local_action(name, x, step, parts, index)
        self.observe(name, moved_bytes(x, step), step.axis)
        if x.dtype == torch.bool:
            return self._collective(name, x.to(torch.uint8), step, parts, index).to(torch.bool)
        return self._collective(name, x, step, parts, index)

    def _collective(self, name: str, x: Tensor, step: Step, parts: int, index: int) -> Tensor:
        reduction = step.source.reduction if isinstance(step.source, Partial) else "sum"
        if name == "all_reduce":
            return self._all_reduce(x, step.axis, reduction)
        if name == "all_gather":
            assert isinstance(step.source, Split)
            dim, size = step.source.dim, step.sizes[0]
            stacked = self._all_gather(_pad(x, dim, -(-size // parts)), step.axis, parts)
            return stacked.movedim(0, dim).flatten(dim, dim + 1).narrow(dim, 0, size)
        if name == "reduce_scatter":
            assert isinstance(step.target, Split)
            dim, size = step.target.dim, step.sizes[1]
            start, stop = chunk_range(size, parts, index)
            rows = -(-size // parts)
            stacked = torch.unflatten(_pad(x, dim, rows * parts), dim, (parts, rows)).movedim(
                dim, 0
            )
            summed = self._reduce_scatter(stacked, step.axis, parts, reduction)
            return summed.narrow(dim, 0, stop - start)
        return self._all_to_all(x, step, parts, index)

    def _wait(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops._c10d_functional.wait_tensor(x)
        return result

    def _all_reduce(self, x: Tensor, axis: str, reduction: str) -> Tensor:
        out = torch.ops._c10d_functional.all_reduce(x.contiguous(), reduction, self._groups[axis])
        return self._wait(out)

    def _all_gather(self, x: Tensor, axis: str, parts: int) -> Tensor:
        """Every rank's `x`, stacked."""
        row = x.contiguous().unsqueeze(0)
        out = torch.ops._c10d_functional.all_gather_into_tensor(row, parts, self._groups[axis])
        return self._wait(out)

    def _reduce_scatter(self, stacked: Tensor, axis: str, parts: int, reduction: str) -> Tensor:
        """Row `k` of the reduced `stacked` on rank k."""
        out = torch.ops._c10d_functional.reduce_scatter_tensor(
            stacked.contiguous(), reduction, parts, self._groups[axis]
        )
        return self._wait(out).squeeze(0)

    def _all_to_all(self, x: Tensor, step: Step, parts: int, index: int) -> Tensor:
        """Cut along the target dimension, send piece k to rank k, join along the source one."""
        assert isinstance(step.source, Split)
        assert isinstance(step.target, Split)
        gathered, cut = step.source.dim, step.target.dim
        ranges = [chunk_range(step.sizes[1], parts, k) for k in range(parts)]
        pieces = [x.narrow(cut, start, stop - start).contiguous() for start, stop in ranges]
        shapes = []
        for k in range(parts):
            start, stop = chunk_range(step.sizes[0], parts, k)
            shape = list(pieces[index].shape)
            shape[gathered] = stop - start
            shapes.append(shape)
        sent = [piece.numel() for piece in pieces]
        received = [torch.Size(shape).numel() for shape in shapes]
        flat = torch.cat([piece.reshape(-1) for piece in pieces])
        out = self._wait(
            torch.ops._c10d_functional.all_to_all_single(
                flat, received, sent, self._groups[step.axis]
            )
        )
        parts_in = [p.view(s) for p, s in zip(torch.split(out, received), shapes, strict=True)]
        return torch.cat(parts_in, gathered)


def _pad(x: Tensor, dim: int, rows: int) -> Tensor:
    """`x` with zeros appended along `dim` up to `rows`."""
    missing = rows - x.shape[dim]
    if missing == 0:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim)
