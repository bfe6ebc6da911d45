"""Annotate: every node of the captured graph gets its candidates, the choices of the solver.

A node of the result is a *site*: an op, a parameter, an argument, or a boxing site, which stands
behind a tensor with several readers so that a conversion they share is paid once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

from torch import fx

from autoplan.boxing import layout_entries
from autoplan.capture import Captured
from autoplan.errors import HintError
from autoplan.hints import Hint
from autoplan.layouts import B, Layout, P, Split
from autoplan.mesh import Mesh
from autoplan.sites import (
    Annotated,
    Candidate,
    Site,
    SiteKind,
    Source,
    describe,
    node_meta,
    results_of,
    tensor_of,
)
from autoplan.strategies.notation import Bound
from autoplan.strategies.random import RANDOM_OPS
from autoplan.strategies.rule import OpCall, Rule, Signature, TensorMeta, signatures


def annotate(
    captured: Captured,
    mesh: Mesh,
    rules: Mapping[str, Rule],
    hints: Sequence[Hint] = (),
    local_inputs: bool = False,
    boxed: Collection[str] = (),
) -> Annotated:
    """Give every node its candidates on `mesh`; raises HintError where hints leave a site none.

    `boxed` names boxing sites that a plan has beyond those of tensors with several readers.
    """
    return _Annotator(captured, mesh, rules, hints, local_inputs, boxed).run()


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
    ) -> None:
        self.boxed = frozenset(boxed)
        self.captured = captured
        self.mesh = mesh
        self.rules = rules
        self.hints = tuple(hints)
        self.local_inputs = local_inputs
        self.sites: list[Site] = []
        self.values: dict[tuple[str, int], Source] = {}
        self._candidates: dict[Any, tuple[Rule | None, Bound | None, tuple[Candidate, ...]]] = {}
        self._boxes: dict[Any, tuple[Candidate, ...]] = {}
        self._kept: dict[Any, tuple[Candidate, ...]] = {}
        self.notes: list[str] = []
        self.updated = frozenset(captured.updates)
        self._pinned_values = self._values_with_hints()

    def run(self) -> Annotated:
        kinds = {each.node: each for each in self.captured.inputs}
        for node in self.captured.graph.nodes:
            if node.op == "placeholder" and node.name in kinds:
                given = kinds[node.name]
                if given.kind == "parameter":
                    self._add_parameter(node, given.path, given.meta)
                else:
                    self._add_input(node, given.kind, given.path, given.meta)
            elif node.op == "call_function" and node.target is not operator.getitem:
                self._add_op(node)
        outputs, loss = self._outputs()
        return Annotated(
            self.captured,
            self.mesh,
            tuple(self.sites),
            self.values,
            outputs,
            loss,
            tuple(self.notes),
            tuple(
                (path, self._value(node), node_meta(node))
                for path, node in self.captured.updated_buffers.items()
            ),
        )

    # -- sites ------------------------------------------------------------------------------

    def _add_parameter(self, node: fx.Node, path: str, meta: TensorMeta) -> None:
        key = ("parameter", meta)
        if key not in self._boxes:
            stores = [e for e in layout_entries(meta.shape, False) if e != P]
            uses = [e for e in layout_entries(meta.shape, meta.requires_grad) if e != P]
            pairs = product(self._layouts(stores, meta), self._layouts(uses, meta))
            self._boxes[key] = tuple(
                Candidate(tuple(map(str, use)), (), (use,), storage) for storage, use in pairs
            )
        candidates = self._pin(self._boxes[key], path, "storage", lambda c: c.storage)
        candidates = self._pin(candidates, path, "use", lambda c: c.outputs[0])
        self._add(node, "parameter", path, (), (meta,), candidates, parameter_only=True)

    def _add_input(self, node: fx.Node, kind: Any, path: str, meta: TensorMeta) -> None:
        layout = Layout((B,) * self.mesh.ndim)
        if kind == "input" and self.local_inputs and meta.shape:
            layout = Layout((Split(0),) * self.mesh.ndim)
        candidate = Candidate(tuple(map(str, layout)), (), (layout,))
        self._add(
            node,
            kind,
            path,
            (),
            (meta,),
            (candidate,),
            parameter_only=kind != "input" and path not in self.updated,
        )

    def _add_op(self, node: fx.Node) -> None:
        call, operands = describe(node)
        sources = tuple(self._value(each) for each in operands)
        key = (call.op, repr((call.args, tuple(call.kwargs.items()))), call.inputs, call.outputs)
        if key not in self._candidates:
            self._candidates[key] = self._derive(call)
        rule, bound, candidates = self._candidates[key]
        for hint in self.hints:
            if (
                hint.at == "op"
                and hint.matches(node.meta["path"])
                and (not hint.ops or call.op in hint.ops)
            ):
                candidates = self._keep(
                    candidates,
                    [c for c in candidates if hint.accepts(self.mesh, c.labels)],
                    hint,
                    node.meta["path"],
                )
        self._add(
            node,
            "op",
            node.meta["path"],
            sources,
            call.outputs,
            candidates,
            call=call,
            rule=rule,
            bound=bound,
            parameter_only=call.op not in RANDOM_OPS
            and all(self.sites[s.site].parameter_only for s in sources),
        )

    def _derive(self, call: OpCall) -> tuple[Rule | None, Bound | None, tuple[Candidate, ...]]:
        rule = self.rules.get(call.op)
        bound = rule.bound(call) if rule is not None else None
        found = []
        for per_axis in product(signatures(rule, call), repeat=self.mesh.ndim):
            labels = tuple(each.label for each in per_axis)
            if rule is not None and rule.permits is not None and not rule.permits(labels):
                continue
            if bound is None or self._cuts_cleanly(per_axis, bound, rule):
                found.append(_combine(per_axis, call))
        return rule, bound, tuple(found)

    def _cuts_cleanly(
        self, per_axis: tuple[Signature, ...], bound: Bound, rule: Rule | None
    ) -> bool:
        """At least half of the ranks get rows; merged dimensions cut where their factor does."""
        for index in {each.label for each in per_axis}:
            if index not in bound.sizes:
                continue
            parts = [n for s, n in zip(per_axis, self.mesh.sizes, strict=True) if s.label == index]
            if not _worth_cutting(
                bound.sizes[index],
                parts,
                even=index in bound.aligned,
                full=rule is not None and rule.fails_without(index),
            ):
                return False
        return True

    def _layouts(self, entries: Sequence[Any], meta: TensorMeta) -> list[Layout]:
        """All layouts of a tensor in which enough ranks hold some of it."""
        result = []
        for combination in product(entries, repeat=self.mesh.ndim):
            layout = Layout(combination)
            if self._full(layout, meta.shape):
                result.append(layout)
        return result

    def _full(self, layout: Layout, shape: tuple[int, ...]) -> bool:
        return all(
            _worth_cutting(
                size, [self.mesh.sizes[a] for a in layout.axes_of(dim)], even=False, full=False
            )
            for dim, size in enumerate(shape)
        )

    def _add(
        self,
        node: fx.Node,
        kind: SiteKind,
        path: str,
        sources: tuple[Source, ...],
        outputs: tuple[TensorMeta, ...],
        candidates: tuple[Candidate, ...],
        call: OpCall | None = None,
        rule: Rule | None = None,
        bound: Bound | None = None,
        parameter_only: bool = False,
    ) -> None:
        line = node.meta.get("source", "")
        at = len(self.sites)
        self.sites.append(
            Site(
                node.name,
                kind,
                path,
                line,
                sources,
                outputs,
                candidates,
                call,
                rule,
                bound,
                parameter_only,
            )
        )
        for output, meta in enumerate(outputs):
            self.values[node.name, output] = Source(at, output)
            pins = self._pinned_values.get((node.name, output), ())
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
                for layout in self._layouts(entries, meta)
            )
        candidates = self._boxes[key]
        fixed = len(self.sites[source.site].candidates) == 1 and not meta.requires_grad
        if fixed and not asked:
            return  # a replicated constant or argument: each reader slices for free
        for hint in pins:
            kept = [c for c in candidates if _accepts_resolved(hint, self.mesh, c.outputs[0], meta)]
            alone = [
                c
                for c in self._boxes[key]
                if _accepts_resolved(hint, self.mesh, c.outputs[0], meta)
            ]
            if not alone and hint.required and node.op == "placeholder" and _only_splits(hint):
                raise HintError(_unsplittable(hint, self.mesh, path, meta))
            candidates = self._keep(candidates, kept, hint, path)
        at = len(self.sites)
        name = f"{node.name}:{source.output}"
        self.sites.append(
            Site(
                name,
                "box",
                path,
                line,
                (source,),
                (meta,),
                candidates,
                parameter_only=parameter_only,
            )
        )
        self.values[node.name, source.output] = Source(at)

    def _value(self, node: fx.Node) -> Source:
        return self.values[tensor_of(node)]

    def _outputs(self) -> tuple[tuple[Any, ...], int | None]:
        outputs: list[Any] = []
        loss: int | None = None
        for position, each in enumerate(self.captured.output_nodes):
            if not isinstance(each, fx.Node):
                outputs.append(each)
                continue
            meta = node_meta(each)
            outputs.append((self._value(each), meta))
            if loss is None and meta.shape == () and meta.requires_grad:
                loss = position
        return tuple(outputs), loss

    # -- hints ------------------------------------------------------------------------------

    def _pin(self, candidates: tuple[Candidate, ...], path: str, at: str, layout: Any) -> Any:
        for hint in self.hints:
            if hint.at == at and hint.matches(path):
                kept = [c for c in candidates if hint.accepts(self.mesh, layout(c))]
                candidates = self._keep(candidates, kept, hint, path)
        return candidates

    def _keep(
        self, before: tuple[Candidate, ...], kept: list[Candidate], hint: Hint, path: str
    ) -> tuple[Candidate, ...]:
        if not kept and not hint.required:
            self.notes.append(f"{hint} does not fit {path!r} and is not applied there")
            return before
        if not kept:
            raise HintError(
                f"hint {hint} leaves {path!r} no layout on mesh {self.mesh}: enough ranks must "
                "hold a part of each split dimension, and other hints may already fix it. Drop or "
                "widen it."
            )
        return self._kept.setdefault((id(before), tuple(map(id, kept))), tuple(kept))

    def _values_with_hints(self) -> dict[tuple[str, int], list[Hint]]:
        """The results of hinted modules, and hinted arguments."""
        pinned: dict[tuple[str, int], list[Hint]] = {}
        arguments = {
            **{name: tensor_of(node) for name, node in self.captured.named_outputs.items()},
            **{each.path: (each.node, 0) for each in self.captured.inputs_of("input")},
        }
        for hint in self.hints:
            if hint.at != "value":
                continue
            if hint.pattern in arguments:
                pinned.setdefault(arguments[hint.pattern], []).append(hint)
                continue
            for node in results_of(self.captured, hint.pattern):
                pinned.setdefault(tensor_of(node), []).append(hint)
        return pinned


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


def _worth_cutting(size: int, parts: Sequence[int], even: bool, full: bool) -> bool:
    """Whether cutting by `parts`, outermost first, leaves rows to half of each cut's parts.

    A cut into ceil(size / n) rows makes full parts, one smaller part, and empty ones: 12 heads on 8
    ranks are 2 for each of 6. `even`: equally many rows for all; `full`: some rows for all.
    """
    sizes = {size}
    for count in parts:
        cut: set[int] = set()
        for whole in sizes - {0}:
            rows = -(-whole // count)
            complete, rest = divmod(whole, rows)
            busy = complete + bool(rest)
            if (even and whole % count) or 2 * busy < count or (full and busy < count):
                return False
            cut |= {rows, rest} if rest else {rows}
        sizes = cut
    return True


def _combine(per_axis: tuple[Signature, ...], call: OpCall) -> Candidate:
    return Candidate(
        tuple(each.label for each in per_axis),
        tuple(Layout(each.inputs[i] for each in per_axis) for i in range(len(call.inputs))),
        tuple(Layout(each.outputs[i] for each in per_axis) for i in range(len(call.outputs))),
    )


def _only_splits(hint: Hint) -> bool:
    return all(isinstance(entry, Split) for allowed in hint.allowed.values() for entry in allowed)


def _unsplittable(hint: Hint, mesh: Mesh, path: str, meta: TensorMeta) -> str:
    """Why an argument cannot lie as it must: its batch leaves ranks without rows."""
    rows = meta.shape[0] if meta.shape else 1
    ranks = math.prod(mesh.size(axis) for axis in hint.allowed)
    axes = " x ".join(f"{axis} {mesh.size(axis)}" for axis in hint.allowed)
    return (
        f"{hint}: {path!r} has {rows} rows (shape {list(meta.shape)}), which cannot be split over "
        f"{axes}: most ranks would get none. Use a batch (or microbatch) that is a multiple of "
        f"{ranks}, fewer devices on that axis, or no such hint."
    )


def _accepts_resolved(hint: Hint, mesh: Mesh, layout: Layout, meta: TensorMeta) -> bool:
    """Like Hint.accepts, with negative dimensions counted on the value's own shape."""
    for axis, allowed in hint.allowed.items():
        entries = {
            Split(e.dim % len(meta.shape)) if isinstance(e, Split) and meta.shape else e
            for e in allowed
        }
        if layout[mesh.index(axis)] not in entries:
            return False
    return True
