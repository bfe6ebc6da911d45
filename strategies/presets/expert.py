"""Expert parallelism: the experts of each mixture spread over the ranks that share a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from autoplan.errors import ConfigError
from autoplan.hints import Hint
from autoplan.layouts import Split
from autoplan.strategies.experts import RULES as MIXTURES
from autoplan.strategies.presets.data import data

if TYPE_CHECKING:
    from autoplan.capture import Captured

_WEIGHT = 1
"""The operand of a product of grouped rows that has a matrix for each expert."""


def expert(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Experts split over `axis`, rows sent to theirs and back; the rest as in data parallelism.

    Raises ConfigError for a model without experts, and where a rank would be left without one.
    """
    origin = "preset 'expert'"
    experts = expert_parameters(captured)
    if not experts:
        known = ", ".join(sorted({name.split(".")[1] for name in MIXTURES}))
        raise ConfigError(
            f"preset 'expert' splits experts, and the model multiplies none (no {known}); give "
            "it a mixture whose experts are one tensor, or use preset='data'."
        )
    for path, count in experts.items():
        if (size - 1) * -(-count // size) >= count:
            fitting = [n for n in range(2, count + 1) if (n - 1) * -(-count // n) < count]
            raise ConfigError(
                f"preset 'expert': {count} experts ({path}) leave some of the {size} ranks of axis "
                f"{axis!r} without one; use {', '.join(map(str, fitting)) or 'no'} ranks."
            )
    for hint in data(captured, axis, size):
        if hint.pattern not in experts:
            yield replace(hint, origin=origin)
    for path in experts:
        yield Hint(path, "storage", {axis: frozenset({Split(0)})}, origin)
        yield Hint(path, "use", {axis: frozenset({Split(0)})}, origin)
    yield Hint("*", "op", {axis: frozenset({"te"})}, origin, frozenset(MIXTURES), required=False)


def expert_parameters(captured: Captured) -> dict[str, int]:
    """Parameters with a matrix for each expert in their first dimension, and how many those are."""
    paths = {each.node: each.path for each in captured.inputs_of("parameter")}
    found: dict[str, int] = {}
    for node in captured.graph.nodes:
        if node.op == "call_function" and str(node.target) in MIXTURES:
            origin = _origin(node.args[_WEIGHT])
            count = node.args[_WEIGHT].meta["val"].shape[0]
            if origin.name in paths and origin.meta["val"].shape[0] == count:
                found[paths[origin.name]] = count
    return found


def _origin(node: fx.Node) -> fx.Node:
    """What a value is made of, as long as it is made of one tensor alone."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return node
