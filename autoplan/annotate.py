"""Annotate: every node of the captured graph gets its candidates, the choices of the solver.

A node of the result is a *site*: an op, a parameter, an argument, or a boxing site, which stands
behind a tensor with several readers so that a conversion they share is paid once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from torch import fx

from autoplan.boxing import layout_entries
from autoplan.capture import Captured
from autoplan.cutting import candidates_of, layouts_of
from autoplan.hints import Hint
from autoplan.hints.narrowing import Narrowed, Narrowing
from autoplan.layouts import B, Layout, P, Split, local_shape
from autoplan.mesh import Mesh
from autoplan.once import Once, runs_once_a_step
from autoplan.policies import Policy
from autoplan.sites import (
    Annotated,
    Candidate,
    Preference,
    Site,
    SiteKind,
    Source,
    describe,
    node_meta,
    tensor_of,
)
from autoplan.strategies.notation import Bound
from autoplan.strategies.random import RANDOM_OPS
from autoplan.strategies.rule import OpCall, Rule, TensorMeta


def annotate(
    captured: Captured,
    mesh: Mesh,
    rules: Mapping[str, Rule],
    hints: Sequence[Hint] = (),
    local_inputs: bool = False,
    boxed: Collection[str] = (),
    wires: Mapping[str, Layout] | None = None,
    lean: bool = False,
) -> Annotated:
    """Give every node its candidates on `mesh`; raises HintError where hints leave a site none.

    `boxed` names boxing sites that a plan has beyond those of tensors with several readers. `wires`
    says how the values lie that a pipeline stage receives and sends, by node; whole by default.
    `lean` adds candidates that hold less memory and are never faster: parameters gathered in every
    microbatch, products that stream their operands. They are for where memory binds.
    """
    return _Annotator(captured, mesh, rules, hints, local_inputs, boxed, wires or {}, lean).run()


class _Annotator:
    """Walks the graph once; holds what the walk has built so far."""

    def __init__(
        self,
        captured: Captured,
        mesh: Mesh,
        rules: Mapping[str, Rule],
        hints: Sequence[Hint],
        local_inputs: bool,
        boxed: Collection[str],
        wires: Mapping[str, Layout],
        lean: bool,
    ) -> None:
        self.boxed = frozenset(boxed)
        self.lean = lean
        self.once = runs_once_a_step(captured, rules) if lean else Once()
        self.wires = wires
        self.captured = captured
        self.mesh = mesh
        self.rules = rules
        self.narrowing = Narrowing(captured, mesh, hints)
        self.local_inputs = local_inputs
        self.sites: list[Site] = []
        self.values: dict[tuple[str, int], Source] = {}
        self._candidates: dict[Any, tuple[Rule | None, Bound | None, tuple[Candidate, ...]]] = {}
        self._boxes: dict[Any, tuple[Candidate, ...]] = {}
        self.preferences: list[Preference] = []
        self.updated = frozenset(captured.updates)

    def run(self) -> Annotated:
        kinds = {each.node: each for each in self.captured.inputs}
        for node in self.captured.graph.nodes:
            if node.op == "placeholder" and node.name in kinds:
                given = kinds[node.name]
                if given.kind == "parameter":
                    self._add_parameter(node, given.path, given.meta)
                elif given.kind == "received":
                    wired = Narrowed(self._wired(node))
                    self._add(node, "received", given.path, (), (given.meta,), wired)
                else:
                    self._add_input(node, given.kind, given.path, given.meta)
            elif node.op == "call_function" and node.target is not operator.getitem:
                self._add_op(node)
        self._add_sent()
        self._give_way()
        self.narrowing.refuse_idle()
        outputs, loss = self._outputs()
        return Annotated(
            self.captured,
            self.mesh,
            tuple(self.sites),
            self.values,
            outputs,
            loss,
            self.narrowing.notes,
            tuple(
                (path, self._value(node), node_meta(node))
                for path, node in self.captured.updated_buffers.items()
            ),
            tuple(self.preferences),
        )

    # -- sites ------------------------------------------------------------------------------

    def _add_parameter(self, node: fx.Node, path: str, meta: TensorMeta) -> None:
        lean = self.lean and self._is_read_by_body_alone(node)
        key = ("parameter", meta, lean)
        if key not in self._boxes:
            stores = [e for e in layout_entries(meta.shape, False) if e != P]
            uses = [e for e in layout_entries(meta.shape, meta.requires_grad) if e != P]
            pairs = product(
                layouts_of(stores, meta.shape, self.mesh), layouts_of(uses, meta.shape, self.mesh)
            )
            plain = [Candidate(tuple(map(str, use)), (), (use,), storage) for storage, use in pairs]
            others = [e for each in plain for e in self._leaner(each, meta)] if lean else []
            self._boxes[key] = (*plain, *others)
        narrowed = self.narrowing.parameter(self._boxes[key], path)
        self._add(node, "parameter", path, (), (meta,), narrowed, parameter_only=True)

    def _leaner(self, plain: Candidate, meta: TensorMeta) -> Iterator[Candidate]:
        """The same storage and use under policies that keep less than `plain` whole."""
        for policy in _POLICIES if meta.requires_grad else _POLICIES[1:]:
            each = replace(plain, policy=policy)
            held, whole = (
                math.prod(local_shape(meta.shape, layout, self.mesh))
                for layout in (each.carried, each.outputs[0])
            )
            if held < whole:
                yield each

    def _give_way(self) -> None:
        """Leave to the prologue what hints would have the body gather, and a reader cannot read.

        The body gathers a parameter as it is read, and boxes it no further.
        """
        readers: dict[int, list[tuple[Site, int]]] = {}
        for site in self.sites:
            for position, source in enumerate(site.inputs):
                readers.setdefault(source.site, []).append((site, position))
        for at, site in enumerate(self.sites):
            policies = {each.policy for each in site.candidates}
            if site.kind != "parameter" or "step" in policies:
                continue
            behind = self.values[site.name, 0].site
            read = [
                {each.inputs[position] for each in reader.candidates}
                for reader, position in readers.get(behind, ())
            ]
            if any(all(one.outputs[0] in each for each in read) for one in site.candidates):
                continue
            key = ("parameter", site.outputs[0], self.lean)
            narrowed = self.narrowing.not_gathered(self._boxes[key], site.path)
            if narrowed is not None:
                self.sites[at] = replace(site, candidates=narrowed.candidates)
                self.preferences = [each for each in self.preferences if each.site != at]
                self.preferences += narrowed.preferences(at)

    def _is_read_by_body_alone(self, node: fx.Node) -> bool:
        """Whether a parameter goes nowhere but into ops that run in every microbatch."""
        return node.name not in self.captured.sent and all(
            user.op == "call_function"
            and user.target is not operator.getitem
            and user not in self.once.prologue
            for user in node.users
        )

    def _add_input(self, node: fx.Node, kind: Any, path: str, meta: TensorMeta) -> None:
        layout = Layout((B,) * self.mesh.ndim)
        if kind == "input" and self.local_inputs and meta.shape:
            layout = Layout((Split(0),) * self.mesh.ndim)
        # One tuple for all of a layout: blocks are repeats where they share their candidates.
        alone = (Candidate(tuple(map(str, layout)), (), (layout,)),)
        candidates = self._boxes.setdefault(("given", layout), alone)
        self._add(
            node,
            kind,
            path,
            (),
            (meta,),
            Narrowed(candidates),
            parameter_only=kind != "input" and path not in self.updated,
        )

    def _wired(self, node: fx.Node) -> tuple[Candidate, ...]:
        """The one way in which a value lies between two stages."""
        layout = self.wires.get(node.name, Layout((B,) * self.mesh.ndim))
        alone = (Candidate(tuple(map(str, layout)), (), (layout,)),)
        return self._boxes.setdefault(("given", layout), alone)

    def _add_sent(self) -> None:
        """A boxing site for every value that a stage sends on."""
        nodes = {node.name: node for node in self.captured.graph.nodes}
        for name in self.captured.sent:
            node = nodes[name]
            (wired,) = self._wired(node)
            candidates = (Candidate(wired.labels, wired.outputs, wired.outputs),)
            self.sites.append(
                Site(
                    f"{name}:sent",
                    "sent",
                    str(node.meta.get("path", "")),
                    node.meta.get("source", ""),
                    (self._value(node),),
                    (node_meta(node),),
                    self._boxes.setdefault(("sent", wired.outputs[0]), candidates),
                )
            )

    def _add_op(self, node: fx.Node) -> None:
        call, operands = describe(node)
        sources = tuple(self._value(each) for each in operands)
        key = (call.op, repr((call.args, tuple(call.kwargs.items()))), call.inputs, call.outputs)
        if key not in self._candidates:
            rule = self.rules.get(call.op)
            bound = rule.bound(call) if rule is not None else None
            candidates = candidates_of(call, rule, bound, self.mesh, lean=self.lean)
            self._candidates[key] = rule, bound, candidates
        rule, bound, candidates = self._candidates[key]
        self._add(
            node,
            "op",
            node.meta["path"],
            sources,
            call.outputs,
            self.narrowing.op(candidates, node.meta["path"], call.op),
            call=call,
            rule=rule,
            bound=bound,
            parameter_only=call.op not in RANDOM_OPS
            and node not in self.once.views
            and all(self.sites[s.site].parameter_only for s in sources),
            kept=node in self.once.kept,
        )

    def _add(
        self,
        node: fx.Node,
        kind: SiteKind,
        path: str,
        sources: tuple[Source, ...],
        outputs: tuple[TensorMeta, ...],
        narrowed: Narrowed,
        call: OpCall | None = None,
        rule: Rule | None = None,
        bound: Bound | None = None,
        parameter_only: bool = False,
        kept: bool = False,
    ) -> None:
        line = node.meta.get("source", "")
        at = len(self.sites)
        self.preferences += narrowed.preferences(at)
        self.sites.append(
            Site(
                node.name,
                kind,
                path,
                line,
                sources,
                outputs,
                narrowed.candidates,
                call,
                rule,
                bound,
                parameter_only,
                kept,
            )
        )
        for output, meta in enumerate(outputs):
            self.values[node.name, output] = Source(at, output)
            pins = self.narrowing.values.get((node.name, output), ())
            asked = bool(pins) or f"{node.name}:{output}" in self.boxed
            if asked or _num_readers(node, output, len(outputs)) > 1:
                self._add_box(
                    node, path, line, Source(at, output), meta, pins, parameter_only, asked
                )

    def _add_box(
        self,
        node: fx.Node,
        path: str,
        line: str,
        source: Source,
        meta: TensorMeta,
        pins: Sequence[Hint],
        parameter_only: bool,
        asked: bool,
    ) -> None:
        key = ("box", meta)
        if key not in self._boxes:
            entries = layout_entries(meta.shape, meta.requires_grad)
            self._boxes[key] = tuple(
                Candidate(tuple(map(str, layout)), (layout,), (layout,))
                for layout in layouts_of(entries, meta.shape, self.mesh)
            )
        candidates = self._boxes[key]
        leaner = _policies_of(self.sites[source.site])
        if leaner:
            alike = ("box", id(self.sites[source.site].candidates))
            candidates = self._boxes.setdefault(alike, (*candidates, *leaner))
        fixed = len(self.sites[source.site].candidates) == 1 and not meta.requires_grad
        if fixed and not asked:
            return  # a replicated constant or argument: each reader slices for free
        is_input = self.sites[source.site].kind == "input"
        narrowed = self.narrowing.value(candidates, pins, path, meta, is_input)
        at = len(self.sites)
        name = f"{node.name}:{source.output}"
        self.preferences += narrowed.preferences(at)
        self.sites.append(
            Site(
                name,
                "box",
                path,
                line,
                (source,),
                (meta,),
                narrowed.candidates,
                parameter_only=parameter_only,
            )
        )
        self.values[node.name, source.output] = Source(at)

    def _value(self, node: fx.Node) -> Source:
        return self.values[tensor_of(node)]

    def _outputs(self) -> tuple[tuple[Any, ...], int | None]:
        outputs: list[Any] = []
        for each in self.captured.output_nodes:
            if not isinstance(each, fx.Node):
                outputs.append(each)
                continue
            meta = node_meta(each)
            outputs.append((self._value(each), meta))
        return tuple(outputs), self.captured.loss_position


_POLICIES: tuple[Policy, ...] = ("reduce", "microbatch")


def _policies_of(site: Site) -> list[Candidate]:
    """What the boxing site behind a parameter passes on of those that the body gathers."""
    if site.kind != "parameter":
        return []
    return [replace(e, inputs=e.outputs) for e in site.candidates if e.policy != "step"]


def _num_readers(node: fx.Node, output: int, num_outputs: int) -> int:
    """How many arguments of other nodes read this output; a getitem stands for its own readers."""
    readers = 0
    for user in node.users:
        if user.target is operator.getitem:
            if user.args[1] == output:
                readers += _num_readers(user, 0, 1)
        elif num_outputs == 1:
            readers += _occurrences(node, (user.args, user.kwargs))
    return readers


def _occurrences(node: fx.Node, tree: Any) -> int:
    if isinstance(tree, (list, tuple)):
        return sum(_occurrences(node, each) for each in tree)
    if isinstance(tree, dict):
        return sum(_occurrences(node, each) for each in tree.values())
    return int(tree is node)
