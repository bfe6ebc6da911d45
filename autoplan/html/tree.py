"""The tree of a plan: modules, ops and parameters, blocks that are equal folded into one node."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from autoplan.plan import OperationRow, Plan, TensorRow
from autoplan.report_pipeline import located_tensors

NodeKind = Literal["module", "ops", "op", "parameter", "input"]
Place = tuple[int, str]
"""Stage, and the key of an op or the path of a tensor."""


@dataclass(eq=False)
class Node:
    """A module with its children, or an op or a tensor with its row.

    `members`: the names of the equal siblings that it stands for, its own first. "ops" is a run of
    ops of a module between its submodules.
    """

    kind: NodeKind
    name: str
    path: str
    stage: int = 0
    row: OperationRow | TensorRow | None = None
    children: list[Node] = field(default_factory=list)
    members: tuple[str, ...] = ()
    recomputed: bool = False

    @property
    def count(self) -> int:
        """How many equal siblings it is."""
        return max(1, len(self.members))

    @property
    def is_view(self) -> bool:
        """Whether it is an op that takes no time: it renames memory."""
        row = self.row
        return isinstance(row, OperationRow) and not row.forward_s and not row.backward_s

    def walk(self) -> Iterator[Node]:
        """Itself and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def seconds(self) -> float:
        """Of a step, in its ops, of all that it stands for."""
        row = self.row
        own = row.forward_s + row.backward_s if isinstance(row, OperationRow) else 0.0
        return self.count * (own + sum(child.seconds() for child in self.children))


@dataclass(frozen=True)
class Folding:
    """Which of the equal blocks something is in: the folded node, and the number of the member."""

    node: Node
    member: int


@dataclass(frozen=True)
class Tree:
    """`places`: every op and tensor of the plan -> its node; `within`: the folded blocks around."""

    root: Node
    places: dict[Place, Node]
    within: dict[Place, tuple[Folding, ...]]


def tree_of(plan: Plan) -> Tree:
    """All ops, parameters and arguments of a plan by module, in the order of the graph."""
    root = Node("module", plan.model, "")
    modules = {"": root}
    places: dict[Place, Node] = {}
    again = set(plan.recomputed)
    stages = plan.stages or (plan,)

    def module(path: str, stage: int) -> Node:
        if path not in modules:
            above, _, name = path.rpartition(".")
            node = Node("module", name, path, stage, recomputed=path in again)
            module(above, stage).children.append(node)
            modules[path] = node
        return modules[path]

    for row, number in located_tensors(plan):
        if row.kind != "input":
            continue
        known = next((places[n, row.path] for n in range(number) if (n, row.path) in places), None)
        node = known or Node("input", row.path, row.path, number, row)
        places[number, row.path] = node
        if known is None:
            root.children.append(node)
    for number, stage in enumerate(stages):
        for operation in stage.operations:
            name = operation.key.rpartition("/")[2]
            node = Node("op", name, operation.key, number, operation)
            module(operation.path, number).children.append(node)
            places[number, operation.key] = node
    for row, number in located_tensors(plan):
        if row.kind == "parameter":
            above, _, name = row.path.rpartition(".")
            node = Node("parameter", name, row.path, number, row)
            module(above, number).children.append(node)
            places[number, row.path] = node
    _gather_runs(root)
    return _folded(root, places)


def _gather_runs(node: Node) -> None:
    """Several ops in a row between submodules become one child."""
    for child in node.children:
        _gather_runs(child)
    if not any(child.kind == "module" for child in node.children):
        return
    children: list[Node] = []
    for is_op, run in groupby(node.children, lambda child: (child.kind == "op", child.stage)):
        ops = list(run)
        if not is_op[0] or len(ops) < 2:
            children += ops
            continue
        working = [op for op in ops if not op.is_view]
        if len(working) < 2 and len(ops) < 4:
            children += ops
            continue
        names = list(dict.fromkeys(op.name.partition("#")[0] for op in working or ops))
        name = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
        children.append(Node("ops", name, f"{node.path}/{ops[0].name}", is_op[1], children=ops))
    node.children = children


def _folded(root: Node, places: dict[Place, Node]) -> Tree:
    """Runs of equal numbered siblings as their first, which stands for all."""
    stands: dict[Node, Node] = {}
    inside: dict[Node, tuple[Folding, ...]] = {}
    kinds: dict[Hashable, int] = {}
    known: dict[Node, int] = {}

    def kind_of(node: Node) -> int:
        """A number that nodes share if they are equal but for the number of their block."""
        if node not in known:
            row = node.row
            said: Hashable = row
            if isinstance(row, OperationRow):
                said = (row.choice, row.layout, row.shape, row.forward_s, row.backward_s)
            elif row is not None:
                said = (row.kind, row.dtype, row.shape, row.layout, row.use, row.policy)
            children = tuple(map(kind_of, node.children))
            name = "" if node.name.isdecimal() else node.name
            key = (node.kind, name, node.stage, node.recomputed, said, children)
            known[node] = kinds.setdefault(key, len(kinds))
        return known[node]

    def visit(node: Node, around: tuple[Folding, ...]) -> None:
        inside[node] = around
        kept: list[Node] = []
        for _, run in groupby(node.children, lambda child: _fold_key(child, kind_of)):
            group = list(run)
            first = group[0]
            if len(group) > 1:
                first.members = tuple(each.name for each in group)
                for number, each in enumerate(group):
                    for one, other in zip(first.walk(), each.walk(), strict=True):
                        if other is not one:
                            stands.setdefault(other, one)
                        inside[other] = (*around, Folding(first, number))
            visit(first, (*around, Folding(first, 0)) if len(group) > 1 else around)
            kept.append(first)
        node.children = kept

    visit(root, ())

    def standing(node: Node) -> Node:
        while node in stands:
            node = stands[node]
        return node

    return Tree(
        root,
        {place: standing(node) for place, node in places.items()},
        {place: inside[node] for place, node in places.items()},
    )


def _fold_key(child: Node, kind_of: Callable[[Node], int]) -> Hashable:
    """What neighbours share that fold into one; every other node has one of its own."""
    if child.kind != "module" or not child.name.isdecimal():
        return id(child)
    return ("block", kind_of(child))
