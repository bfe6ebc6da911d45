"""The hints of each pipeline stage: they are read once, on the whole model, and then shared out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoplan.capture import Captured
from autoplan.hints import Hint
from autoplan.hints.narrowing import nodes_pinned


def hints_by_stage(
    captured: Captured, hints: Sequence[Hint], stages: Sequence[Captured]
) -> tuple[tuple[Hint, ...], ...]:
    """Of each stage, those of `hints` that speak of something in it.

    Hints on storage and use go where the parameter is read; on values, where the node is computed
    or received (what leaves a module is seen in the whole model `captured` only); on ops, where
    the module has ops of its own. Globs, which presets write, go everywhere, stage hints nowhere:
    they have done their work. Raises HintError for a hint that pins nothing in the whole model.
    """
    spread = _with_nodes(captured, hints)
    everywhere = _ops_by_module(captured)
    result = []
    for stage in stages:
        parameters = {each.path for each in stage.inputs_of("parameter")}
        nodes = {node.name for node in stage.graph.nodes}
        ops = _ops_by_module(stage)
        kept: list[Hint] = []
        partly: set[str] = set()
        for hint in spread:
            if hint.at in ("storage", "use", "gather"):
                if _is_glob(hint) or hint.pattern in parameters:
                    kept.append(hint)
            elif hint.at == "value":
                if hint.node in nodes:
                    kept.append(hint)
            elif hint.at == "op":
                here = ops.get(hint.pattern, 0)
                if here or _is_glob(hint):
                    kept.append(hint)
                if here < everywhere.get(hint.pattern, 0):
                    partly.add(hint.origin)
        result.append(
            tuple(
                replace(each, elsewhere=True) if each.at == "op" and each.origin in partly else each
                for each in kept
            )
        )
    return tuple(result)


def _with_nodes(captured: Captured, hints: Sequence[Hint]) -> list[Hint]:
    """Hints on values name their nodes."""
    others = [hint for hint in hints if hint.at != "value"]
    pinned = nodes_pinned(captured, hints)
    return [*others, *(replace(hint, node=node.name) for node, hint in pinned)]


def _ops_by_module(captured: Captured) -> dict[str, int]:
    """How many ops each module has itself."""
    counts: dict[str, int] = {}
    for node in captured.graph.nodes:
        if node.op == "call_function":
            path = str(node.meta.get("path", ""))
            counts[path] = counts.get(path, 0) + 1
    return counts


def _is_glob(hint: Hint) -> bool:
    return any(sign in hint.pattern for sign in "*?[")
