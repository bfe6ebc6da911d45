"""Verify: the emitted program against the original model, in float64, gradients too."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.capture import in_double, without_key_value_cache
from autoplan.cleanup import compute_in_double
from autoplan.layouts import B, Broadcast, Layout, Partial
from autoplan.runtime.batches import Example, batch_size
from autoplan.runtime.executor import SimulatedExecutor
from autoplan.runtime.program import Constant, Program
from autoplan.runtime.reference import ReferenceMode, materialize, run_reference
from autoplan.runtime.simulation import join, shard

if TYPE_CHECKING:
    from autoplan.planned import Entry, PlannedModule


@dataclass(frozen=True)
class Difference:
    """The first node of the program whose value is not the original's."""

    node: str
    path: str
    source: str
    layout: Layout
    error: float

    def __str__(self) -> str:
        where = f" in {self.path}" if self.path else ""
        return (
            f"{self.node}{where}, layout {self.layout}, differs by {self.error:.3g} ({self.source})"
        )


@dataclass(frozen=True)
class Check:
    """What `verify` found. Errors are relative: largest difference over largest true magnitude."""

    ok: bool
    tolerance: float
    loss_error: float
    output_errors: dict[int, float]
    gradient_errors: dict[str, float]
    first_difference: Difference | None = None

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        worst = max(self.gradient_errors, key=lambda p: self.gradient_errors[p], default=None)
        lines = [
            f"{'equal' if self.ok else 'DIFFERENT'} within {self.tolerance:g}: outputs differ by "
            f"{max(self.output_errors.values(), default=0.0):.3g}"
        ]
        if worst is not None:
            lines.append(f"worst gradient: {worst} by {self.gradient_errors[worst]:.3g}")
        if self.first_difference is not None:
            lines.append(f"first difference: {self.first_difference}")
        return "; ".join(lines)


def relative_error(value: Tensor | None, truth: Tensor | None, floor: float = 0.0) -> float:
    """Largest difference over the largest magnitude of `truth`, or over `floor` if that is larger.

    A missing tensor is zeros.
    """
    if value is None and truth is None:
        return 0.0
    if truth is None:
        assert value is not None
        found = float(value.detach().abs().max()) if value.numel() else 0.0
        return found / floor if floor else found
    value = torch.zeros_like(truth) if value is None else value
    if value.shape != truth.shape:
        return float("inf")
    if truth.numel() == 0:
        return 0.0
    value, truth = value.detach().double(), truth.detach().double()
    if bool((value == truth).all()):
        return 0.0
    difference = float((value - truth).abs().max())
    scale = max(float(truth.abs().max()), floor)
    error = difference / scale if scale else difference
    return error if error == error else float("inf")


def verify(module: PlannedModule, entry: Entry, example: Example, tolerance: float) -> Check:
    """Run both on `example` and compare; the module's own gradients are left as they are."""
    executor = module._live_executor
    programs = [in_double_program(program) for program in entry.programs]
    state = {
        **{
            path: value.detach().cpu()
            for path, value in module.named_buffers(remove_duplicate=False)
        },
        **module.full_state_dict(),
    }
    example = _doubled(example)
    whole_example = _whole_example(module, example)

    # The original, on one device.
    model = materialize(module._structure, state, executor.device)
    step = module._steps
    moved: Example = pytree.tree_map(
        lambda x: x.to(executor.device) if isinstance(x, Tensor) else x, whole_example
    )
    with without_key_value_cache(model, True, []):
        truth = pytree.tree_leaves(run_reference(model, moved[0], moved[1], module._seed, step))
    _backward(truth, programs[0].loss)

    # The emitted program, on all ranks.
    parameters = {}
    for spec in programs[0].parameters:
        original = dict(module.named_parameters(remove_duplicate=False))[spec.name]
        value = state[spec.name].double() if original.is_floating_point() else state[spec.name]
        parameters[spec.name] = executor.parameter(value, spec.layout, original.requires_grad)
    inputs = [executor.stored(parameters[s.name], s.layout) for s in programs[0].parameters]
    for spec in programs[0].state:
        held = state[spec.name] if spec.name in state else entry.captured.constants[spec.name]
        held = held.double() if held.is_floating_point() else held
        inputs.append(executor.give(held, spec.layout))
    values = executor.run("prologue", programs, inputs)
    leaves = pytree.tree_leaves(example)
    given = [executor.give(leaves[at], spec.layout) for at, spec in programs[0].inputs]
    executor.set_step(step)
    seen: list[tuple[fx.Node, list[Any]]] = []
    results = executor.run("body", programs, [*values, *given])
    finals = executor.run("epilogue", programs, results)
    outputs = [
        each.value if isinstance(each, Constant) else executor.take(finals[each.position])
        for each in programs[0].outputs
    ]
    _backward(outputs, programs[0].loss)

    output_errors = {
        number: relative_error(value, true)
        for number, (value, true) in enumerate(zip(outputs, truth, strict=True))
        if isinstance(value, Tensor)
    }
    true_gradients = {p: q.grad for p, q in model.named_parameters()}
    # A gradient that is zero but for rounding (a key's bias, say) is measured against the others.
    largest = [float(g.abs().max()) for g in true_gradients.values() if g is not None and g.numel()]
    floor = 1e-6 * max(largest, default=0.0)
    gradient_errors = {}
    for path, parameter in parameters.items():
        grad = parameter.grad
        found = None if grad is None else executor.whole(grad, module._storage[path])
        gradient_errors[path] = relative_error(found, true_gradients.get(path), floor)
    loss = programs[0].loss
    errors = [*output_errors.values(), *gradient_errors.values()]
    ok = all(error <= tolerance for error in errors)
    difference = None
    if not ok:
        with torch.no_grad():
            executor.set_step(step)
            executor.run("body", programs, [*values, *given], lambda n, v: seen.append((n, v)))
            difference = _first_difference(module, entry, moved, state, step, seen, tolerance)
    return Check(
        ok,
        tolerance,
        output_errors.get(loss, 0.0)
        if loss is not None
        else max(output_errors.values(), default=0.0),
        output_errors,
        gradient_errors,
        difference,
    )


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


