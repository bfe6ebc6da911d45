"""Stages written by hand: what splitting and emission would make, without them.

Every stage has a block of two products, and sends a tensor that it computes (`h`), one that depends
on its own weights alone (`z`), one that is handed on as it came (`p`), flags (`m`) and whole
numbers (`n`). Written once, as a function: traced it is the program, called it is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx

from autoplan.layouts import B, Layout, S
from autoplan.mesh import Mesh
from autoplan.runtime.communicator import DistributedCommunicator
from autoplan.runtime.executor import DistributedExecutor, Executor
from autoplan.runtime.last_uses import mark_last_uses
from autoplan.runtime.program import OutputSpec, Program, TensorSpec
from autoplan.runtime.recompute import with_parts
from autoplan.runtime.simulation import SimulatedCommunicator, shard

WIDTH, HIDDEN, ROWS = 4, 6, 3
SEED = 11
ALONE, PAIR = Mesh.of(), Mesh.of(x=2)
DTYPE = torch.float64

PARAMETERS = {"w1": (WIDTH, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, WIDTH), "g": (3,)}
STORAGE = {"w1": S(0), "b1": S(0), "w2": S(0), "g": S(0)}
SENT = {
    "h": ((ROWS, WIDTH), DTYPE, True),
    "z": ((3,), DTYPE, True),
    "p": ((ROWS, WIDTH), DTYPE, True),
    "m": ((ROWS, WIDTH), torch.bool, False),
    "n": ((WIDTH,), torch.int64, False),
}


def block(comm: Any, mesh: Mesh, at: int, number: int, *values: Any) -> Any:
    """The residual of a block; every second stage reads its weights twice."""
    w1, b1, w2, h = values
    if mesh.ndim:
        h = comm.box(h, "B -> B/P", axis="x", sizes=(0, 0))
    inner = torch.nn.functional.gelu(torch.matmul(h, w1) + b1)
    first = at * (HIDDEN // mesh.num_devices)
    y = comm.dropout(inner, 0.3, (ROWS, HIDDEN), (0, first), number)
    y = torch.matmul(y, w2)
    if number % 2:
        y = y + torch.matmul(torch.matmul(h, w1), w2)
    if mesh.ndim:
        y = comm.box(y, "P -> B", axis="x", sizes=(0, 0))
    return y


def stage(number: int, total: int, mesh: Mesh = ALONE, at: int = 0, run: Any = block) -> Callable:
    """The body of stage `number`: parameters, buffer, arguments, received -> outputs, sent, buffer.

    Stage 0 reads x, and has the buffer `seen`; the last one reads t.
    """
    first, last = number == 0, number == total - 1

    def body(comm: Any, w1: Any, b1: Any, w2: Any, g: Any, *rest: Any) -> tuple[Any, ...]:
        waiting = list(rest)
        new_buffers = []
        if first:
            seen, x = waiting.pop(0), waiting.pop(0)
            new_buffers = [seen + x.sum(0)]
        if last:
            t = waiting.pop(0)
        if first:
            h, z, p, m, n = x, g, x * g.sum(), x > -1.0, (x > 0.0).sum(0)
        else:
            h, z, p, m, n = waiting
        h = (h + run(comm, mesh, at, number, w1, b1, w2, h)) * m
        if not last:  # which reads no z, so that no gradient comes back for it
            h = h + z.sum()
        own = torch.tanh(g)
        if not last:
            return h, own, p, m, n, *new_buffers
        loss = ((h - t) ** 2).mean() * n.to(DTYPE).mean() + (p * own.sum() + h).sin().mean()
        return loss, h, *new_buffers

    return body


def names_of(number: int, total: int) -> tuple[list[str], list[str], list[str]]:
    """Of the changing buffers, the arguments, and what is received."""
    buffers, inputs = (["seen"], ["x"]) if number == 0 else ([], [])
    if number == total - 1:
        inputs = [*inputs, "t"]
    return buffers, inputs, [] if number == 0 else list(SENT)


def traced(function: Callable, names: Sequence[str], parts: Sequence[Any] = ()) -> fx.GraphModule:
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    results = function(*(fx.Proxy(graph.placeholder(name), tracer) for name in names))
    graph.output(tuple(each.node for each in results))
    mark_last_uses(graph)
    return with_parts(graph, parts)


def program(
    number: int, total: int, mesh: Mesh = ALONE, rank: int = 0, recompute: bool = False
) -> Program:
    at = rank
    buffers, inputs, received = names_of(number, total)
    whole = Layout((B,) * mesh.ndim)
    stored = {n: Layout((e,) * mesh.ndim) for n, e in STORAGE.items()}
    coordinates = mesh.coordinates(rank)

    def prologue(comm: Any, w1: Any, b1: Any, w2: Any, g: Any) -> tuple[Any, ...]:
        if mesh.ndim:
            w1 = comm.box(w1, "S(0) -> S(1)", axis="x", sizes=(WIDTH, HIDDEN))
            g = comm.box(g, "S(0) -> B", axis="x", sizes=(3, 0))
        return w1, b1, w2, g

    parts = []
    run: Any = block
    if recompute:
        names = ["comm", "w1", "b1", "w2", "h"]
        again = traced(lambda comm, *v: (block(comm, mesh, at, number, *v),), names)
        parts = [("again", again)]

        def run(comm: Any, mesh: Mesh, at: int, number: int, *values: Any) -> Any:
            tracer = comm.tracer
            node = tracer.graph.call_module("again", (comm.node, *(v.node for v in values)))
            return fx.Proxy(node, tracer)[0]

    body = traced(
        stage(number, total, mesh, at, run),
        ["comm", *PARAMETERS, *buffers, *inputs, *received],
        parts,
    )
    x, t = (TensorSpec(name, (ROWS, WIDTH), DTYPE, whole) for name in "xt")
    traveling = tuple(TensorSpec(n, s, d, whole, g) for n, (s, d, g) in SENT.items())
    last = number == total - 1
    epilogue = traced(lambda comm, *v: v, ["comm", "loss", "h"] if last else ["comm"])
    return Program(
        mesh=mesh,
        coordinates=coordinates,
        parameters=tuple(TensorSpec(n, s, DTYPE, stored[n], True) for n, s in PARAMETERS.items()),
        state=(),
        updates=(TensorSpec("seen", (WIDTH,), DTYPE, whole),) if number == 0 else (),
        inputs=tuple((0, x) if name == "x" else (1, t) for name in inputs),
        outputs=(OutputSpec(0), OutputSpec(1)) if last else (),
        loss=0 if last else None,
        prologue=traced(prologue, ["comm", *PARAMETERS]),
        body=body,
        epilogue=epilogue,
        received=() if number == 0 else traveling,
        sent=() if last else traveling,
    )


class GroupExecutor(DistributedExecutor):
    """A real rank of the mesh of one stage's group, not of all ranks."""

    def __init__(self, mesh: Mesh, rank: int, group: dist.ProcessGroup | None) -> None:
        self.mesh, self.rank, self.device = mesh, rank, torch.device("cpu")
        groups = dict.fromkeys(mesh.axes, group)
        self.comm = DistributedCommunicator(mesh, mesh.coordinates(rank), groups, SEED)


