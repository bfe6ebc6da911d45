"""Emission: the nodes of recomputed blocks become parts of the body, each called as one."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from autoplan.memory.schedule import Block
from autoplan.runtime.last_uses import mark_last_uses
from autoplan.runtime.program import Program
from autoplan.runtime.recompute import with_parts


def recompute_blocks(program: Program, blocks: Sequence[Block]) -> Program:
    """The program whose body recomputes `blocks`; nodes of the body know their site by `maker`."""
    if not blocks:
        return program
    number = {at: place for place, block in enumerate(blocks) for at in block.sites}
    members: list[list[fx.Node]] = [[] for _ in blocks]
    for node in program.body.graph.nodes:
        if node.meta.get("maker") in number:
            members[number[node.meta["maker"]]].append(node)
    parts = [
        _part(block.name, nodes) for block, nodes in zip(blocks, members, strict=True) if nodes
    ]
    graph = _calling(program.body.graph, parts)
    return replace(program, body=with_parts(graph, [(part.name, part.module) for part in parts]))


@dataclass(frozen=True, eq=False)
class _Part:
    """Nodes of a body as a module of their own, and the values that enter and leave it."""

    name: str
    path: str
    nodes: tuple[fx.Node, ...]
    given: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]
    module: fx.GraphModule


def _part(path: str, nodes: Sequence[fx.Node]) -> _Part:
    inside = set(nodes)
    given = dict.fromkeys(
        each for node in nodes for each in node.all_input_nodes if each not in inside
    )
    comm = next(node for node in nodes[0].graph.nodes if node.op == "placeholder")
    given = {comm: None} | given
    results = tuple(node for node in nodes if not inside.issuperset(node.users))
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in given:
        values[node] = graph.placeholder(node.name)
        values[node].meta["note"] = node.meta.get("note", "")
    for node in nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(tuple(values[node] for node in results))
    mark_last_uses(graph)
    module = with_parts(graph, ())
    return _Part(_name(path), path, tuple(nodes), tuple(given), results, module)


def _name(path: str) -> str:
    return "recomputed_" + re.sub(r"\W+", "_", path).strip("_")


def _calling(graph: fx.Graph, parts: Iterable[_Part]) -> fx.Graph:
    """The graph with a call in place of every part, after all that it reads."""
    part_of = {node: part for part in parts for node in part.nodes}
    result = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    # By need, not by position: what only a later part reads may stand between the nodes of one.
    waiting = list(reversed(graph.nodes))
    entered: set[fx.Node] = set()
    while waiting:
        node = waiting[-1]
        part = part_of.get(node)
        needed = node.all_input_nodes if part is None else part.given
        missing = [each for each in needed if each not in values]
        if node not in values and missing:
            if node in entered:
                raise ValueError(f"{node} needs itself: a part of the program is not in one piece")
            entered.add(node)
            waiting += reversed(missing)
            continue
        waiting.pop()
        if node in values:
            continue
        if part is None:
            values[node] = result.node_copy(node, values.__getitem__)
        else:
            values |= dict.fromkeys(part.nodes) | _call(result, part, values)  # type: ignore[arg-type]
    mark_last_uses(result)
    return result


def _call(graph: fx.Graph, part: _Part, values: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Call a part, and take its results apart."""
    called = graph.call_module(part.name, tuple(values[node] for node in part.given))
    called.meta["note"] = f"{part.path}: computed again in backward"
    found = {}
    for position, node in enumerate(part.results):
        found[node] = graph.create_node(
            "call_function", operator.getitem, (called, position), {}, name=node.name
        )
        found[node].meta["note"] = node.meta.get("note", "")
    return found
