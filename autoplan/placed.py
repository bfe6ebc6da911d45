"""Parameters and buffers of a planned model, in their places; those of the meta device wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autoplan.errors import ConfigError, InputError
from autoplan.launch import distributed, make_executors, paths_without_values, same_everywhere
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.runtime.executor import Executor

SEED, STEP = "autoplan_random_seed", "autoplan_random_step"
"""Buffers of a module whose plan draws random numbers: a resumed run draws what follows."""


@dataclass(frozen=True)
class Place:
    """Where a parameter or buffer is: its layout, the same on every pipeline rank of `homes`."""

    layout: Layout
    homes: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Form:
    """Shape and type of a parameter or buffer, and the first path that it is known by."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    leader: str
    persistent: bool
    is_parameter: bool


class Part(nn.Module):
    """A place in the original model's tree: parameters, buffers and a mode, but no computation."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ConfigError(
            "a part of a parallel module does not run, so that its hooks would never be called; "
            "register them on the original model's module before parallelize()."
        )

    register_forward_hook = register_forward_pre_hook = _refuse
    register_full_backward_hook = register_full_backward_pre_hook = forward = _refuse


class PlacedModule(nn.Module):
    """Parameters in their storage layouts, and buffers, under the original model's paths.

    Parameters are DTensors under torch.distributed, logical tensors in simulation. A real rank of a
    pipeline has those of its own stages alone; what all ranks must know alike is in `_places` and
    `_forms`.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self._model_name = type(model).__name__
        self._executors: dict[int, Executor] = {}
        """By pipeline rank: of this one, or in simulation of all."""
        self._meshes: tuple[Mesh, ...] = ()
        self._places: dict[str, Place] = {}
        """By the first path of each parameter and buffer."""
        self._forms: dict[str, Form] = {}
        """By every path, in the order of the model's state."""
        self._absent: frozenset[str] = frozenset()
        # Held outside of nn.Module's registry until they are placed.
        self._weights: nn.Module | None
        object.__setattr__(self, "_weights", model)
        # Tensors that came from the meta device, as they were then: they have no value yet.
        self._waiting: dict[str, tuple[Tensor, int]] = {}
        # What the model's own modules return from `get_extra_state`, by path.
        self._extra_states: dict[str, Any] = {}
        # The position in the sequence of random numbers; registered where a plan draws some.
        signed = (seed + 2**63) % 2**64 - 2**63  # the same 64 bits, which are all that is drawn by
        self._unregistered = {
            SEED: torch.tensor(signed, device="cpu"),
            STEP: torch.tensor(0, device="cpu"),
        }

    # -- placing ----------------------------------------------------------------------------

    def _place(self, meshes: Sequence[Mesh], places: Mapping[str, Place]) -> None:
        """Create the executors, and the parameters in their storage layouts.

        `meshes`: of every pipeline rank. What is in no place is whole, on pipeline rank 0. Of a
        model on the meta device every rank makes room for its own shards alone.
        """
        model = self._weights
        assert model is not None
        self._executors = make_executors(meshes, model, int(self._random(SEED)))
        self._meshes = tuple(meshes)
        self._absent = paths_without_values(model)
        state = model.state_dict(keep_vars=True)
        whole = Place(Layout.parse(["B"] * meshes[0].ndim))
        tensors = (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
        leaders: dict[int, str] = {}
        made: dict[str, Tensor | None] = {}
        for path, tensor in tensors:
            leader = leaders.setdefault(id(tensor), path)
            trained = isinstance(tensor, nn.Parameter)
            shape = tuple(tensor.shape)
            self._forms[path] = Form(shape, tensor.dtype, leader, path in state, trained)
            if leader == path:
                self._places[path] = places.get(path, whole)
                made[path] = self._placed(path, tensor)
            value = made[leader]
            if value is not None:
                self._register(path, value, persistent=path in state)
        for path, module in model.named_modules(remove_duplicate=False):
            self._register_module(path, module.training)
        order = [path for path in state if path in self._forms]
        self._forms = {path: self._forms[path] for path in (*order, *self._forms)}
        self._extra_states = {p: value for p, value in state.items() if p not in self._forms}
        object.__setattr__(self, "_weights", None)

    def _placed(self, path: str, tensor: Tensor) -> Tensor | None:
        """What this process holds of a parameter or buffer; None of another pipeline rank's."""
        place = self._places[path]
        executor = next((e for rank, e in self._executors.items() if rank in place.homes), None)
        without = path in self._absent
        value = tensor.detach()
        if not without:
            value = same_everywhere(value, executor or self._live_executor)
        if executor is None:
            return None
        if isinstance(tensor, nn.Parameter):
            value = value.to("meta") if without else value
            held: Tensor = executor.parameter(value, place.layout, tensor.requires_grad)
        elif without:
            held = torch.zeros(tensor.shape, dtype=tensor.dtype, device=executor.device)
        else:
            held = value.to(executor.device, copy=True)
        if without:
            self._await(path, held)
        return held

    def _register(self, path: str, value: Tensor, persistent: bool = True) -> None:
        """Register under the model's own path, in a tree of plain modules."""
        *parents, name = path.split(".")
        owner: nn.Module = self
        for parent in parents:
            if parent not in owner._modules:
                _refuse_taken_name(owner, parent)
                owner.add_module(parent, Part())
            owner = owner._modules[parent]  # type: ignore[assignment]
        _refuse_taken_name(owner, name)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(name, value)
        else:
            owner.register_buffer(name, value, persistent=persistent)

    def _register_module(self, path: str, training: bool) -> None:
        """Have a module at `path`, in that mode: `pm.encoder.dropout.eval()` works as it did."""
        owner: nn.Module = self
        for name in path.split(".") if path else ():
            if name not in owner._modules:
                if _is_taken(owner, name):
                    return
                owner.add_module(name, Part())
            owner = owner._modules[name]  # type: ignore[assignment]
        owner.training = training

    @property
    def _live_executor(self) -> Executor:
        """The executor of this process; of the first pipeline rank in simulation."""
        if not self._executors:
            raise InputError(
                "the module has seen no arguments, and has no plan yet: call it once, or give "
                "example args to parallelize()."
            )
        return next(iter(self._executors.values()))

    @property
    def _ranks_per_stage(self) -> int:
        return self._meshes[0].num_devices

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """Parameters by the original model's paths; InputError before there is a plan."""
        self._live_executor  # noqa: B018  (raises where there is no plan)
        return super().named_parameters(*args, **kwargs)

    def _tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by every path it has."""
        return {
            **dict(self.named_parameters(remove_duplicate=False)),
            **dict(self.named_buffers(remove_duplicate=False)),
        }

    def apply(self, fn: Any) -> Any:
        """Raises ConfigError: the parts have no types by which `fn` could know them."""
        raise ConfigError(
            "apply() on a parallel module meets no layers; apply it to the original model before "
            "parallelize(), or go over named_parameters()."
        )

    # -- tensors without values -------------------------------------------------------------

    def _await(self, path: str, tensor: Tensor) -> None:
        """Note that `tensor` has no value yet: NaN, where its type has one, until it is loaded."""
        local = local_part(tensor)
        with torch.no_grad():
            local.fill_(float("nan") if _has_nan(local) else 0)
        self._waiting[path] = tensor, local._version

    def _still_waiting(self, paths: Iterable[str]) -> list[str]:
        """Which of `paths` have no value yet, on any rank; collective while some are waiting.

        The same paths on every rank, whatever it holds of them.
        """
        known = (self._forms[path].leader for path in paths if path in self._forms)
        asked = [path for path in dict.fromkeys(known) if path in self._absent]
        if not asked:
            return []
        held = self._tensors()
        waiting = [path for path in asked if path in self._waiting]
        empty = [path for path in waiting if self._is_empty(path, held[path])]
        if distributed():
            everywhere: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, empty)
            empty = [path for path in asked if any(path in each for each in everywhere)]
        for path in asked:
            if path not in empty:
                self._waiting.pop(path, None)
        self._absent = self._absent.difference(set(asked).difference(empty))
        return empty

    def _is_empty(self, path: str, tensor: Tensor) -> bool:
        """Still as it was placed. A rank whose shard has no rows cannot tell, and says no."""
        placed, version = self._waiting[path]
        local = local_part(tensor)
        if _has_nan(local):
            # Writes alone say nothing: an optimizer that is initialised by an empty step writes.
            return local.numel() > 0 and bool(local.isnan().all())
        return local.numel() > 0 and tensor is placed and local._version == version

    def _ready(self, paths: Iterable[str]) -> None:
        """Before a run that reads `paths`: all have values, and ranks draw by the seed in force."""
        missing = self._still_waiting(paths)
        if missing:
            raise InputError(self._without_values(missing))
        for executor in self._executors.values():
            for comm in executor.comms:
                comm.seed = self._seed

    def _without_values(self, paths: list[str]) -> str:
        outside = [path for path in paths if not self._forms[path].persistent]
        fix = "load them with load_full_state_dict, or with torch.distributed.checkpoint"
        if outside:
            fix += (
                f"; buffers that are in no state dict ({_listed(outside)}) load_full_state_dict "
                "takes too, or build the model with its buffers on a real device"
            )
        return (
            f"{self._model_name} came from the meta device, without values yet for "
            f"{_listed(paths)}; {fix}."
        )

    # -- random numbers ---------------------------------------------------------------------

    def _random(self, name: str) -> Tensor:
        registered = self._buffers.get(name)
        return self._unregistered[name] if registered is None else registered

    def _keep_random_position(self) -> None:
        """Make seed and step part of the state: the plan draws random numbers."""
        if SEED not in self._buffers:
            for name, value in self._unregistered.items():
                self.register_buffer(name, value)

    @property
    def _seed(self) -> int:
        return int(self._random(SEED))

    @property
    def _steps(self) -> int:
        """How many bodies have run: the position in the sequence of random numbers."""
        return int(self._random(STEP))

    @_steps.setter
    def _steps(self, steps: int) -> None:
        self._random(STEP).fill_(steps)


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(repr, paths[:3])) + more


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def _has_nan(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.itemsize > 1


def _is_taken(owner: nn.Module, name: str) -> bool:
    own = isinstance(owner, PlacedModule)
    return own and (hasattr(type(owner), name) or name in owner.__dict__)


def _refuse_taken_name(owner: nn.Module, name: str) -> None:
    """A path of the model must not hide what a parallel module has of its own."""
    if _is_taken(owner, name):
        raise ConfigError(
            f"the model's {name!r} has the name of an attribute of a parallel module; rename it in "
            "the model, or wrap the model in another module."
        )
