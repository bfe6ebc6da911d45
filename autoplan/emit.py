"""Emit: the program of one rank, as ordinary `fx.GraphModule`s on local tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from autoplan.boxing import Move
from autoplan.buckets import Conversion, Routers, cut_buckets
from autoplan.conversions import convert, gathered_beside, gathering, prologue_conversions
from autoplan.formulate import priced_outputs
from autoplan.layouts import B, Layout, local_shape
from autoplan.pricing import local_context
from autoplan.runtime.last_uses import mark_last_uses
from autoplan.runtime.program import Constant, OutputSpec, Program, TensorSpec
from autoplan.sites import Annotated, Candidate, Site, Source
from autoplan.strategies.rule import Arg, TensorMeta


def emit(
    annotated: Annotated,
    choices: Sequence[int],
    routers: Routers,
    rank: int,
    whole_outputs: bool = False,
) -> Program:
    """The program of `rank` for the chosen candidate of every site.

    Boxing follows the cheapest paths, the ones that the choices were priced by.
    """
    return _Emitter(annotated, choices, routers, rank, whole_outputs).run()


class _Part:
    """One graph under construction: proxies that append to it, and its communicator."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self.names: dict[str, int] = {}
        self.comm = self.placeholder("comm", "")

    def placeholder(self, name: str, note: str) -> fx.Proxy:
        number = self.names[name] = self.names.get(name, 0) + 1
        node = self.graph.placeholder(name if number == 1 else f"{name}_use{number}")
        node.meta["note"] = note
        return fx.Proxy(node, self.tracer)

    def finish(self, outputs: Sequence[fx.Proxy]) -> fx.GraphModule:
        self.graph.output(tuple(each.node for each in outputs))
        mark_last_uses(self.graph)
        return fx.GraphModule(torch.nn.Module(), self.graph)


