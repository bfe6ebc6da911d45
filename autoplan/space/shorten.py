"""Shorten: a chain of equal blocks becomes three of them, which stand for all.

The first and the last block of a run meet other neighbours than those between them; the one in the
middle stands for all the others. What a search asks of hundreds of shapes it asks of the short
model; what it answers is planned whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from autoplan.capture import Captured
from autoplan.pipelining.pieces import Pieces, Roles
from autoplan.pipelining.splitting import crossing_values
from autoplan.sites import tensor_of

_KEPT = 3
"""Equal blocks in a row that stay."""
_LONGEST = 4
"""Pieces of a block at most: the layers of an encoder's or decoder's block are pieces."""


@dataclass(frozen=True)
class Short:
    """A model with fewer blocks.

    `stands[i]`: the number in `pieces` of what the whole model's piece i is like.
    """

    captured: Captured
    pieces: Pieces
    stands: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many pieces of the whole model each piece stands for."""
        return tuple(self.stands.count(number) for number in range(len(self.pieces)))

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return len(self.stands) == len(self.pieces)


def shorten(captured: Captured, pieces: Pieces) -> Short:
    """Leave out what repeats: of more than three equal blocks in a row three stay."""
    reader = _Reader(captured, pieces)
    stands = list(range(len(pieces)))
    dropped: set[int] = set()
    instead: dict[fx.Node, fx.Node] = {}
    for first, period, repeats in reader.runs():
        if repeats <= _KEPT:
            continue
        kept, last = first + _KEPT * period, first + repeats * period
        for number in range(first, last):
            block, place = divmod(number - first, period)
            block = 0 if block == 0 else 2 if block == repeats - 1 else 1
            stands[number] = first + block * period + place
        dropped.update(range(kept, last))
        instead |= zip(reader.crossing[last], reader.crossing[kept], strict=True)
    if not dropped:
        return Short(captured, pieces, tuple(stands))
    short = _without(captured, pieces, dropped, instead)
    stays = [number for number in range(len(pieces)) if number not in dropped]
    number_of = {old: new for new, old in enumerate(stays)}
    names = {node.name for node in short.graph.nodes}
    of = {
        name: number_of[old]
        for name, old in pieces.of.items()
        if old in number_of and name in names
    }
    there = {each.path for each in short.inputs_of("parameter")}
    kept_pieces = Pieces(
        tuple(pieces.names[old] for old in stays),
        of,
        tuple(pieces.outer[old] for old in stays),
        tuple(tuple(p for p in pieces.parameters[old] if p in there) for old in stays),
    )
    return Short(short, kept_pieces, tuple(number_of[old] for old in stands))


