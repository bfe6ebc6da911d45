"""Split: a captured model becomes a chain of stages, each a captured model of its own."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from autoplan.capture import Captured, GraphInput
from autoplan.pipelining.pieces import Pieces, Roles
from autoplan.sites import node_meta


@dataclass(frozen=True)
class Split:
    """A model's stages in order, and what they have in common.

    `owners`: of each flat output of the model, the stage that makes it; `shared`: paths of the
    parameters that several stages read, with these stages.
    """

    stages: tuple[Captured, ...]
    owners: tuple[int, ...]
    shared: Mapping[str, tuple[int, ...]]


def split(captured: Captured, pieces: Pieces, stage_of: Sequence[int]) -> Split:
    """Cut at the stages of the pieces, which do not fall: `stage_of[piece]`.

    A value that a later stage reads is sent from stage to stage. What depends on arguments or on
    parameters alone is computed by every stage that reads it. The loss leaves the last stage.
    """
    roles = Roles.of(captured)
    home = {name: stage_of[piece] for name, piece in pieces.of.items()}
    last = max(stage_of)
    loss = captured.loss_position
    until = _travels(captured, roles, home, last, loss)
    owners = _owners(captured, roles, home, last, loss)
    stages = tuple(
        _Stage(captured, roles, home, until, owners, stage, loss).captured()
        for stage in range(last + 1)
    )
    readers: dict[str, list[int]] = {}
    for number, stage in enumerate(stages):
        for each in stage.inputs_of("parameter"):
            readers.setdefault(each.path, []).append(number)
    shared = {path: tuple(found) for path, found in readers.items() if len(found) > 1}
    return Split(stages, owners, shared)


def crossing_values(captured: Captured, pieces: Pieces) -> list[list[fx.Node]]:
    """What a cut before each piece sends: one list a piece, and the last for the end."""
    roles = Roles.of(captured)
    last = len(pieces) - 1
    until = _travels(captured, roles, pieces.of, last, captured.loss_position)
    crossing: list[list[fx.Node]] = [[] for _ in range(len(pieces) + 1)]
    for node, end in until.items():
        for cut in range(pieces.of[node.name] + 1, end + 1):
            crossing[cut].append(node)
    return crossing


def _travels(
    captured: Captured,
    roles: Roles,
    home: Mapping[str, int],
    last: int,
    loss: int | None,
) -> dict[fx.Node, int]:
    """Values that leave their stage, in graph order, and the last stage that reads them."""
    until: dict[fx.Node, int] = {}
    calls = [node for node in captured.graph.nodes if node.name in roles.body]
    for node in calls:
        if isinstance(node.meta.get("val"), (tuple, list)):
            continue  # its results travel, one by one
        ends = [home[user.name] for user in node.users if user.name in home]
        if loss is not None and captured.output_nodes[loss] is node:
            ends.append(last)
        if ends and max(ends) > home[node.name]:
            until[node] = max(ends)
    return until


def _owners(
    captured: Captured, roles: Roles, home: Mapping[str, int], last: int, loss: int | None
) -> tuple[int, ...]:
    found = []
    for position, each in enumerate(captured.output_nodes):
        known = isinstance(each, fx.Node) and each.name in home
        found.append(last if position == loss or not known else home[each.name])
    return tuple(found)


def _needed_by(loss: fx.Node | None, captured: Captured) -> set[fx.Node]:
    """What the loss depends on; everything where there is none."""
    if loss is None:
        return set(captured.graph.nodes)
    needed: set[fx.Node] = set()
    waiting = [loss]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


class _Stage:
    """One stage under construction: a graph of its own with the nodes' own names."""

    def __init__(
        self,
        captured: Captured,
        roles: Roles,
        home: Mapping[str, int],
        until: Mapping[fx.Node, int],
        owners: Sequence[int],
        stage: int,
        loss: int | None,
    ) -> None:
        self.whole, self.roles, self.home = captured, roles, home
        self.until, self.owners, self.stage, self.loss = until, owners, stage, loss
        self.needed = _needed_by(None if loss is None else captured.output_nodes[loss], captured)
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}

    def captured(self) -> Captured:
        """The stage as a model: received values are its inputs, too."""
        whole, stage = self.whole, self.stage
        received = [n for n, end in self.until.items() if self.home[n.name] < stage <= end]
        sent = [n for n, end in self.until.items() if self.home[n.name] <= stage < end]
        outputs = [
            each if owner == stage else None
            for each, owner in zip(whole.output_nodes, self.owners, strict=True)
        ]
        updates = self._updates()
        roots = [each for each in (*outputs, *sent, *updates.values()) if isinstance(each, fx.Node)]
        kept = self._kept(roots, received)
        inputs = [each for each in whole.inputs if each.node in kept]
        names = {node.name: node for node in whole.graph.nodes}
        for each in inputs:
            self._placeholder(names[each.node])
        for node in received:
            inputs.append(GraphInput(node.name, "received", _maker(node), node_meta(node)))
            self._placeholder(node)
        for node in whole.graph.nodes:
            if node.name in kept and node.op == "call_function":
                self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
                self.copies[node].name = node.name
        results = [*outputs, *sent, *updates.values()]
        self.graph.output(tuple(self.copies[e] if isinstance(e, fx.Node) else e for e in results))
        used = {each.path for each in inputs if each.kind == "constant"}
        return replace(
            whole,
            graph=self.graph,
            inputs=tuple(inputs),
            constants={path: value for path, value in whole.constants.items() if path in used},
            aliases={a: path for a, path in whole.aliases.items() if path in _parameters(inputs)},
            updates=tuple(updates),
            pins=tuple(pin for pin in whole.pins if pin.node in kept),
            sent=tuple(node.name for node in sent),
            loss_elsewhere=self.loss is not None and self.owners[self.loss] != stage,
            beside_loss=frozenset(n.name for n in (*received, *sent) if n not in self.needed),
        )

    def _updates(self) -> dict[str, fx.Node]:
        """Buffers that this stage changes, with their new values."""
        return {
            path: node
            for path, node in self.whole.updated_buffers.items()
            if self.home.get(node.name, 0) == self.stage
        }

    def _kept(self, roots: Sequence[fx.Node], received: Sequence[fx.Node]) -> set[str]:
        """Names of the nodes that this stage computes, and of the model's inputs that it reads."""
        kept: set[str] = set()
        given = {node.name for node in received}
        mine = [n for n in self.whole.graph.nodes if self.home.get(n.name) == self.stage]
        waiting = [*mine, *roots]
        while waiting:
            node = waiting.pop()
            if node.name in kept or node.name in given:
                continue
            if node.name in self.home and self.home[node.name] != self.stage:
                assert node.target is not operator.getitem, node
                raise AssertionError(f"{node} is read by stage {self.stage} and was not sent")
            kept.add(node.name)
            waiting += node.all_input_nodes
        return kept

    def _placeholder(self, node: fx.Node) -> None:
        copy = self.graph.placeholder(node.name)
        copy.name = node.name
        copy.meta = dict(node.meta)
        self.copies[node] = copy


def _maker(node: fx.Node) -> str:
    """A name for a value that travels: the module that makes it."""
    return str(node.meta.get("path") or node.name)


def _parameters(inputs: Sequence[GraphInput]) -> set[Any]:
    return {each.path for each in inputs if each.kind == "parameter"}
