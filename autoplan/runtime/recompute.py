"""Recomputed parts of a program: forward keeps nothing of them, backward runs them again.

A part is a submodule of the body, called through `torch.utils.checkpoint`; its second run ends as
soon as everything that backward needs has been made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from autoplan.runtime.communicator import Communicator


class Recomputed(nn.Module):
    """A part of a program, `part(comm, *values) -> tuple`, whose values are not kept."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__()
        self.part = part

    def forward(self, comm: Communicator, *values: Any) -> Any:
        return run_again_in_backward(lambda *given: self.part(comm, *given), [comm], values)


def run_again_in_backward(
    run: Callable[..., Any], comms: Sequence[Communicator], values: Sequence[Any]
) -> Any:
    """`run(*values)`, which backward runs again, at the same step of random numbers.

    Random numbers depend on the communicators' step alone, so that no state is kept beside it.
    """
    step = comms[0].step

    def at_its_step(*given: Any) -> Any:
        with _step(comms, step):
            return run(*given)

    return checkpoint(at_its_step, *values, use_reentrant=False, preserve_rng_state=False)


@contextlib.contextmanager
def _step(comms: Sequence[Communicator], step: int) -> Iterator[None]:
    """The communicators at `step`, and where they were afterwards."""
    before = [comm.step for comm in comms]
    for comm in comms:
        comm.step = step
    try:
        yield
    finally:
        for comm, own in zip(comms, before, strict=True):
            comm.step = own


def parts_of(module: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """The recomputed parts of a program's module, by the names that its graph calls them by."""
    for node in module.graph.nodes:
        if node.op == "call_module":
            part = module.get_submodule(str(node.target))
            assert isinstance(part, Recomputed)
            yield str(node.target), part.part


def with_parts(graph: fx.Graph, parts: Sequence[tuple[str, fx.GraphModule]]) -> fx.GraphModule:
    """A module of `graph`, which calls the recomputed `parts`."""
    root = nn.Module()
    for name, part in parts:
        root.add_module(name, Recomputed(part))
    return fx.GraphModule(root, graph)
