"""Once: what of a graph runs once a step, and what the body runs so that it may gather by itself.

A parameter that the body gathers is read by the body alone. Views of parameters cost nothing: those
that only the body reads run there too, behind the gathering.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from autoplan.capture import Captured
from autoplan.sites import describe
from autoplan.strategies.random import RANDOM_OPS
from autoplan.strategies.rule import Rule


@dataclass(frozen=True)
class Once:
    """Nodes by when they run. prologue: once a step. views: of parameters, in the body.

    kept: those of `views` that an op may keep for its backward, however it is split.
    """

    prologue: frozenset[fx.Node] = frozenset()
    views: frozenset[fx.Node] = frozenset()
    kept: frozenset[fx.Node] = frozenset()


def runs_once_a_step(captured: Captured, rules: Mapping[str, Rule]) -> Once:
    """Nodes that depend on parameters and constants alone, less views that the body alone reads."""
    prologue, parameters = _made_of_parameters(captured, rules)
    views: set[fx.Node] = set()
    kept: set[fx.Node] = set()
    for node in reversed(captured.graph.nodes):
        if node.op != "call_function" or node not in parameters or not node.users:
            continue
        in_body = (
            u.op == "call_function" and (u in views or u not in prologue) for u in node.users
        )
        if node.name not in captured.sent and all(in_body):
            views.add(node)
            if any(_may_keep(user, node, kept, views, rules) for user in node.users):
                kept.add(node)
    return Once(frozenset(prologue - views), frozenset(views), frozenset(kept))


def _made_of_parameters(
    captured: Captured, rules: Mapping[str, Rule]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """Nodes that depend on no argument; those among them that are parameters or views of one."""
    kinds = {each.node: each for each in captured.inputs}
    found: set[fx.Node] = set()
    parameters: set[fx.Node] = set()
    for node in captured.graph.nodes:
        given = kinds.get(node.name) if node.op == "placeholder" else None
        if given is not None:
            if given.kind == "parameter":
                parameters.add(node)
            stays = given.path not in captured.updates
            if given.kind in ("parameter", "buffer", "constant") and stays:
                found.add(node)
        elif node.op == "call_function" and str(node.target) not in RANDOM_OPS:
            operands = node.all_input_nodes
            if all(each in found for each in operands):
                found.add(node)
            if len(operands) == 1 and operands[0] in parameters and _is_view(node, rules):
                parameters.add(node)
    return found, parameters


def _is_view(node: fx.Node, rules: Mapping[str, Rule]) -> bool:
    rule = rules.get(str(node.target))
    return node.target is operator.getitem or (rule is not None and rule.kind == "free")


def _may_keep(
    user: fx.Node, node: fx.Node, kept: set[fx.Node], views: set[fx.Node], rules: Mapping[str, Rule]
) -> bool:
    """Whether a reader of a view, or of a view of it, keeps it for its backward."""
    if user in views:
        return user in kept
    rule = rules.get(str(user.target))
    if rule is None:
        return True
    call, operands = describe(user)
    saved = rule.saved(call)
    return any(operand is node and at in saved for at, operand in enumerate(operands))
