"""Replay: the original and the emitted program, each with weights of its own, on one example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.capture import (
    Captured,
    constants_in_double,
    in_double,
    without_key_value_cache,
)
from autoplan.cleanup import compute_in_double
from autoplan.differences import magnitude
from autoplan.runtime.batches import Example
from autoplan.runtime.executor import Executor, Watch
from autoplan.runtime.program import Constant, Program, TensorSpec
from autoplan.runtime.recompute import parts_of, with_parts
from autoplan.runtime.reference import ReferenceMode, materialize, run_reference
from autoplan.runtime.relay import Stored
from autoplan.runtime.simulation import shard

if TYPE_CHECKING:
    from autoplan.piped import PipedModule
    from autoplan.planned import Entry


class Original:
    """The original model on one device, with the weights of the planned one.

    `double`: in float64 throughout; otherwise in the model's own types.
    """

    def __init__(
        self,
        module: PipedModule,
        entry: Entry,
        state: Mapping[str, Tensor],
        example: Example,
        double: bool,
    ) -> None:
        self.device = module._live_executor.device
        self.seed, self.double = module._seed, double
        self.state, self.captured = state, entry.captured
        self.loss = entry.loss
        types = [p.dtype for p in module._structure.parameters() if p.dtype.is_floating_point]
        self.low = next((each for each in types if double and each != torch.float64), None)
        self.example: Example = _copied(example, self.device, double)
        self.model = materialize(module._structure, state, self.device, double)
        self.magnitude = 0.0
        """Of what backward started from, in the last run."""

    def run(self, step: int) -> list[Any]:
        """Flat outputs; gradients are in the parameters."""
        args, kwargs = self.example
        with without_key_value_cache(self.model, True, []):
            result = run_reference(self.model, args, kwargs, self.seed, step, self.double, self.low)
        outputs = pytree.tree_leaves(result)
        goal = objective(outputs, self.loss)
        self.magnitude = 0.0 if goal is None else magnitude(goal)
        _backward([goal])
        return outputs

    def parameters(self) -> list[nn.Parameter]:
        return [each for each in self.model.parameters() if each.requires_grad]

    @property
    def buffers(self) -> dict[str, Tensor]:
        return dict(self.model.named_buffers(remove_duplicate=False))

    def values(self, step: int) -> dict[str, Any]:
        """The value of every node of the captured graph, run as it is; gradients are in `.grad`."""
        captured = in_double(self.captured) if self.double else self.captured
        leaves = pytree.tree_leaves(self.example)
        values: dict[fx.Node, Any] = {}
        names = {}
        given = {each.node: each for each in self.captured.inputs}
        outputs: list[Any] = []
        # By position: a copied graph may rename nodes.
        pairs = zip(self.captured.graph.nodes, captured.graph.nodes, strict=True)
        with ReferenceMode(self.seed, step, self.double):
            for original, node in pairs:
                names[node] = original.name
                if node.op == "placeholder" and original.name in given:
                    values[node] = self._given(given[original.name], leaves, captured)
                elif node.op == "call_function":
                    values[node] = _call(node, values)
                    for each in pytree.tree_leaves(values[node]):
                        if isinstance(each, Tensor) and each.requires_grad:
                            each.retain_grad()
                elif node.op == "output":
                    outputs = list(fx.node.map_arg(captured.output_nodes, values.__getitem__))
        _backward([objective(outputs, self.loss)])
        return {names[node]: value for node, value in values.items()}

    def _given(self, each: Any, leaves: Sequence[Any], captured: Captured) -> Tensor:
        value: Tensor
        if each.kind == "input":
            value = leaves[each.position].detach()
        elif each.path in self.state:
            value = self.state[each.path].to(self.device)
            value = value.double() if self.double and value.is_floating_point() else value
        else:
            value = captured.constants[each.path].to(self.device)
        return value.clone().requires_grad_(each.meta.requires_grad)


StageWatch = Callable[[int, fx.Node, list[Any]], None]
"""Called with the stage, a node that ran, and its values."""


class Emitted:
    """The emitted program with parameters of its own: one for every rank that is present.

    A parameter that several stages read is there once: they have the same shards of it.
    """

    def __init__(
        self,
        module: PipedModule,
        entry: Entry,
        state: Mapping[str, Tensor],
        example: Example,
        double: bool,
    ) -> None:
        self.entry, self.module, self.double = entry, module, double
        self.leaves = pytree.tree_leaves(_copied(example, module._live_executor.device, double))
        constants = constants_in_double if double else (lambda captured: captured.constants)
        trained = dict(module.named_parameters(remove_duplicate=False))
        self.held: dict[str, list[nn.Parameter]] = {}
        self.stages: list[_EmittedStage] = []
        for stage in entry.here:
            executor = module._executors[stage.rank]
            known = constants(stage.captured)

            def value_of(path: str, known: Mapping[str, Tensor] = known) -> Tensor:
                value = state[path] if path in state else known[path]
                return value.double() if double and value.is_floating_point() else value

            programs = [in_double_program(p) if double else p for p in stage.programs]
            program = programs[0]
            for spec in program.parameters:
                if spec.name not in self.held:
                    self.held[spec.name] = executor.replicas(
                        value_of(spec.name), spec.layout, trained[spec.name].requires_grad
                    )
            held = [self.held[spec.name] for spec in program.parameters]
            fixed = [executor.give(value_of(s.name), s.layout) for s in program.state]
            buffers = [executor.give(value_of(s.name), s.layout) for s in program.updates]
            self.stages.append(
                _EmittedStage(stage.number, stage.rank, executor, programs, held, fixed, buffers)
            )

        for path, place in module._tied_here.items():
            if path not in self.held:
                ((_, executor),) = module._executors.items()
                value, grad = state[path], trained[path].requires_grad
                value = value.double() if double and value.is_floating_point() else value
                self.held[path] = executor.replicas(value, place.layout, grad)

    def executor_of(self, number: int) -> Executor:
        """Of a stage that is present here."""
        return next(stage.executor for stage in self.stages if stage.number == number)

    def run(self, step: int, watch: StageWatch | None = None) -> list[list[Any]]:
        """Flat outputs, each of every rank that is present; gradients are in the parameters."""
        relay = self.module._relay(self.entry, self.double)
        ranks = range(len(self.stages[0].programs))
        stored = {
            (stage.rank, spec.name): stage.stored(held)
            for stage in self.stages
            for spec, held in zip(stage.program.parameters, stage.held, strict=True)
        }
        for path in self.module._tied_here:
            ((rank, executor),) = self.module._executors.items()
            local = executor.local(self.held[path][0])
            stored.setdefault((rank, path), executor.rebuild(None, [local]))
        stored, leaves = relay.begin(stored, self.leaves)
        outputs: list[Any] = [None] * len(self.entry.owners)
        for stage in self.stages:
            received = relay.receive(stage.number, stage.program)
            found, sent = stage.run(stored, leaves, received, step, watch)
            relay.send(stage.number, stage.program, sent)
            for position, owner in enumerate(self.entry.owners):
                if owner == stage.number:
                    outputs[position] = found[position]
        # Of each rank that is present, all outputs.
        joined = [relay.join([None if e is None else e[i] for e in outputs]) for i in ranks]
        _backward([objective(each, self.entry.loss) for each in joined])
        return [list(each) for each in zip(*joined, strict=True)]

    def parameters(self) -> list[nn.Parameter]:
        return [each for held in self.held.values() for each in held if each.requires_grad]

    @property
    def updated(self) -> dict[str, list[Tensor]]:
        """Buffers that a call changes, on every rank that is present."""
        return {
            spec.name: stage.executor.tensors(value)
            for stage in self.stages
            for spec, value in zip(stage.program.updates, stage.buffers, strict=True)
        }

    def shards(
        self,
        truth: Callable[[str], Tensor | None],
        part: Callable[[nn.Parameter], Tensor | None],
    ) -> dict[str, list[tuple[Tensor | None, Tensor | None]]]:
        """Per parameter and rank, what `part` finds of it, and its shard of what is true."""
        pairs: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {}
        for stage in self.stages:
            executor = stage.executor
            for spec, held in zip(stage.program.parameters, stage.held, strict=True):
                whole = truth(spec.name)
                for rank, each in zip(executor.ranks, held, strict=True):
                    found, true = part(each), None
                    if whole is not None:
                        true = shard(whole.detach(), spec.layout, executor.mesh, rank)
                    found = None if found is None else executor.local(found.detach())
                    pairs.setdefault(spec.name, []).append((found, true))
        return pairs


@dataclass
class _EmittedStage:
    """One stage that is present here. `buffers`: those that it changes, as the last run left them.

    held: of each of its parameters, one for every rank.
    """

    number: int
    rank: int
    executor: Executor
    programs: list[Program]
    held: list[list[nn.Parameter]]
    fixed: list[Any]
    buffers: list[Any]

    @property
    def program(self) -> Program:
        return self.programs[0]

    def stored(self, held: Sequence[nn.Parameter]) -> Any:
        """A parameter as the prologue takes it."""
        return self.executor.rebuild(None, [self.executor.local(each) for each in held])

    def run(
        self,
        stored: Stored,
        leaves: Sequence[Any],
        received: list[Any],
        step: int,
        watch: StageWatch | None,
    ) -> tuple[list[Any], list[Any]]:
        """Flat outputs, each of every rank that is present, and what is sent on."""
        executor, programs, program = self.executor, self.programs, self.program
        seen: Watch | None = None if watch is None else partial(watch, self.number)
        held = [stored[self.rank, spec.name] for spec in program.parameters]
        values = executor.run("prologue", programs, [*held, *self.fixed], seen)
        executor.set_step(step)
        given = [executor.give(leaves[at], spec.layout) for at, spec in program.inputs]
        inputs = [*values, *self.buffers, *given, *received]
        results = executor.run("body", programs, inputs, seen)
        outputs, sent, self.buffers = program.parted(results)
        finals = executor.run("epilogue", programs, outputs)
        found = [
            [each.value] * len(programs)
            if isinstance(each, Constant)
            else executor.tensors(finals[each.position])
            for each in program.outputs
        ]
        return found, sent


def _copied(example: Example, device: torch.device, double: bool) -> Any:
    """The arguments anew, with gradients of their own; `double`: floating ones in float64."""

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        value = leaf.detach().to(device, copy=True)
        value = value.double() if double and value.is_floating_point() else value
        return value.requires_grad_(leaf.requires_grad)

    return pytree.tree_map(copied, example)


def objective(outputs: Sequence[Any], loss: int | None) -> Tensor | None:
    """What backward starts from: the loss, or a fixed weighted sum of all floating outputs."""
    if loss is not None:
        found: Tensor = outputs[loss]
        return found
    total: Tensor | None = None
    for each in outputs:
        differentiable = isinstance(each, Tensor) and each.is_floating_point() and each.numel()
        if differentiable and each.requires_grad:
            count = max(each.numel(), 1)
            weights = torch.linspace(-1.0, 1.5, count, dtype=each.dtype, device=each.device)
            term = (each * weights.reshape(each.shape)).sum()
            total = term if total is None else total + term
    return total


def _backward(objectives: Sequence[Tensor | None]) -> None:
    """All ranks at once: collectives of simulated ranks run for all of them together."""
    found = [each for each in objectives if each is not None and each.requires_grad]
    if found:
        torch.autograd.backward(found)


def in_double_program(program: Program) -> Program:
    """The same program, node for node, with every cast to float64."""

    def convert(module: fx.GraphModule) -> fx.GraphModule:
        graph = copy.deepcopy(module.graph)
        compute_in_double(graph)
        _restore_last_uses(module.graph, graph)
        return with_parts(graph, [(name, convert(part)) for name, part in parts_of(module)])

    def widened(spec: TensorSpec) -> TensorSpec:
        return replace(spec, dtype=torch.float64) if spec.dtype.is_floating_point else spec

    return replace(
        program,
        received=tuple(map(widened, program.received)),
        sent=tuple(map(widened, program.sent)),
        prologue=convert(program.prologue),
        body=convert(program.body),
        epilogue=convert(program.epilogue),
    )


def _restore_last_uses(before: fx.Graph, after: fx.Graph) -> None:
    # By position: a copied graph may rename nodes.
    twin = dict(zip(before.nodes, after.nodes, strict=True))
    for node, copied in twin.items():
        copied.meta["last_uses"] = [twin[each] for each in node.meta.get("last_uses", ())]


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """One op of the captured graph; a view may meet strides that fake tensors did not have."""
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = dict(fx.node.map_arg(node.kwargs, values.__getitem__))
    kwargs.pop("device", None)
    if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
        return torch.ops.aten.reshape.default(*args, **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