def _doubled(tree: Any) -> Any:
    def widen(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.detach().double().requires_grad_(leaf.requires_grad)
        return leaf

    return pytree.tree_map(widen, tree)


def _whole_example(module: PlannedModule, example: Example) -> Example:
    """The whole batch, where every rank was given its own part."""
    if not module._request.local_inputs:
        return example
    batch = batch_size(example)

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] != batch:
            return leaf
        device = module._live_executor.device
        parts = [
            torch.empty_like(leaf, device=device) for _ in range(torch.distributed.get_world_size())
        ]
        torch.distributed.all_gather(parts, leaf.detach().to(device).contiguous())
        return torch.cat(parts)

    whole: Example = pytree.tree_map(gather, example)
    return whole


def _backward(outputs: Sequence[Any], loss: int | None) -> None:
    """Backward from the loss, or from a fixed weighted sum of all floating outputs."""
    if loss is not None:
        outputs[loss].backward()
        return
    total: Tensor | float = 0.0
    for each in outputs:
        if isinstance(each, Tensor) and each.is_floating_point() and each.requires_grad:
            count = max(each.numel(), 1)
            weights = torch.linspace(-1.0, 1.5, count, dtype=each.dtype, device=each.device)
            total = total + (each * weights.reshape(each.shape)).sum()
    if isinstance(total, Tensor):
        total.backward()  # type: ignore[no-untyped-call]


def _first_difference(
    module: PlannedModule,
    entry: Entry,
    example: Example,
    state: dict[str, Tensor],
    step: int,
    seen: Sequence[tuple[fx.Node, list[Any]]],
    tolerance: float,
) -> Difference | None:
    """Compare node by node with the captured graph run on one device."""
    truth = _run_captured(module, entry, example, state, step)
    sites = entry.planned.annotated.sites
    chosen = entry.planned.choices
    for node, values in seen:
        at = node.meta.get("site")
        if at is None or sites[at].name not in truth:
            continue
        layout = sites[at].candidates[chosen[at]].outputs[0]
        true = truth[sites[at].name]
        error = _error_of(module, values, layout, true)
        if error is not None and not error <= max(tolerance, 1e-12):
            return Difference(node.name, sites[at].path, sites[at].source_line, layout, error)
    return None


def _error_of(
    module: PlannedModule, values: list[Any], layout: Layout, truth: Tensor
) -> float | None:
    executor = module._live_executor
    if not isinstance(values[0], Tensor) or not isinstance(truth, Tensor):
        return None
    if isinstance(executor, SimulatedExecutor):
        if any(isinstance(entry, Partial) for entry in layout):
            return relative_error(_summed(values, layout, executor, tuple(truth.shape)), truth)
        return relative_error(join(values, layout, executor.mesh, tuple(truth.shape)), truth)
    if any(isinstance(entry, Partial) for entry in layout):
        return None
    return relative_error(values[0], shard(truth, layout, executor.mesh, executor.ranks[0]))


def _summed(
    values: list[Any], layout: Layout, executor: SimulatedExecutor, shape: tuple[int, ...]
) -> Tensor:
    """The logical value of shards with addends along some axes."""
    total: Tensor = values[0].new_zeros(shape)
    mesh = executor.mesh
    for rank, value in enumerate(values):
        coordinates = mesh.coordinates(rank)
        counted = all(
            at == 0 or not isinstance(entry, Broadcast)
            for entry, at in zip(layout, coordinates, strict=True)
        )
        if counted:
            shard(
                total,
                Layout(B if isinstance(e, Partial) else e for e in layout),
                mesh,
                rank,
            ).add_(value)
    return total


def _run_captured(
    module: PlannedModule, entry: Entry, example: Example, state: dict[str, Tensor], step: int
) -> dict[str, Any]:
    """Every node's value when the captured graph runs on one device in float64, dropout keyed."""
    captured = in_double(entry.captured)
    mode = ReferenceMode(module._seed, step)
    leaves = pytree.tree_leaves(example)
    values: dict[fx.Node, Any] = {}
    given = {each.node: each for each in captured.inputs}
    names = {}
    # By position: a copied graph may rename nodes.
    for original, node in zip(entry.captured.graph.nodes, captured.graph.nodes, strict=True):
        names[node] = original.name
        if node.op == "placeholder" and original.name in given:
            each = given[original.name]
            if each.kind == "input":
                value = leaves[each.position]
            elif each.path in state:
                value = state[each.path]
            else:
                value = captured.constants[each.path]
            values[node] = value.double() if value.is_floating_point() else value
        elif node.op == "call_function":
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = dict(fx.node.map_arg(node.kwargs, values.__getitem__))
            kwargs.pop("device", None)
            with torch.no_grad(), mode:
                values[node] = _call(node, args, kwargs)
    return {names[node]: value for node, value in values.items()}


def _call(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """One op of the captured graph; a view may meet strides that fake tensors did not have."""
    if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
        return torch.ops.aten.reshape.default(*args, **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
