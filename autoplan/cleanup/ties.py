"""Parameters that a model has under several paths."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn


def share_tied_parameters(
    graph: fx.Graph, model: nn.Module, kinds: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Let every use of a tied parameter read the path it appears under first; by identity."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), path)
        if kept != path:
            aliases[path] = kept
    placeholders = {
        kinds[node.name][1]: node
        for node in graph.find_nodes(op="placeholder")
        if kinds.get(node.name, ("", ""))[0] == "parameter"
    }
    for path, kept in aliases.items():
        if path in placeholders and kept in placeholders:
            placeholders[path].replace_all_uses_with(placeholders[kept])
    return aliases
