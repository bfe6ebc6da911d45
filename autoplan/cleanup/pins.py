"""Values pinned inside forward: the op that marks them while a graph is captured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_LIBRARY: Any = torch.library.Library("autoplan", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("hint(Tensor(a) x, str layout, str place) -> Tensor(a)")
_LIBRARY.impl("hint", lambda x, layout, place: x.view_as(x), "CompositeImplicitAutograd")

HINT = torch.ops.autoplan.hint.default
"""Marks a value with a hint's text, and the file and line of the call; computes nothing."""

fx.node.has_side_effect(HINT)  # export keeps it where nothing reads its result


@dataclass(frozen=True)
class PinnedValue:
    """A value that `autoplan.hint` pins: a node, the hint's text, file and line of the call."""

    node: str
    layout: str
    place: str


def take_pins(graph: fx.Graph) -> list[tuple[fx.Node, str, str]]:
    """Remove the marks; returns the nodes that they were on, with text and place of each.

    Until then a mark stands between a value and its readers, so that no rewrite removes the value.
    """
    found: list[tuple[fx.Node, str, str]] = []
    for node in graph.find_nodes(op="call_function", target=HINT):
        args: Any = node.args
        if args not in found:
            found.append(args)
        node.replace_all_uses_with(args[0])
        graph.erase_node(node)
    return found


def pins_in_use(
    graph: fx.Graph, taken: list[tuple[fx.Node, str, str]], notes: list[str]
) -> tuple[PinnedValue, ...]:
    """The pins on values that the graph still computes; `notes` says which it does not."""
    alive = set(graph.nodes)
    for node, layout, place in taken:
        if node not in alive:
            notes.append(
                f"autoplan.hint(..., {layout!r}) at {place} pins a value that no one reads"
            )
    return tuple(PinnedValue(n.name, layout, place) for n, layout, place in taken if n in alive)
