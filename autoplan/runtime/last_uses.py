"""Last uses: which values of a graph nobody reads any more, for the lockstep interpreter."""

from __future__ import annotations

from torch import fx


def mark_last_uses(graph: fx.Graph) -> None:
    """Note on each node which values nobody reads after it."""
    seen: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        spent = [each for each in dict.fromkeys(node.all_input_nodes) if each not in seen]
        seen.update(spent)
        if node.op != "output":
            node.meta["last_uses"] = spent
