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
from autoplan.launch import agree_on_arguments, distributed
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.plan import Plan, decode_plan, encode_plan
from autoplan.planfiles.follow import adopt, follow
from autoplan.planning import Planned, check_local_inputs, plan_captured
from autoplan.registry import rules_in_force
from autoplan.request import Request
from autoplan.runtime.batches import Example, whole_batch
from autoplan.runtime.batches import microbatches as cut_microbatches
from autoplan.runtime.program import Program
from autoplan.state import StatefulModule
from autoplan.strategies.random import is_random
from autoplan.structure import structure_of


@dataclass(frozen=True)
class Entry:
    """The programs for one form of the arguments: shapes, types, values, train or eval mode."""

    planned: Planned
    captured: Captured
    programs: tuple[Program, ...]


class PlannedModule(StatefulModule):
    """A model that plans for every form of its arguments, its parameters placed by the first.

    Parameters are DTensors in their storage layout under torch.distributed, logical tensors in
    simulation, under the original model's paths.
    """

    def __init__(self, model: nn.Module, request: Request, plan: Plan | None, seed: int) -> None:
        super().__init__(model, seed)
        self._request = request
        self._given_plan = plan
        self._entries: dict[Any, Entry] = {}
        # Its structure without data, outside of nn.Module's registry, to be captured for every
        # form of arguments.
        self._structure: nn.Module
        object.__setattr__(self, "_structure", structure_of(model))
        self._seen: set[Any] = set()
        self._without_batch: dict[Any, frozenset[int]] = {}
        self.training = model.training

    def __setattr__(self, name: str, value: Any) -> None:
        structure = self.__dict__.get("_structure")
        plain = structure is not None and name in structure.__dict__ and name != "training"
        if plain and name not in self.__dict__ and not name.startswith("_"):
            raise ConfigError(
                f"{name!r} is an attribute of the model, whose value is part of the plan; set it "
                "on the original model, and parallelize that again."
            )
        placed = structure is not None and self._executor is not None
        if placed and isinstance(value, (nn.Parameter, nn.Module)):
            raise ConfigError(
                f"{name!r}: a parallel module takes no new parameters or modules; add them to the "
                "original model, and parallelize that again."
            )
        super().__setattr__(name, value)

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
            self._without_batch[key] = arguments_without_batch(captured, rules_in_force())
        return cut_microbatches(example, count, self._without_batch[key])

    def _key(self, example: Example) -> Any:
        """What the captured graph depends on: arguments, modes of modules, trainable parameters."""
        leaves, spec = pytree.tree_flatten(example)
        self._follow()
        modes = tuple(module.training for module in self._structure.modules())
        trained = tuple(p.requires_grad for p in self._parameters_in_force().values())
        return spec, modes, trained, tuple(_form(leaf) for leaf in leaves)

    def _parameters_in_force(self) -> Mapping[str, nn.Parameter]:
        if self._weights is not None:
            return dict(self._weights.named_parameters())
        held = dict(super().named_parameters(remove_duplicate=False))
        return {path: held[path] for path in self._storage}

    def _follow(self) -> None:
        """Let the structure have the modes and trainable parameters that are in force here."""
        in_force = self._parameters_in_force()
        for path, parameter in self._structure.named_parameters():
            parameter.requires_grad_(in_force[path].requires_grad)
        own = dict(self.named_modules()) if self._weights is None else {}
        for path, module in self._structure.named_modules(remove_duplicate=False):
            if path in own:
                module.training = own[path].training

    def _capture(self, example: Example) -> Captured:
        return capture(self._structure, *example, training=self._request.setting.training)

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode of the whole model; programs of either mode are kept."""
        super().train(mode)
        self._structure.train(mode)
        return self

    def _entry(self, example: Example, key: Any = None) -> Entry:
        """The programs for arguments like these, made where there are none; `key`: of `example`."""
        key = self._key(example) if key is None else key
        if key not in self._entries:
            self._entries[key] = self._make_entry(example)
        return self._entries[key]

    def _make_entry(self, example: Example) -> Entry:
        captured = self._capture(example)
        if self._request.local_inputs:
            check_local_inputs(captured)
        planned = self._agree_on_plan(captured)
        sites = planned.annotated.sites
        if self._executor is None:
            layouts = {
                site.path: storage
                for site, choice in zip(sites, planned.choices, strict=True)
                if (storage := site.candidates[choice].storage) is not None
            }
            self._place(planned.plan.mesh, layouts)
        if any(site.call is not None and is_random(site.call) for site in sites):
            self._keep_random_position()
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

        def make() -> Planned:
            if plan is not None:
                return adopt(captured, plan, request)
            return plan_captured(captured, request, self._model_name)

        if not dist.is_initialized() or dist.get_world_size() == 1:
            return make()
        box: list[Any] = [None]
        planned: Planned | None = None
        if dist.get_rank() == 0:
            try:
                planned = make()
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

    @property
    def _first(self) -> Entry:
        self._live_executor  # noqa: B018  (raises where there is no plan)
        if not self._entries:
            raise InputError(
                "the module has no plan: planning failed; call it with other arguments."
            )
        return next(iter(self._entries.values()))

    def _entry_for_call(self, example: Example) -> Entry:
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves(example)):
            raise InputError(
                "an argument is on the meta device, without values; give real tensors."
            )
        if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            raise InputError(
                "torch.autocast is on around a parallel module, whose types are planned; write it "
                "inside the model's forward, or cast the model, e.g. model.to(torch.bfloat16)."
            )
        if self._request.local_inputs:
            self._check_local_inputs()
        key = self._key(example)
        agree_on_arguments(key[1:3], example, self._request.local_inputs, key in self._seen)
        self._seen.add(key)
        if self._request.local_inputs:
            entry = self._entry(whole_batch(example, self._request.devices))
        else:
            entry = self._entry(example, key)
        program = entry.programs[0]
        read = (*program.parameters, *program.state, *program.updates)
        self._ready(spec.name for spec in read)
        return entry

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
