"""Wiring: which op reads what another made, and the collectives on the way, from the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from autoplan.html.tree import Node, Place, Tree
from autoplan.pipelining.joined import sends_of
from autoplan.plan import Collective, Plan
from autoplan.sites import Site
from autoplan.why.question import Answer, Question
from autoplan.why.traffic import Transfer, caused


@dataclass(frozen=True)
class Asked:
    """A plan without a pipeline, or a stage, as the answer of its question.

    `sends`: of a stage, what it sends back, and what the stage before sends to it.
    """

    number: int
    question: Question
    given: Answer
    sends: tuple[Collective, ...] = ()


def asked_of(plan: Plan) -> tuple[Asked, ...]:
    """The questions of a plan or of its stages; none where the plan does not know its model."""
    found = []
    sends = sends_of(plan) if plan.stages else ()
    for number, stage in enumerate(plan.stages or (plan,)):
        origin = stage._origin
        if origin is None:
            return ()
        arriving = tuple(row for row in sends if plan.stage(row.path) == number - 1)
        found.append(Asked(number, *origin.answer(stage), arriving))
    return tuple(found)


@dataclass(eq=False)
class Wiring:
    """Edges between nodes of the tree, and the collectives of each.

    `edges`: what passes from one to another. `at`: collectives of a parameter on its way to its
    readers, inside of an op, or of what leaves the step. `between`: collectives from one of equal
    blocks to the next.
    """

    edges: dict[tuple[Node, Node], list[Transfer]] = field(default_factory=dict)
    at: dict[Node, list[Transfer]] = field(default_factory=dict)
    between: dict[Node, list[Transfer]] = field(default_factory=dict)


def wire(tree: Tree, asked: Sequence[Asked]) -> Wiring:
    """Everything that the ops of all stages read from each other."""
    wiring = Wiring()
    received: dict[str, Place] = {}
    for each in asked:
        _Stage(tree, each, wiring, received).add()
    return wiring


class _Stage:
    """One stage's part of the wiring."""

    def __init__(
        self, tree: Tree, asked: Asked, wiring: Wiring, received: dict[str, Place]
    ) -> None:
        self.tree, self.asked, self.wiring, self.received = tree, asked, wiring, received
        self.sites = asked.question.annotated.sites
        self.places = [*self._drawn()]

    def add(self) -> None:
        question, given = self.asked.question, self.asked.given
        keys = {key: at for at, key in enumerate(question.keys)}
        on_edge: dict[tuple[int, int], list[Transfer]] = {}
        for each in caused(question, given.choices, range(len(self.sites))):
            self._attach(each, keys, on_edge)
        waiting = self._arriving()
        for at, site in enumerate(self.sites):
            for source in site.inputs:
                moved = on_edge.pop((source.site, at), []) + waiting.pop(source.site, [])
                if self._is_passed(at):
                    waiting.setdefault(at, []).extend(moved)
                elif site.kind in ("op", "received"):
                    self._connect(source.site, at, moved)
                elif moved:
                    waiting.setdefault(at, []).extend(moved)
        for at, moved in waiting.items():
            if (place := self.places[at]) is not None:
                self.wiring.at.setdefault(self.tree.places[place], []).extend(moved)

    def _arriving(self) -> dict[int, list[Transfer]]:
        """The sends of every value that the stage receives: its part, by bytes, of all of them."""
        given = self.asked.given.choices
        received = [
            (at, site.outputs[0], site.candidates[given[at]].outputs[0])
            for at, site in enumerate(self.sites)
            if site.kind == "received"
        ]
        found: dict[int, list[Transfer]] = {}
        for row in self.asked.sends:
            forward = row.direction == "forward"
            pricer = self.asked.question.pricer
            held = {
                at: pricer.local_bytes(meta, layout)
                for at, meta, layout in received
                if forward or meta.requires_grad
            }
            whole = sum(held.values()) or 1
            for at, length in held.items():
                time_s = row.time_s * length / whole
                ends = (f"stage {self.asked.number - 1}", f"stage {self.asked.number}")
                send = Transfer(row.kind, length, row.count, row.axis, row.phase, row.direction,
                                time_s, float(row.count * length), *ends)  # fmt: skip
                found.setdefault(at, []).append(send)
        return found

    def _is_passed(self, at: int) -> bool:
        """Whether a site has no node of its own in the drawing: boxes and views."""
        site = self.sites[at]
        return site.kind == "box" or (site.call is not None and self._is_view(at))

    def _is_view(self, at: int) -> bool:
        node = self.tree.places.get((self.asked.number, self.asked.question.keys[at]))
        return node is not None and node.is_view

    def _drawn(self) -> Iterator[Place | None]:
        """For every site the place of the op or argument whose value it has."""
        found: list[Place | None] = []
        number, keys = self.asked.number, self.asked.question.keys
        for at, site in enumerate(self.sites):
            place: Place | None = None
            if site.kind == "received":
                place = self.received.get(site.name)
            elif site.kind == "input":
                place = (number, site.path)
            elif site.kind == "op" and not self._is_view(at):
                place = (number, keys[at])
            elif site.kind in ("op", "box", "sent"):
                sources = (found[each.site] for each in site.inputs)
                place = next((each for each in sources if each is not None), None)
                if site.kind == "sent" and place is not None:
                    self.received[site.name.removesuffix(":sent")] = place
            found.append(place if place in self.tree.places else None)
            yield found[-1]

    def _attach(
        self, each: Transfer, keys: dict[str, int], on_edge: dict[tuple[int, int], list[Transfer]]
    ) -> None:
        """To the edge that a collective is on, to its parameter, or to the op it runs in."""
        number = self.asked.number
        for text in (each.source.removesuffix(" as stored"), each.source):
            path = text.removeprefix("parameter ")
            node = self.tree.places.get((number, path)) if path != text else None
            if node is not None and node.kind == "parameter":
                self.wiring.at.setdefault(node, []).append(each)
                return
        source, target = keys.get(each.source), keys.get(each.target)
        if source is not None and target is not None and self._parameter_of(source) is None:
            on_edge.setdefault((source, target), []).append(each)
            return
        at = target if source is None else source
        if at is None:
            return
        place = self._parameter_of(at) or self.places[at]
        if place is not None and place in self.tree.places:
            self.wiring.at.setdefault(self.tree.places[place], []).append(each)

    def _parameter_of(self, at: int) -> Place | None:
        """The parameter that a site has, behind boxes and views."""
        site: Site = self.sites[at]
        while site.kind in ("box", "op") and site.inputs and site.parameter_only:
            site = self.sites[site.inputs[0].site]
        return (self.asked.number, site.path) if site.kind == "parameter" else None

    def _connect(self, source: int, at: int, moved: list[Transfer]) -> None:
        one, other = self.places[source], self.places[at]
        if other is None:
            return
        reader = self.tree.places[other]
        if one is None:
            if moved:
                self.wiring.at.setdefault(reader, []).extend(moved)
            return
        maker = self.tree.places[one]
        for a, b in zip(self.tree.within[one], self.tree.within[other], strict=False):
            if a.node is not b.node:
                break
            if a.member != b.member:
                self.wiring.between.setdefault(a.node, []).extend(moved)
                return
        if maker is not reader:
            self.wiring.edges.setdefault((maker, reader), []).extend(moved)
        elif moved:
            self.wiring.at.setdefault(reader, []).extend(moved)


def in_order_of_the_graph(tree: Tree) -> Wiring:
    """Without the model: every op after the one before it, as a plan file lists them."""
    wiring = Wiring()
    ops = [
        (place, node)
        for place, node in tree.places.items()
        if node.kind == "op" and not node.is_view
    ]
    for (one, maker), (other, reader) in pairwise(ops):
        pairs = zip(tree.within[one], tree.within[other], strict=False)
        if any(a.node is b.node and a.member != b.member for a, b in pairs):
            continue
        if maker is not reader:
            wiring.edges.setdefault((maker, reader), [])
    return wiring
