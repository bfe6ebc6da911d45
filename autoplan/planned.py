"""Planned modules: plans for every form of arguments, and parameters placed by the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.batch import arguments_without_batch
from autoplan.capture import Captured, capture, check_arguments
from autoplan.emit import emit
from autoplan.errors import AutoplanError, ConfigError, InputError
from autoplan.hints import Hint
from autoplan.launch import (
    agree_on_arguments,
    distributed,
    make_executor,
    same_everywhere,
    structure_of,
)
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.plan import Plan, decode_plan, encode_plan
from autoplan.planning import Planned, check_local_inputs, follow, plan_captured, priced_again
from autoplan.request import Request
from autoplan.runtime.batches import Example, whole_batch
from autoplan.runtime.batches import microbatches as cut_microbatches
from autoplan.runtime.executor import Executor
from autoplan.runtime.program import Program
from autoplan.strategies import RULES


@dataclass(frozen=True)
class Entry:
    """The programs for one form of the arguments: shapes, types, values, train or eval mode."""

    planned: Planned
    captured: Captured
    programs: tuple[Program, ...]


class PlannedModule(nn.Module):
    """A model that plans for every form of its arguments, its parameters placed by the first.

    Parameters are DTensors in their storage layout under torch.distributed, logical tensors in
    simulation, under the original model's paths.
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

    def train(self, mode: bool = True) -> Self:
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
            mesh = self._first.planned.plan.mesh
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

    def _entry_for_call(self, example: Example) -> Entry:
        if self._request.local_inputs:
            self._check_local_inputs()
        key = self._key(example)
        agree_on_arguments(key[1:3], example, self._request.local_inputs, key in self._seen)
        self._seen.add(key)
        if not self._request.local_inputs:
            return self._entry(example)
        return self._entry(whole_batch(example, self._request.devices))

    def __deepcopy__(self, memo: Any) -> PlannedModule:
        raise ConfigError(
            "a parallel module cannot be copied; copy the original model and parallelize that."
        )

    def _check_local_inputs(self) -> None:
        if not distributed():
            raise InputError(
                "local_inputs=True needs real ranks, each with its own part of the batch; run "
                "under torchrun, or give the whole batch to a simulated module."
            )

    # -- state ------------------------------------------------------------------------------

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
    if isinstance(owner, PlannedModule) and (hasattr(type(owner), name) or name in owner.__dict__):
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