def parameters_of(number: int) -> dict[str, Tensor]:
    """The whole parameters of a stage."""
    draw = torch.Generator().manual_seed(100 + number)
    return {n: torch.randn(s, generator=draw, dtype=DTYPE) / 2 for n, s in PARAMETERS.items()}


def batch_of(microbatch: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(microbatch)
    x, t = torch.randn(2, ROWS, WIDTH, generator=draw, dtype=DTYPE)
    return x, t


def local_parameters(number: int, mesh: Mesh, ranks: Sequence[int]) -> dict[str, list[Tensor]]:
    """Leaves, of each rank."""
    return {
        name: [
            shard(whole, Layout((STORAGE[name],) * mesh.ndim), mesh, rank).clone().requires_grad_()
            for rank in ranks
        ]
        for name, whole in parameters_of(number).items()
    }


class Batches:
    """Feeds a stage; notes what it gives."""

    def __init__(self, executor: Executor, number: int, total: int) -> None:
        self.executor, self.number, self.total = executor, number, total
        self.seen = torch.zeros(WIDTH, dtype=DTYPE)
        self.outputs: dict[int, list[Any]] = {}
        self.live: list[int] = []

    def inputs(self, microbatch: int) -> list[Any]:
        whole = Layout((B,) * self.executor.mesh.ndim)
        named = dict(zip("xt", batch_of(microbatch), strict=True)) | {"seen": self.seen.clone()}
        buffers, inputs, _ = names_of(self.number, self.total)
        return [self.executor.give(named[name], whole) for name in (*buffers, *inputs)]

    def take(self, microbatch: int, outputs: list[Any], buffers: list[Any]) -> None:
        self.outputs[microbatch] = outputs
        if buffers:
            self.seen = self.executor.take(buffers[0]).clone()


def reference(
    total: int, microbatches: int, first_step: int = 0, root: str = "loss"
) -> dict[str, Any]:
    """The unsplit model: mean loss, gradients by stage and name, the buffer, outputs.

    root: what is differentiated, "loss" or "h"; "x" has the gradient of the last microbatch's x.
    """
    weights = [
        {n: w.requires_grad_() for n, w in parameters_of(number).items()} for number in range(total)
    ]
    comm = SimulatedCommunicator(ALONE, (), SEED)
    seen, losses, outputs = torch.zeros(WIDTH, dtype=DTYPE), [], []
    for microbatch in range(microbatches):
        comm.step = first_step + microbatch
        x, t = batch_of(microbatch)
        x.requires_grad_()
        values: tuple[Any, ...] = ()
        for number in range(total):
            named = {"x": x, "t": t, "seen": seen.detach()}
            buffers, inputs, _ = names_of(number, total)
            given = [named[name] for name in (*buffers, *inputs)]
            values = stage(number, total)(comm, *weights[number].values(), *given, *values)
            if number == 0:
                *values, seen = values
        loss, h = values
        {"loss": loss / microbatches, "h": h.sum()}[root].backward()
        losses.append(loss.detach())
        outputs.append(h.detach())
    return {
        "loss": torch.stack(losses).mean(),
        "grads": [{n: w.grad for n, w in each.items()} for each in weights],
        "seen": seen.detach(),
        "outputs": outputs,
        "x": x.grad,
    }
