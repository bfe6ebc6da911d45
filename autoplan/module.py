"""The parallel module: a planned model that trains as the original does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.batch import arguments_without_batch
from autoplan.capture import Captured, capture, check_arguments
from autoplan.cost_models import Cluster, load_profile
from autoplan.emit import emit
from autoplan.errors import AutoplanError, ConfigError, InputError
from autoplan.hints import Hint
from autoplan.launch import (
    agree_on_arguments,
    distributed,
    make_executor,
    same_everywhere,
    start_process_group,
    structure_of,
    world_size,
)
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.plan import Plan, decode_plan, encode_plan, load_plan
from autoplan.planning import Planned, check_local_inputs, follow, plan_captured, priced_again
from autoplan.request import Request, make_request
from autoplan.runtime.batches import Example, whole_batch
from autoplan.runtime.batches import microbatches as cut_microbatches
from autoplan.runtime.executor import Executor
from autoplan.runtime.program import Constant, Program
from autoplan.strategies import RULES
from autoplan.verify import Check, verify


@dataclass(frozen=True)
class StepResult:
    """What `train_step` returns: the mean loss of the microbatches; outputs where asked for."""

    loss: Tensor
    outputs: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Entry:
    """The programs for one form of the arguments: shapes, types, values, train or eval mode."""

    planned: Planned
    captured: Captured
    programs: tuple[Program, ...]


class ParallelModule(nn.Module):
    """A model under a plan. Call it, call `backward`, step an optimizer, as with the original.

    Arguments and outputs are logical values; every rank sees the same loss. Parameters are DTensors
    in their storage layout under torch.distributed, logical tensors in simulation.
    """

    def __init__(self, model: nn.Module, request: Request, plan: Plan | None, seed: int) -> None:
        super().__init__()
        self._request = request
        self._given_plan = plan
        self._seed = seed
        self._steps = 0
        self._entries: dict[Any, Entry] = {}
        self._executor: Executor | None = None
        self._model_name = type(model).__name__
        # The model is kept twice outside of nn.Module's registry: its structure without data,
        # to be captured for every form of arguments, and, until they are placed, its weights.
        self._structure: nn.Module
        self._weights: nn.Module | None
        object.__setattr__(self, "_structure", structure_of(model))
        object.__setattr__(self, "_weights", model)
        self._storage: dict[str, Layout] = {}
        self._seen: set[Any] = set()
        self._without_batch: dict[Any, frozenset[int]] = {}
        self.training = model.training

    # -- planning ---------------------------------------------------------------------------

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Plan and emit for arguments like these: the whole batch, or this rank's own part."""
        check_arguments(args, kwargs)
        example: Example = (tuple(args), dict(kwargs))
        if self._request.local_inputs:
            self._check_local_inputs()
            example = whole_batch(example, self._request.devices)
        self._entry(self._cut(example, self._request.setting.microbatches)[0])

    def _cut(self, example: Example, count: int) -> list[Example]:
        """Microbatches; the graph of the whole batch says which arguments carry it."""
        if count == 1:
            return [example]
        key = self._key(example)
        if key not in self._without_batch:
            known = self._entries.get(key)
            captured = known.captured if known is not None else self._capture(example)
            self._without_batch[key] = arguments_without_batch(captured, RULES)
        return cut_microbatches(example, count, self._without_batch[key])

    def _key(self, example: Example) -> Any:
        """What the captured graph depends on: arguments, modes of modules, trainable parameters."""
        leaves, spec = pytree.tree_flatten(example)
        modes = tuple(module.training for module in self._structure.modules())
        trained = tuple(p.requires_grad for p in self._parameters_in_force().values())
        return spec, modes, trained, tuple(_form(leaf) for leaf in leaves)

    def _parameters_in_force(self) -> Mapping[str, nn.Parameter]:
        if self._weights is not None:
            return dict(self._weights.named_parameters())
        held = dict(super().named_parameters(remove_duplicate=False))
        return {path: held[path] for path in self._storage}

    def _capture(self, example: Example) -> Captured:
        in_force = self._parameters_in_force()
        for path, parameter in self._structure.named_parameters():
            parameter.requires_grad_(in_force[path].requires_grad)
        return capture(self._structure, *example, training=self._request.setting.training)

    def train(self, mode: bool = True) -> ParallelModule:
        """Set train or eval mode of the whole model; programs of either mode are kept."""
        super().train(mode)
        self._structure.train(mode)
        return self

    def _entry(self, example: Example) -> Entry:
        key = self._key(example)
        if key not in self._entries:
            self._entries[key] = self._make_entry(example)
        return self._entries[key]

    def _make_entry(self, example: Example) -> Entry:
        captured = self._capture(example)
        if self._request.local_inputs:
            check_local_inputs(captured)
        planned = self._agree_on_plan(captured)
        if self._executor is None:
            self._place(planned, captured)
        executor = self._live_executor
        programs = tuple(
            emit(
                planned.annotated,
                planned.choices,
                planned.pricer.routers,
                rank,
                planned.plan.whole_outputs,
            )
            for rank in executor.ranks
        )
        return Entry(planned, captured, programs)

    def _agree_on_plan(self, captured: Captured) -> Planned:
        """Plan on rank 0 alone, and let all follow: a time limit may cut ranks differently."""
        plan = self._given_plan if not self._entries else None
        request = self._request
        if self._entries:
            mesh = self.plan.mesh
            held = [
                Hint(p, "storage", _pins(mesh, s), "the layouts held")
                for p, s in self._storage.items()
            ]
            choice = next((c for c in request.meshes if c.mesh == mesh), MeshChoice(mesh))
            request = replace(request, meshes=(choice,), held=tuple(held))
        if plan is not None:
            return priced_again(follow(captured, plan, request), captured, request)
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return plan_captured(captured, request, self._model_name)
        box: list[Any] = [None]
        planned: Planned | None = None
        if dist.get_rank() == 0:
            try:
                planned = plan_captured(captured, request, self._model_name)
                box = [encode_plan(planned.plan)]
            except AutoplanError as error:
                box = [error]
        dist.broadcast_object_list(box, src=0)
        failure: AutoplanError | None = None
        if isinstance(box[0], AutoplanError):
            failure = box[0]
        elif planned is None:
            try:
                planned = follow(captured, decode_plan(box[0], "the plan of rank 0"), request)
            except AutoplanError as error:
                failure = error
        # Nobody goes on alone: a rank that cannot follow stops all of them with its own error.
        failures: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        for each in failures:
            if each is not None:
                raise each
        assert planned is not None
        return planned

    # -- placing ----------------------------------------------------------------------------

    def _place(self, planned: Planned, captured: Captured) -> None:
        """Create the executor, and the parameters in their storage layouts."""
        mesh = planned.plan.mesh
        model = self._weights
        assert model is not None
        executor = make_executor(mesh, model, self._seed)
        self._executor = executor
        stored = {
            site.path: site.candidates[choice].storage
            for site, choice in zip(planned.annotated.sites, planned.choices, strict=True)
            if site.kind == "parameter"
        }
        whole = Layout.parse(["B"] * mesh.ndim)
        placed: dict[int, nn.Parameter] = {}
        for path, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) not in placed:
                layout = stored.get(path) or whole
                self._storage[path] = layout
                value = same_everywhere(parameter.detach(), executor)
                placed[id(parameter)] = executor.parameter(value, layout, parameter.requires_grad)
            self._register(path, placed[id(parameter)])
        persistent = set(model.state_dict(keep_vars=True))
        for path, buffer in model.named_buffers(remove_duplicate=False):
            value = same_everywhere(buffer.detach(), executor).to(executor.device, copy=True)
            self._register(path, value, persistent=path in persistent)
        object.__setattr__(self, "_weights", None)

    def _register(self, path: str, value: Tensor, persistent: bool = True) -> None:
        """Register under the model's own path, in a tree of plain modules."""
        *parents, name = path.split(".")
        owner: nn.Module = self
        for parent in parents:
            if parent not in owner._modules:
                _refuse_taken_name(owner, parent)
                owner.add_module(parent, nn.Module())
            owner = owner._modules[parent]  # type: ignore[assignment]
        _refuse_taken_name(owner, name)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(name, value)
        else:
            owner.register_buffer(name, value, persistent=persistent)

    @property
    def _live_executor(self) -> Executor:
        if self._executor is None:
            raise InputError(
                "the module has no plan yet: call it once, or give example args to parallelize()."
            )
        return self._executor

    @property
    def _first(self) -> Entry:
        self._live_executor  # noqa: B018  (raises where there is no plan)
        if not self._entries:
            raise InputError(
                "the module has no plan: planning failed; call it with other arguments."
            )
        return next(iter(self._entries.values()))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """Parameters by the original model's paths; InputError before there is a plan."""
        self._live_executor  # noqa: B018
        return super().named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state by the original model's paths; InputError before there is a plan."""
        self._live_executor  # noqa: B018
        return super().state_dict(*args, **kwargs)

    # -- running ----------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs in its own structure, as logical values on every rank."""
        example: Example = (args, kwargs)
        entry = self._entry_for_call(example)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._request.setting.training):
            values = self._prologue(entry)
            outputs = self._body(entry, values, example)
            return self._outputs(entry, outputs)

    def _entry_for_call(self, example: Example) -> Entry:
        if self._request.local_inputs:
            self._check_local_inputs()
        key = self._key(example)
        agree_on_arguments(key[1:3], example, self._request.local_inputs, key in self._seen)
        self._seen.add(key)
        if not self._request.local_inputs:
            return self._entry(example)
        return self._entry(whole_batch(example, self._request.devices))

    def __deepcopy__(self, memo: Any) -> ParallelModule:
        raise ConfigError(
            "a parallel module cannot be copied; copy the original model and parallelize that."
        )

    def _check_local_inputs(self) -> None:
        if not distributed():
            raise InputError(
                "local_inputs=True needs real ranks, each with its own part of the batch; run "
                "under torchrun, or give the whole batch to a simulated module."
            )

    def _prologue(self, entry: Entry) -> list[Any]:
        executor, program = self._live_executor, entry.programs[0]
        parameters = dict(self.named_parameters(remove_duplicate=False))
        buffers = dict(self.named_buffers(remove_duplicate=False))
        inputs = [
            executor.stored(parameters[s.name], self._storage[s.name]) for s in program.parameters
        ]
        for spec in program.state:
            value = buffers.get(spec.name)
            if value is None:
                value = entry.captured.constants[spec.name]
            inputs.append(executor.give(value, spec.layout))
        return executor.run("prologue", entry.programs, inputs)

    def _body(
        self, entry: Entry, values: list[Any], example: Example, watch: Any = None
    ) -> list[Any]:
        executor = self._live_executor
        leaves = pytree.tree_leaves(example)
        inputs = [
            executor.give(leaves[position], spec.layout)
            for position, spec in entry.programs[0].inputs
        ]
        executor.set_step(self._steps)
        self._steps += 1
        return executor.run("body", entry.programs, [*values, *inputs], watch)

    def _outputs(self, entry: Entry, outputs: list[Any]) -> Any:
        executor, program = self._live_executor, entry.programs[0]
        finals = executor.run("epilogue", entry.programs, outputs)
        flat = [
            each.value if isinstance(each, Constant) else executor.take(finals[each.position])
            for each in program.outputs
        ]
        return pytree.tree_unflatten(flat, entry.captured.out_spec)

    def train_step(
        self,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        microbatches: int | None = None,
        outputs: bool = False,
        forward_only: bool = False,
    ) -> StepResult:
        """Forward and backward over microbatches; gradients add to `.grad`.

        The loss is the mean over microbatches, as of one batch with a mean loss; parameters are
        boxed once for all of them. `outputs` also gathers every output, one tree per microbatch;
        `forward_only` leaves the gradients alone. Raises InputError for a batch that does not
        divide, or a model without a scalar loss among its outputs.
        """
        count = self._request.setting.microbatches if microbatches is None else microbatches
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"microbatches must be a positive whole number, got {count!r}.")
        if not self._request.setting.training and not forward_only:
            raise InputError(
                "this module was planned with training=False, whose layouts have no gradients; "
                "plan with training=True, or call train_step(..., forward_only=True)."
            )
        kwargs = {} if kwargs is None else kwargs
        check_arguments(args, kwargs)
        parts = self._cut((tuple(args), dict(kwargs)), count)
        entry = self._entry_for_call(parts[0])
        if entry.programs[0].loss is None:
            raise InputError(
                f"{self._model_name} returned no scalar loss for these arguments; pass labels, or "
                "call the module and compute the loss yourself."
            )
        executor = self._live_executor
        with torch.set_grad_enabled(not forward_only):
            values = self._prologue(entry)
            leaves = [self._detached(value) for value in values]
            losses, trees = [], []
            for part in parts:
                results = self._body(entry, leaves, part)
                place = entry.programs[0].outputs[entry.programs[0].loss]
                loss = executor.take(results[place.position])  # type: ignore[union-attr]
                if not forward_only:
                    (loss / count).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
                if outputs:
                    with torch.no_grad():
                        trees.append(self._outputs(entry, results))
            if not forward_only:
                self._backward_of_prologue(values, leaves)
        return StepResult(torch.stack(losses).mean(), tuple(trees) if outputs else None)

    def _detached(self, value: Any) -> Any:
        executor = self._live_executor
        tensors = [t.detach().requires_grad_(t.requires_grad) for t in executor.tensors(value)]
        return executor.rebuild(value, tensors)

    def _backward_of_prologue(self, values: list[Any], leaves: list[Any]) -> None:
        executor = self._live_executor
        roots: list[Tensor] = []
        grads: list[Tensor] = []
        for value, leaf in zip(values, leaves, strict=True):
            for tensor, held in zip(executor.tensors(value), executor.tensors(leaf), strict=True):
                if tensor.requires_grad and held.grad is not None:
                    roots.append(tensor)
                    grads.append(held.grad)
        if roots:
            torch.autograd.backward(roots, grads)

    # -- looking ----------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The plan in force, of the first form of arguments."""
        return self._first.planned.plan

    @property
    def code(self) -> str:
        """The emitted program of this rank (rank 0 in simulation) as annotated Python text."""
        return self._first.programs[0].code

    def report(self) -> str:
        """The plan as text."""
        return self.plan.report()

    def verify(
        self,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        tolerance: float = 1e-9,
    ) -> Check:
        """Run the original and the emitted program in float64 on these arguments and compare.

        Outputs and every gradient; see `autoplan.verify.Check`. Leaves gradients as they are.
        """
        kwargs = {} if kwargs is None else kwargs
        check_arguments(args, kwargs)
        example: Example = (tuple(args), dict(kwargs))
        return verify(self, self._entry_for_call(example), example, tolerance)

    def full_state_dict(self) -> dict[str, Tensor]:
        """The original model's state dict, whole, on the CPU of every rank."""
        executor = self._live_executor
        result: dict[str, Tensor] = {}
        aliases = self._first.captured.aliases
        for path, value in self.state_dict(keep_vars=True).items():
            if isinstance(value, nn.Parameter):
                value = executor.whole(value, self._storage[aliases.get(path, path)])
            result[path] = value.detach().cpu().clone()
        return result

    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the original model's state dict, given whole on every rank.

        Raises InputError for missing, unknown or misshapen entries, before anything is changed.
        """
        executor = self._live_executor
        own = self.state_dict(keep_vars=True)
        problems = [f"missing {path!r}" for path in own if path not in state]
        problems += [f"unknown {path!r}" for path in state if path not in own]
        problems += [
            f"{path!r} is {tuple(state[path].shape)}, expected {tuple(own[path].shape)}"
            for path in own
            if path in state and state[path].shape != own[path].shape
        ]
        if problems:
            raise InputError(
                f"state dict does not fit {self._model_name}: {'; '.join(problems[:5])}."
            )
        aliases = self._first.captured.aliases
        with torch.no_grad():
            for path, value in own.items():
                if isinstance(value, nn.Parameter):
                    layout = self._storage[aliases.get(path, path)]
                    source = state[path].to(value.dtype)
                    value.copy_(executor.parameter(source, layout, False))
                else:
                    value.copy_(state[path])


def _refuse_taken_name(owner: nn.Module, name: str) -> None:
    """A path of the model must not hide what a parallel module has of its own."""
    if isinstance(owner, ParallelModule) and (
        hasattr(ParallelModule, name) or name in owner.__dict__
    ):
        raise ConfigError(
            f"the model's {name!r} has the name of an attribute of a parallel module; rename it in "
            "the model, or wrap the model in another module."
        )


def _pins(mesh: Mesh, layout: Layout) -> dict[str, frozenset[Any]]:
    return {axis: frozenset({entry}) for axis, entry in zip(mesh.axes, layout, strict=True)}


def _form(leaf: Any) -> Any:
    """What of an argument the captured graph depends on."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.requires_grad
    try:
        hash(leaf)
    except TypeError:
        raise InputError(
            f"an argument of type {type(leaf).__name__} cannot be planned for; pass tensors, "
            "numbers, texts, or containers of them."
        ) from None
    return type(leaf), leaf