class _Reader:
    """What a piece is, apart from where in the model it stands."""

    def __init__(self, captured: Captured, pieces: Pieces) -> None:
        self.captured, self.pieces = captured, pieces
        self.roles = Roles.of(captured)
        self.crossing = crossing_values(captured, pieces)
        self.kinds = {each.node: each for each in captured.inputs}
        self.members: list[list[fx.Node]] = [[] for _ in pieces.names]
        self.place: dict[fx.Node, int] = {}
        for node in captured.graph.nodes:
            piece = pieces.of.get(node.name)
            if piece is not None:
                self.place[node] = len(self.members[piece])
                self.members[piece].append(node)
        self.returned = set(captured.graph.output_node().all_input_nodes)
        readers: dict[str, int] = {}
        for paths in pieces.parameters:
            for path in paths:
                readers[path] = readers.get(path, 0) + 1
        self.shared = {path for path, count in readers.items() if count > 1}
        self._known: dict[fx.Node, Hashable] = {}

    def runs(self) -> list[tuple[int, int, int]]:
        """First piece, period and number of repeats of what repeats: groups of `period` pieces that
        are equal one by one, and pass on the same values from group to group."""
        prints = [self._print(number) for number in range(len(self.pieces))]
        passed = [self._passed(number) for number in range(len(self.pieces) + 1)]
        found = []
        first = 0
        while first < len(prints):
            choices = [
                (self._repeats(prints, passed, first, period) * period, period)
                for period in range(1, _LONGEST + 1)
            ]
            length, period = max(choices, key=lambda each: (each[0], -each[1]))
            found.append((first, period, length // period))
            first += length
        return found

    def _repeats(
        self, prints: list[Hashable], passed: list[Hashable], first: int, period: int
    ) -> int:
        """How often the group of `period` pieces from `first` on stands there; 1 if it is alone.

        What follows the last one reads it as the group reads itself.
        """
        group = prints[first : first + period]
        if len(group) < period or None in group:
            return 1 if period == 1 else 0
        link = passed[first + period]
        count = 1
        while (
            prints[first + count * period : first + (count + 1) * period] == group
            and passed[first + (count + 1) * period] == link
        ):
            count += 1
        return count if period == 1 or count > _KEPT else 0

    def _passed(self, cut: int) -> Hashable:
        """The values that cross a cut: by place in the piece before it, or older ones by name."""
        return tuple(
            ("made", self.place[node]) if self.pieces.of[node.name] == cut - 1 else node.name
            for node in self.crossing[cut]
        )

    def _print(self, number: int) -> Hashable:
        """None for a piece that is like no other: it returns something, or changes a buffer."""
        members = self.members[number]
        if any(node in self.returned for node in members):
            return None
        before = {node: at for at, node in enumerate(self.crossing[number])}

        def place(node: fx.Node) -> Hashable:
            if self.pieces.of.get(node.name) == number:
                return "own", self.place[node]
            if node in before:
                return "before", before[node]
            return self._outside(node)

        return tuple(_text(node, place) for node in members)

    def _outside(self, node: fx.Node) -> Hashable:
        """A value of no piece: by how it is computed; parameters and constants by their shape."""
        if node not in self._known:
            given = self.kinds.get(node.name)
            if given is not None and given.kind == "parameter" and given.path not in self.shared:
                self._known[node] = ("parameter", given.meta)
            elif given is not None and given.kind == "constant":
                self._known[node] = ("constant", given.meta)
            elif node.op == "placeholder" or node.name in self.roles.body:
                parent, output = tensor_of(node) if node.op == "call_function" else (node.name, 0)
                self._known[node] = (parent, output)
            else:
                self._known[node] = _text(node, self._outside)
        return self._known[node]


def _text(node: fx.Node, place: Any) -> Hashable:
    """An op with its operands and its result, as something to compare."""

    def operand(each: fx.Node) -> Any:
        return _Operand(place(each))

    args = fx.node.map_arg((node.args, node.kwargs), operand)
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    results = tuple((tuple(each.shape), each.dtype) for each in values if each is not None)
    return str(node.target), repr(args), results, bool(node.meta.get("requires_grad"))


@dataclass(frozen=True)
class _Operand:
    """Stands for a node in the text of an op."""

    what: Hashable


def _without(
    captured: Captured, pieces: Pieces, dropped: set[int], instead: Mapping[fx.Node, fx.Node]
) -> Captured:
    """The graph without the pieces `dropped`; whoever reads a key of `instead` reads its value."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = _needed(captured, pieces, dropped, instead)

    def copy_of(node: fx.Node) -> fx.Node:
        return copies[instead.get(node, node)]

    for node in captured.graph.nodes:
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], copy_of))
        elif node in needed:
            copies[node] = graph.node_copy(node, copy_of)
            copies[node].name = node.name
    inputs = tuple(each for each in captured.inputs if each.node in {node.name for node in copies})
    parameters = {each.path for each in inputs if each.kind == "parameter"}
    constants = {each.path for each in inputs if each.kind == "constant"}
    return replace(
        captured,
        graph=graph,
        inputs=inputs,
        constants={path: each for path, each in captured.constants.items() if path in constants},
        aliases={a: path for a, path in captured.aliases.items() if path in parameters},
        pins=tuple(pin for pin in captured.pins if pin.node in {node.name for node in copies}),
    )


def _needed(
    captured: Captured, pieces: Pieces, dropped: set[int], instead: Mapping[fx.Node, fx.Node]
) -> set[fx.Node]:
    """What the pieces that stay read, and all arguments."""
    needed: set[fx.Node] = set()
    kinds = {each.node: each.kind for each in captured.inputs}
    waiting = [
        node
        for node in captured.graph.nodes
        if node.op == "output"
        or (node.op == "placeholder" and kinds.get(node.name, "input") == "input")
        or (pieces.of.get(node.name, -1) >= 0 and pieces.of[node.name] not in dropped)
    ]
    while waiting:
        node = instead.get(waiting[-1], waiting[-1])
        waiting.pop()
        if node in needed:
            continue
        needed.add(node)
        waiting += [instead.get(each, each) for each in node.all_input_nodes]
    return needed