class _Emitter:
    def __init__(
        self,
        annotated: Annotated,
        choices: Sequence[int],
        routers: Routers,
        rank: int,
        whole_outputs: bool,
    ) -> None:
        self.annotated = annotated
        self.chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]
        self.routers = routers
        self.mesh = annotated.mesh
        self.coordinates = self.mesh.coordinates(rank)
        self.whole = Layout((B,) * self.mesh.ndim)
        self.priced = {id(each[0]) for each in priced_outputs(annotated, whole_outputs)}
        self.nodes = {node.name: node for node in annotated.captured.graph.nodes}
        self.random_keys = _random_keys(annotated)
        self.prologue, self.body = _Part(), _Part()
        self.stored, self.leaving = prologue_conversions(annotated, self.chosen, routers)
        self.values: dict[tuple[int, int], fx.Proxy] = {}
        self.exported: dict[tuple[int, int, int], fx.Proxy] = {}
        # Parameters that the prologue gathers beside their shards, there and then in the body.
        self.wholes: dict[int, fx.Proxy] = {}

    def run(self) -> Program:
        parameters, state = self._prologue_inputs()
        for at, site in enumerate(self.annotated.sites):
            if site.parameter_only and site.kind in ("op", "box"):
                self._site(self.prologue, at, site)
        exports = self._exports()
        inputs = self._inputs()
        received = self._received()
        for at, site in enumerate(self.annotated.sites):
            if not site.parameter_only and site.kind in ("op", "box", "sent"):
                before = _last_node(self.body.graph)
                self._site(self.body, at, site)
                _mark_maker(before, _last_node(self.body.graph), at)
        outputs, results, epilogue = self._outputs()
        sent = [at for at, site in enumerate(self.annotated.sites) if site.kind == "sent"]
        results += [self.values[at, 0] for at in sent]
        updates, changed = self._updates()
        return Program(
            mesh=self.mesh,
            coordinates=self.coordinates,
            parameters=parameters,
            state=state,
            updates=updates,
            inputs=inputs,
            outputs=outputs,
            loss=self.annotated.loss,
            prologue=self.prologue.finish(exports),
            body=self.body.finish([*results, *changed]),
            epilogue=epilogue,
            received=received,
            sent=tuple(self._wire(at) for at in sent),
            gathers=any(each.policy == "microbatch" for each in self.chosen),
        )

    # -- inputs and outputs -----------------------------------------------------------------

    def _prologue_inputs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        parameters: list[TensorSpec] = []
        state: list[TensorSpec] = []
        for at, site in enumerate(self.annotated.sites):
            if site.kind not in ("parameter", "buffer", "constant") or not site.parameter_only:
                continue
            chosen, meta = self.chosen[at], site.outputs[0]
            stored = chosen.storage if chosen.storage is not None else chosen.outputs[0]
            spec = TensorSpec(site.path, meta.shape, meta.dtype, stored)
            (parameters if site.kind == "parameter" else state).append(spec)
        for wanted in (("parameter",), ("buffer", "constant")):
            for at, site in enumerate(self.annotated.sites):
                if site.kind in wanted and site.parameter_only:
                    chosen, meta = self.chosen[at], site.outputs[0]
                    stored = chosen.storage if chosen.storage is not None else chosen.outputs[0]
                    note = f"{site.path}: {self._describe(stored, meta)}"
                    self.values[at, 0] = self.prologue.placeholder(site.name, note)
        held = [at for at, s in enumerate(self.annotated.sites) if s.kind == "parameter"]
        boxed = self._box_many(self.stored, [self.values[at, 0] for at in held])
        for at, value in zip(held, boxed, strict=True):
            self.values[at, 0] = value
        beside = gathered_beside(self.annotated, self.chosen, self.routers)
        # Without a graph: what the body does to the gradient takes its place.
        wholes = self._box_many([*beside.values()], [self.values[at, 0].detach() for at in beside])
        self.wholes = dict(zip(beside, wholes, strict=True))
        return tuple(parameters), tuple(state)

    def _exports(self) -> list[fx.Proxy]:
        """Prologue values that the body reads, in the layouts that it reads them in."""
        readers = [
            (at, position, source)
            for at, site in enumerate(self.annotated.sites)
            if not site.parameter_only
            for position, source in enumerate(site.inputs)
            if self.annotated.sites[source.site].parameter_only
        ]
        values = [self.values[source.site, source.output] for _, _, source in readers]
        results = self._box_many(self.leaving, values)
        for at, position, source in readers:
            origin = self.annotated.sites[source.site]
            target, given = self.chosen[at].inputs[position], self.chosen[source.site]
            target = given.carried if given.policy != "step" else target
            note = f"{origin.path}: {self._describe(target, origin.outputs[source.output])}"
            self.exported[at, position, 0] = self._read_by_body(origin, note)
        read_whole: dict[int, fx.Proxy] = {}
        for at, whole in self.wholes.items():
            results.append(whole)
            site, layout = self.annotated.sites[at], self.chosen[at].outputs[0]
            note = f"{site.path}: {self._describe(layout, site.outputs[0])}"
            read_whole[at] = self.body.placeholder(f"{site.name}_whole", note)
        self.wholes = read_whole
        returned = [
            *(
                (-1, n, each[0])
                for n, each in enumerate(self.annotated.outputs)
                if _is_tensor(each)
            ),
            *((-2, n, source) for n, (_, source, _) in enumerate(self.annotated.updates)),
        ]
        for kind, number, source in returned:
            origin = self.annotated.sites[source.site]
            if origin.parameter_only:
                results.append(self.values[source.site, source.output])
                self.exported[kind, number, 0] = self._read_by_body(origin, origin.path)
        return results

    def _read_by_body(self, origin: Site, note: str) -> fx.Proxy:
        """The body's placeholder of a value that the prologue made."""
        return self.body.placeholder(origin.name.replace(":", "_"), note)

    def _inputs(self) -> tuple[tuple[int, TensorSpec], ...]:
        """Placeholders of the body: buffers that it changes, then the model's arguments."""
        updated = {path: meta for path, _, meta in self.annotated.updates}
        for at, site in enumerate(self.annotated.sites):
            if site.kind == "buffer" and site.path in updated:
                note = f"{site.path}: {self._describe(self.whole, site.outputs[0])}"
                self.values[at, 0] = self.body.placeholder(site.name, note)
        specs = []
        given = {each.node: each for each in self.annotated.captured.inputs_of("input")}
        for at, site in enumerate(self.annotated.sites):
            if site.kind == "input":
                layout, meta = self.chosen[at].outputs[0], site.outputs[0]
                note = f"{site.path}: {self._describe(layout, meta)}"
                self.values[at, 0] = self.body.placeholder(site.name, note)
                spec = TensorSpec(site.path, meta.shape, meta.dtype, layout)
                specs.append((given[site.name].position, spec))
        return tuple(specs)

    def _received(self) -> tuple[TensorSpec, ...]:
        """Placeholders of the body for what the stage before sends."""
        specs = []
        for at, site in enumerate(self.annotated.sites):
            if site.kind == "received":
                specs.append(self._wire(at))
                note = f"{site.path}: {self._describe(specs[-1].layout, site.outputs[0])}"
                self.values[at, 0] = self.body.placeholder(site.name, note)
        return tuple(specs)

    def _wire(self, at: int) -> TensorSpec:
        """A value between two stages, as it lies."""
        site, layout = self.annotated.sites[at], self.chosen[at].outputs[0]
        meta = site.outputs[0]
        name = site.name.removesuffix(":sent")
        reaches = name not in self.annotated.captured.beside_loss
        return TensorSpec(name, meta.shape, meta.dtype, layout, meta.requires_grad, reaches)

    def _outputs(
        self,
    ) -> tuple[tuple[OutputSpec | Constant, ...], list[fx.Proxy], fx.GraphModule]:
        epilogue = _Part()
        outputs: list[OutputSpec | Constant] = []
        results: list[fx.Proxy] = []
        finals: list[fx.Proxy] = []
        for number, each in enumerate(self.annotated.outputs):
            if not isinstance(each, tuple):
                outputs.append(Constant(each))
                continue
            source, meta = each
            layout = self.chosen[source.site].outputs[source.output]
            value = self.exported.get((-1, number, 0))
            if value is None:
                value = self.values[source.site, source.output]
            path = f"output {number}"
            if id(source) in self.priced:
                value, layout = (
                    self._box(self.body, value, layout, self.whole, meta, path),
                    self.whole,
                )
            outputs.append(OutputSpec(len(results)))
            results.append(value)
            held = epilogue.placeholder(f"output_{number}", self._describe(layout, meta))
            finals.append(self._box(epilogue, held, layout, self.whole, meta, path))
        return tuple(outputs), results, epilogue.finish(finals)

    def _updates(self) -> tuple[tuple[TensorSpec, ...], list[fx.Proxy]]:
        """Buffers that the body changes, in the order of their placeholders; their new values."""
        order = [site.path for site in self.annotated.sites if site.kind == "buffer"]
        changed = {}
        for number, (path, source, meta) in enumerate(self.annotated.updates):
            value = self.exported.get((-2, number, 0))
            if value is None:
                value = self.values[source.site, source.output]
            layout = self.chosen[source.site].outputs[source.output]
            value = self._box(self.body, value, layout, self.whole, meta, path)
            changed[path] = TensorSpec(path, meta.shape, meta.dtype, self.whole), value
        placed = [changed[path] for path in order if path in changed]
        return tuple(spec for spec, _ in placed), [value for _, value in placed]

    # -- sites ------------------------------------------------------------------------------

    def _site(self, part: _Part, at: int, site: Site) -> None:
        chosen = self.chosen[at]
        operands = []
        for position, source in enumerate(site.inputs):
            given = self.exported.get((at, position, 0))
            if given is None:
                given = self._converted(part, source, chosen.inputs[position], site.path)
            elif self.chosen[source.site].policy != "step":
                given = self._gathered(part, source, given)
            operands.append(given)
        if site.kind in ("box", "sent"):
            self.values[at, 0] = operands[0]
            return
        before = _last_node(part.graph)
        result = self._call(part, site, chosen, operands)
        if len(site.outputs) == 1 and not _returns_sequence(self.nodes[site.name]):
            self.values[at, 0] = result
        else:
            for output in range(len(site.outputs)):
                piece = result[output]
                self.values[at, output] = piece
                if isinstance(piece, fx.Proxy):
                    piece.node.meta |= {"site": at, "output": output}
        layouts = ", ".join(map(str, chosen.outputs[:1]))
        note = f"{site.path}: {layouts} {_shape_text(site.outputs[0])}"
        if isinstance(result, fx.Proxy):
            result.node.meta["site"] = at
        _note_new_nodes(part.graph, before, note, _last_node(part.graph))

    def _call(self, part: _Part, site: Site, chosen: Candidate, operands: list[fx.Proxy]) -> Any:
        call = site.call
        assert call is not None
        target = self.nodes[site.name].target
        context = local_context(
            site,
            chosen,
            self.mesh,
            self.coordinates,
            target=target,
            comm=part.comm,
            random_key=self.random_keys.get(site.name, 0),
        )
        args = _fill(call.args, operands)
        kwargs = {k: _fill(v, operands) for k, v in call.kwargs.items() if k not in _PLACEMENT}
        program = None if site.rule is None else site.rule.program_of(chosen.labels)
        if program is not None:
            return program(context, *args, **kwargs)
        return context.same_op(*args, **kwargs)

    def _converted(self, part: _Part, source: Source, target: Layout, path: str) -> fx.Proxy:
        value = self.values[source.site, source.output]
        origin = self.annotated.sites[source.site]
        layout = self.chosen[source.site].outputs[source.output]
        return self._box(part, value, layout, target, origin.outputs[source.output], path)

    def _box(
        self,
        part: _Part,
        value: fx.Proxy,
        source: Layout,
        target: Layout,
        meta: TensorMeta,
        path: str,
    ) -> fx.Proxy:
        each = convert(self.routers.body, source, target, meta, path)
        for move in each.moves:
            value = self._move(part, value, each, move)
        return value

    def _move(self, part: _Part, value: fx.Proxy, each: Conversion, move: Move) -> fx.Proxy:
        step = move.bind(each.meta.shape, self.mesh, self.coordinates)
        text = f"{step.source} -> {step.target}"
        value = part.comm.box(value, text, axis=step.axis, sizes=step.sizes)
        value.node.meta["note"] = f"{each.path}: {self._price_note([(each, move)])}"
        return value

    def _gathered(self, part: _Part, source: Source, shard: fx.Proxy) -> fx.Proxy:
        """A parameter for one of its readers in the body, by what its policy says."""
        chosen, origin = self.chosen[source.site], self.annotated.sites[source.site]
        each = gathering(chosen, origin.outputs[source.output], self.routers, origin.path)
        steps = [m.bind(each.meta.shape, self.mesh, self.coordinates) for m in each.moves]
        operands = [shard]
        if chosen.policy == "reduce":
            at = source.site if origin.kind == "parameter" else origin.inputs[0].site
            operands.append(self.wholes[at])
        run = part.comm.reduce if chosen.policy == "reduce" else part.comm.gather
        value: fx.Proxy = run(
            *operands,
            [f"{step.source} -> {step.target}" for step in steps],
            axes=[step.axis for step in steps],
            sizes=[step.sizes for step in steps],
        )
        actions = [move.actions(each.meta.requires_grad) for move in each.moves]
        there = " and ".join(forward for forward, *_ in actions)
        back = " and ".join(way[1] for way in reversed(actions) if len(way) > 1)
        done = "backward" if chosen.policy == "reduce" else f"{there} here and again in backward"
        note = f"{done} {back}".strip() if chosen.policy == "reduce" else f"{done}, {back}"
        size = each.meta.num_bytes
        value.node.meta["note"] = f"{each.path}: {note.rstrip(', ')} of {size} bytes"
        return value

    def _box_many(self, conversions: list[Conversion], values: list[fx.Proxy]) -> list[fx.Proxy]:
        """Run conversions of the prologue, those that communicate in buckets."""
        values = list(values)
        for bucket in cut_buckets(conversions, self.mesh):
            moves = [(conversions[number], move) for number, move in bucket]
            if len(bucket) == 1:
                number = bucket[0][0]
                values[number] = self._move(self.prologue, values[number], *moves[0])
                continue
            steps = [m.bind(e.meta.shape, self.mesh, self.coordinates) for e, m in moves]
            boxed: Any = self.prologue.comm.box_many(
                [values[number] for number, _ in bucket],
                [f"{step.source} -> {step.target}" for step in steps],
                axis=steps[0].axis,
                sizes=[step.sizes for step in steps],
            )
            boxed.node.meta["note"] = f"{len(bucket)} tensors: {self._price_note(moves)}"
            for place, (number, _) in enumerate(bucket):
                values[number] = boxed[place]
                values[number].node.meta["note"] = conversions[number].path
        return values

    def _price_note(self, moves: list[tuple[Conversion, Move]]) -> str:
        each, move = moves[0]
        actions = move.actions(each.meta.requires_grad)
        size = sum(m.whole_bytes(e.meta.shape, e.meta.itemsize, self.mesh) for e, m in moves)
        back = f", backward {actions[1]}" if len(actions) > 1 else ""
        return f"{actions[0]}{back} of {size} bytes"

    def _describe(self, layout: Layout, meta: TensorMeta) -> str:
        local = local_shape(meta.shape, layout, self.mesh, self.coordinates)
        return f"{layout} {list(local)} of {_shape_text(meta)}"