def parallelize(
    model: nn.Module,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    devices: int | None = None,
    plan: Plan | str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> ParallelModule:
    """A module that trains `model` on `devices` devices by a plan; see `autoplan.parallelize`."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"parallelize takes an nn.Module, got {model!r}; build the model first.")
    if isinstance(model, ParallelModule):
        raise ConfigError("the model is parallel already; parallelize the original one.")
    if isinstance(plan, (str, Path)):
        plan = load_plan(plan)
    elif plan is not None and not isinstance(plan, Plan):
        raise ConfigError(f"plan takes a Plan or the path of a plan file, got {plan!r}.")
    if devices is None:
        devices = plan.mesh.num_devices if plan is not None else world_size()
    if plan is not None and plan.mesh.num_devices != devices:
        raise ConfigError(
            f"the plan is for {plan.mesh.num_devices} devices, got devices={devices}; "
            "leave one of them out."
        )
    if plan is not None:
        options |= {
            "local_inputs": plan.local_inputs,
            "whole_outputs": plan.whole_outputs,
            "training": plan.training,
            "optimizer": plan.optimizer,
            "microbatches": plan.microbatches,
        }
        if options.get("cluster") is None:
            profile = load_profile(plan.cluster)
            options["cluster"] = Cluster(profile, devices, plan.devices_per_node)
    # A group that torchrun prepared is joined before planning: rank 0 plans for all.
    start_process_group(devices)
    module = ParallelModule(model, make_request(devices, **options), plan, seed)
    if args is not None or kwargs is not None:
        module.prepare(() if args is None else args, {} if kwargs is None else kwargs)
    return module
