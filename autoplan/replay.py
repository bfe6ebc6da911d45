"""Replay: the original and the emitted program, each with weights of its own, on one example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from autoplan.runtime.batches import Example
from autoplan.runtime.executor import Watch
from autoplan.runtime.program import Constant, Program
from autoplan.runtime.reference import ReferenceMode, materialize, run_reference
from autoplan.runtime.simulation import shard

if TYPE_CHECKING:
    from autoplan.planned import Entry, PlannedModule


class Original:
    """The original model on one device, with the weights of the planned one.

    `double`: in float64 throughout; otherwise in the model's own types.
    """

    def __init__(
        self,
        module: PlannedModule,
        entry: Entry,
        state: Mapping[str, Tensor],
        example: Example,
        double: bool,
    ) -> None:
        self.device = module._live_executor.device
        self.seed, self.double = module._seed, double
        self.state, self.captured = state, entry.captured
        self.loss = entry.programs[0].loss
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
        self.magnitude = 0.0 if goal is None else float(goal.detach().abs())
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


class Emitted:
    """The emitted program with parameters of its own: one for every rank that is present."""

    def __init__(
        self,
        module: PlannedModule,
        entry: Entry,
        state: Mapping[str, Tensor],
        example: Example,
        double: bool,
    ) -> None:
        self.executor = module._live_executor
        self.programs = [in_double_program(p) if double else p for p in entry.programs]
        self.program = self.programs[0]

        captured = entry.captured
        constants = constants_in_double(captured) if double else captured.constants

        def value_of(path: str) -> Tensor:
            value = state[path] if path in state else constants[path]
            return value.double() if double and value.is_floating_point() else value

        trained = dict(module.named_parameters(remove_duplicate=False))
        self.held = {
            spec.name: self.executor.replicas(
                value_of(spec.name), spec.layout, trained[spec.name].requires_grad
            )
            for spec in self.program.parameters
        }
        self.state = [self.executor.give(value_of(s.name), s.layout) for s in self.program.state]
        self.buffers = [
            self.executor.give(value_of(s.name), s.layout) for s in self.program.updates
        ]
        self.leaves = pytree.tree_leaves(_copied(example, self.executor.device, double))
        self.inputs = [
            self.executor.give(self.leaves[at], s.layout) for at, s in self.program.inputs
        ]

    def run(self, step: int, watch: Watch | None = None) -> list[list[Any]]:
        """Flat outputs, each of every rank that is present; gradients are in the parameters."""
        executor, programs = self.executor, self.programs
        stored = [
            executor.rebuild(None, [executor.local(each) for each in held])
            for held in self.held.values()
        ]
        values = executor.run("prologue", programs, [*stored, *self.state], watch)
        executor.set_step(step)
        results = executor.run("body", programs, [*values, *self.buffers, *self.inputs], watch)
        outputs = results[: len(results) - len(self.buffers)]
        self.buffers = results[len(outputs) :]
        finals = executor.run("epilogue", programs, outputs)
        found = [
            [each.value] * len(programs)
            if isinstance(each, Constant)
            else executor.tensors(finals[each.position])
            for each in self.program.outputs
        ]
        ranks = range(len(programs))
        _backward([objective([each[i] for each in found], self.program.loss) for i in ranks])
        return found

    def parameters(self) -> list[nn.Parameter]:
        return [each for held in self.held.values() for each in held if each.requires_grad]

    @property
    def updated(self) -> dict[str, list[Tensor]]:
        """Buffers that a call changes, on every rank that is present."""
        return {
            spec.name: self.executor.tensors(value)
            for spec, value in zip(self.program.updates, self.buffers, strict=True)
        }

    def shards(
        self,
        truth: Callable[[str], Tensor | None],
        part: Callable[[nn.Parameter], Tensor | None],
    ) -> dict[str, list[tuple[Tensor | None, Tensor | None]]]:
        """Per parameter and rank, what `part` finds of it, and its shard of what is true."""
        pairs: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {}
        for spec in self.program.parameters:
            whole = truth(spec.name)
            for rank, each in zip(self.executor.ranks, self.held[spec.name], strict=True):
                found, true = part(each), None
                if whole is not None:
                    true = shard(whole.detach(), spec.layout, self.executor.mesh, rank)
                found = None if found is None else self.executor.local(found.detach())
                pairs.setdefault(spec.name, []).append((found, true))
        return pairs


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
        return fx.GraphModule(torch.nn.Module(), graph)

    return replace(
        program,
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
