"""What presets ask of a model's graph: its products with weights, and its blocks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from autoplan.strategies.matmul import RULES as PRODUCTS

if TYPE_CHECKING:
    from autoplan.capture import Captured


def paths_of_weighted_products(captured: Captured) -> list[str]:
    """Modules with a matrix product that reads a parameter, directly or through views of it."""
    parameters = {each.node for each in captured.inputs_of("parameter")}
    derived = set(parameters)
    paths: dict[str, None] = {}
    for node in captured.graph.nodes:
        if node.op != "call_function":
            continue
        operands = [each.name for each in node.all_input_nodes]
        if operands and all(name in derived for name in operands):
            derived.add(node.name)
        elif str(node.target) in PRODUCTS and any(name in derived for name in operands):
            paths[node.meta["path"]] = None
    return list(paths)


def blocks(captured: Captured) -> list[str]:
    """Numbered modules with several weighted products: the layers of a transformer."""
    counts: dict[str, int] = {}
    for path in paths_of_weighted_products(captured):
        match = re.match(r"^(?:.*?\.)?\d+(?=\.)", path)
        if match:
            counts[match.group(0)] = counts.get(match.group(0), 0) + 1
    return [path for path, count in counts.items() if count > 1]
