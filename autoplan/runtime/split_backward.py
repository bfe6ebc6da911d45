"""A backward in two halves: gradients of inputs at once, those of leaves (weights) later.

Zero-bubble schedules fill idle time with the second half (Qi et al. 2023, "Zero Bubble Pipeline
Parallelism"). Autograd runs, of each node, only what is asked for. So the first half runs the
trunk, the nodes on the ways to the inputs, and notes which gradients reach the forks, where a
branch without a way to the inputs leaves for the leaves; the second half runs every fork once more,
for its branch alone.

Nodes are visited in the order of the graph, the same on every rank: there may be collectives in it.
(torch.distributed.pipelining has such functions too, as of torch 2.13. Theirs lose leaves whose way
to the roots meets no input, and visit nodes in the order of their addresses.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Seed = tuple[GradientEdge, Tensor]
"""Where a backward starts, and with which gradient."""


class Halves:
    """The backward of one graph, from `seeds`: `inputs` first, `leaves` once after it."""

    def __init__(self, seeds: Sequence[Seed]) -> None:
        self._seeds = list(seeds)
        # What `leaves` runs: seeds, and the leaves that are theirs.
        self._forks: list[tuple[list[Seed], list[Tensor]]] = []
        self._others: list[tuple[list[Seed], list[Tensor]]] = []

    def inputs(self, edges: Sequence[GradientEdge]) -> list[Tensor | None]:
        """Gradients at `edges`, None where there is none. Leaves get none yet."""
        seeds, self._seeds = self._seeds, []
        graph = _Graph([edge.node for edge, _ in seeds], [edge.node for edge in edges])
        found: Sequence[Tensor | None] = [None] * len(edges)
        trunk = [seed for seed in seeds if seed[0].node in graph.trunk]
        if trunk:
            handles = [self._note(fork, own) for fork, own in graph.private.items()]
            try:
                found = torch.autograd.grad(
                    [edge for edge, _ in trunk],
                    edges,
                    [grad for _, grad in trunk],
                    retain_graph=True,
                    allow_unused=True,
                )
            finally:
                for handle in handles:
                    handle.remove()
        # Not from several forks one by one: on its way from one, autograd would pass the others.
        aside = [seed for seed in seeds if seed[0].node not in graph.trunk]
        self._others = [(aside, graph.aside), (seeds, graph.shared)]
        self._others = [each for each in self._others if each[1]]
        return list(found)

    def _note(self, fork: Node, leaves: list[Tensor]) -> Any:
        def hook(grads: tuple[Tensor | None, ...]) -> None:
            seeds = [(GradientEdge(fork, n), g) for n, g in enumerate(grads) if g is not None]
            self._forks.append((seeds, leaves))

        return fork.register_prehook(hook)

    def leaves(self) -> None:
        """The gradients of the leaves, added to what they have; frees the graph on the way.

        Leaves to which several ways lead have their gradients of the whole graph, for whose sake
        the trunk runs again.
        """
        parts = [*reversed(self._others), *reversed(self._forks)]
        self._forks.clear()
        self._others.clear()
        while parts:  # the farthest from the inputs first: nothing else holds its graph
            seeds, leaves = parts.pop()
            edges, grads = [edge for edge, _ in seeds], [grad for _, grad in seeds]
            del seeds
            if edges:
                torch.autograd.backward(edges, grads, retain_graph=bool(parts), inputs=leaves)
            del edges, grads


class _Graph:
    """The ways from `roots` to `inputs` and to leaves.

    trunk: nodes with a way to an input, inputs too. private: of each fork, the leaves to which no
    other way leads; aside: leaves to which only roots outside the trunk lead; shared: the rest.
    """

    def __init__(self, roots: Sequence[Node], inputs: Sequence[Node]) -> None:
        ends = frozenset(inputs)
        nodes = _walk(roots, lambda node: () if node in ends else _after(node))
        readers: dict[Node, list[Node]] = {}
        for node in nodes:
            for after in () if node in ends else _after(node):
                readers.setdefault(after, []).append(node)
        self.trunk = _walk(inputs, lambda node: readers.get(node, ()))
        ways: dict[Node, list[Node | None]] = {}
        for fork in nodes:
            if fork in self.trunk and fork not in ends:
                self._lead(fork, _after(fork), ways)
        self._lead(None, roots, ways)
        self.private: dict[Node, list[Tensor]] = {}
        self.aside: list[Tensor] = []
        self.shared: list[Tensor] = []
        for leaf, origins in ways.items():
            tensor: Tensor = leaf.variable  # type: ignore[attr-defined]
            if len(origins) > 1:
                self.shared.append(tensor)
            elif origins[0] is None:
                self.aside.append(tensor)
            else:
                self.private.setdefault(origins[0], []).append(tensor)

    def _lead(
        self, origin: Node | None, starts: Iterable[Node], ways: dict[Node, list[Node | None]]
    ) -> None:
        """Note which leaves the branches among `starts` lead to."""
        for node in _walk([start for start in starts if start not in self.trunk], _after):
            if hasattr(node, "variable"):  # where a leaf's gradient adds up
                ways.setdefault(node, []).append(origin)


def _after(node: Node) -> list[Node]:
    return [each for each, _ in node.next_functions if each is not None]


def _walk(starts: Iterable[Node], step: Callable[[Node], Iterable[Node]]) -> dict[Node, None]:
    """All nodes on the ways from `starts`, in a fixed order."""
    found = dict.fromkeys(starts)
    waiting = list(found)
    while waiting:
        for node in step(waiting.pop()):
            if node not in found:
                found[node] = None
                waiting.append(node)
    return found