_PLACEMENT = ("device", "layout", "pin_memory")
"""Arguments that say where the captured model was; an emitted program runs where its inputs are."""


def _shape_text(meta: TensorMeta) -> str:
    return f"{str(meta.dtype).removeprefix('torch.')}{list(meta.shape)}"


def _is_tensor(output: Any) -> bool:
    """Whether an output of the annotated graph is a tensor: (source, meta); others are values."""
    return isinstance(output, tuple)


def _returns_sequence(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], (tuple, list))


def _fill(tree: Any, operands: Sequence[Any]) -> Any:
    if isinstance(tree, Arg):
        return operands[tree.position]
    if isinstance(tree, (list, tuple)):
        return type(tree)(_fill(each, operands) for each in tree)
    return tree


def _last_node(graph: fx.Graph) -> fx.Node:
    last: fx.Node = next(iter(reversed(graph.nodes)))
    return last


def _mark_maker(after: fx.Node, last: fx.Node, at: int) -> None:
    """Note the site that new nodes belong to, for passes over the emitted body."""
    node = after
    while node is not last:
        node = node.next
        node.meta["maker"] = at


def _note_new_nodes(graph: fx.Graph, after: fx.Node, note: str, last: fx.Node) -> None:
    node = after
    while node is not last:
        node = node.next
        if node.op != "placeholder":
            node.meta.setdefault("note", note)


def _random_keys(annotated: Annotated) -> dict[str, int]:
    """Numbers of the random ops, in the order in which the model calls them."""
    nodes = annotated.captured.graph.nodes
    return {node.name: node.meta["draw"] for node in nodes if "draw" in node.meta}
