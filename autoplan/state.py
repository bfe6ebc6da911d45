"""The state of a planned model, saved and loaded.

`torch.distributed.checkpoint` works on `state_dict()` as it is: parameters are DTensors under the
original model's paths, so a checkpoint of one plan loads under any other, on any number of ranks.
Let `torch.distributed.checkpoint.state_dict.get_state_dict` and `set_state_dict` name the
optimizer's state by path, too: `optimizer.state_dict()` alone numbers it, and is empty before the
first step, so that nothing would be loaded. In a pipeline each rank knows the parameters of its own
stages alone, and the optimizer's list of them is another on every rank, of which a checkpoint would
keep one: give both `options=StateDictOptions(flatten_optimizer_state_dict=True)`, which saves what
belongs to each parameter beside it. Such a checkpoint loads with any number of stages, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from autoplan.errors import ConfigError, InputError
from autoplan.launch import distributed
from autoplan.layouts import local_ranges
from autoplan.placed import SEED, STEP, PlacedModule, local_part


class StatefulModule(PlacedModule):
    """A placed module that is saved and loaded by shards, or whole as the original model."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state by the original model's paths; InputError before there is a plan.

        Parameters are DTensors, of which this rank holds its shards. Where the plan draws random
        numbers, their seed and step are buffers too, `autoplan_random_...`: a resumed run goes on
        with the same masks. A checkpoint of the original has none; take them out to load it.
        """
        self._live_executor  # noqa: B018
        return super().state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` returned, or whole tensors, of which each rank takes its shard.

        Raises InputError for missing, unknown or misshapen entries, before anything is changed;
        not `strict`, for misshapen ones only.
        """
        if assign:
            raise ConfigError(
                "load_state_dict(assign=True) would replace tensors whose layout the plan has "
                "fixed; leave assign out, and values are copied."
            )
        own = self.state_dict(keep_vars=True)
        self._refuse(self._misfits(state_dict, strict))
        elsewhere = self._forms.keys() - own.keys()
        state_dict = {path: v for path, v in state_dict.items() if path not in elsewhere}
        shards = {p: v for p, v in state_dict.items() if p not in own or isinstance(v, DTensor)}
        whole = {path: value for path, value in state_dict.items() if path not in shards}
        result = super().load_state_dict(shards, strict=False)
        for path, value in whole.items():
            self._fill(path, own[path], value)
        self._keep_extra_states(state_dict)
        optional = {*whole, *self._extra_states, SEED, STEP}
        for keys in (result.missing_keys, result.unexpected_keys):
            keys[:] = [path for path in keys if path not in optional]
        return result

    def full_state_dict(self) -> dict[str, Any]:
        """The original model's state dict, whole, on the CPU of every rank; collective.

        Tied weights stay one tensor. For a model that no rank can hold, save `state_dict()` by
        `torch.distributed.checkpoint` instead.
        """
        self._live_executor  # noqa: B018
        persistent = [path for path, form in self._forms.items() if form.persistent]
        missing = self._still_waiting(persistent)
        if missing:
            raise InputError(self._without_values(missing))
        held = self._tensors()
        gathered: dict[str, Tensor] = {}
        result: dict[str, Any] = {}
        for path in persistent:
            leader = self._forms[path].leader
            if leader not in gathered:
                gathered[leader] = self._gathered(leader, held.get(leader)).cpu().clone()
            result[path] = gathered[leader]
        return {**result, **self._extra_states}

    @torch.no_grad()
    def _gathered(self, path: str, held: Tensor | None) -> Tensor:
        """The whole value, from the pipeline rank that holds it; collective."""
        place, form = self._places[path], self._forms[path]
        executor = self._executors.get(place.homes[0])
        whole: Tensor | None = None
        if executor is not None:
            assert held is not None
            whole = executor.whole(held, place.layout) if form.is_parameter else held.detach()
        if distributed() and len(self._meshes) > 1:
            if whole is None:
                device = self._live_executor.device
                whole = torch.empty(form.shape, dtype=form.dtype, device=device)
            whole = whole.contiguous()
            dist.broadcast(whole, src=place.homes[0] * self._ranks_per_stage)
        assert whole is not None
        return whole

    def load_full_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Load the original model's state dict; each rank copies its own shards and no more.

        `state` maps paths to whole tensors, best memory-mapped ones (`torch.load(mmap=True)`), or
        to slices of safetensors files (`file.get_slice(path)`), of which only this rank's part is
        read; a mapping that loads what is looked up is asked twice, one tensor at a time. Buffers
        that are in no state dict may be among them; of tied weights one is enough. Give it on every
        rank, or on some, and None on the others: the first that has it then sends them their
        shards. Collective.

        Raises InputError for missing, unknown or misshapen entries, before anything is changed.
        """
        self._live_executor  # noqa: B018
        problems = None
        if state is not None:
            problems = self._misfits(state, strict=True, everywhere=True)
        everyone: list[Any] = [problems]
        if distributed():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, problems)
        givers = [rank for rank, each in enumerate(everyone) if each is not None]
        if not givers:
            raise InputError("load_full_state_dict got None on every rank; give rank 0 the state.")
        self._refuse(next((each for each in everyone if each), []))
        takers = [rank for rank, each in enumerate(everyone) if each is None]
        own = self._tensors()
        keys = set(state or ())
        given = [path for path in self._forms if path in keys]
        if takers:
            box = [given]
            dist.broadcast_object_list(box, src=givers[0])
            given = box[0]
        for path in given:
            if state is None:
                if path in own:
                    self._receive(own[path], givers[0])
                continue
            value = state[path]
            if takers and dist.get_rank() == givers[0]:
                for rank in takers:
                    self._send(path, value, rank)
            if path in own:
                self._fill(path, own[path], value)
        if state is not None:
            self._keep_extra_states(state)

    def _keep_extra_states(self, state: Mapping[str, Any]) -> None:
        self._extra_states.update((p, state[p]) for p in set(state) & self._extra_states.keys())

    @torch.no_grad()
    def _fill(self, path: str, target: Tensor, value: Any) -> None:
        """Copy this rank's part of a whole value."""
        local = local_part(target)
        if isinstance(value, DTensor):
            target.copy_(value)
        elif local.numel():
            rank = dist.get_rank() if isinstance(target, DTensor) else 0
            local.copy_(self._part(path, value, rank))

    @torch.no_grad()
    def _send(self, path: str, value: Any, rank: int) -> None:
        form, homes = self._forms[path], self._places[self._forms[path].leader].homes
        held = not distributed() or rank // self._ranks_per_stage in homes
        if held and all(start < stop for start, stop in self._ranges(path, rank)):
            part = self._part(path, value, rank)
            part = part.to(device=self._live_executor.device, dtype=form.dtype)
            dist.send(part.contiguous(), rank)

    @torch.no_grad()
    def _receive(self, target: Tensor, rank: int) -> None:
        local = local_part(target)
        if local.numel():
            part = torch.empty_like(local)
            dist.recv(part, rank)
            local.copy_(part)

    def _part(self, path: str, value: Any, rank: int) -> Tensor:
        """What `rank` of the job holds of a whole value: a view, or what is read of a file."""
        part: Tensor = value[tuple(slice(*each) for each in self._ranges(path, rank)) or ...]
        return part

    def _ranges(self, path: str, rank: int) -> tuple[tuple[int, int], ...]:
        form = self._forms.get(path)
        if form is None or not form.is_parameter or not distributed():
            shape = self._tensors()[path].shape if form is None else form.shape
            return tuple((0, size) for size in shape)
        pipeline_rank, own = divmod(rank, self._ranks_per_stage)
        mesh, layout = self._meshes[pipeline_rank], self._places[form.leader].layout
        return local_ranges(form.shape, layout, mesh, mesh.coordinates(own))

    def _misfits(
        self, state: Mapping[str, Any], strict: bool, everywhere: bool = False
    ) -> list[str]:
        """What of `state` does not fit this module; missing and unknown names if `strict`.

        `everywhere`: nothing may be missing, of other pipeline ranks neither.
        """
        if not isinstance(state, Mapping):
            return [f"it is a {type(state).__name__}, expected a dict of tensors by path"]
        keys = set(state)  # a mapping may load what it is asked for, even for `in`
        optional = {SEED, STEP, *self._extra_states}
        forms = self._forms
        given = {forms[path].leader for path in keys if path in forms}
        own = self._tensors()
        missing = [
            path
            for path, form in forms.items()
            if form.persistent and form.leader not in given and (everywhere or path in own)
        ]
        known = {path for path, form in forms.items() if form.persistent or everywhere}
        unknown = [path for path in state if path not in known and path not in optional]
        problems = [f"missing {path!r}" for path in missing] if strict else []
        for path in unknown if strict else []:
            near = get_close_matches(str(path), missing or list(forms), n=1)
            problems.append(f"unknown {path!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        for path in [*forms, *(own.keys() - forms.keys())]:
            if path in keys:
                shape = forms[path].shape if path in forms else tuple(own[path].shape)
                problems += _misfit(path, state[path], shape, own.get(path))
        return problems

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise InputError(
                f"state dict does not fit {self._model_name}: {'; '.join(problems[:5])}{more}."
            )


def _misfit(path: str, value: Any, shape: tuple[int, ...], target: Tensor | None) -> list[str]:
    """What is wrong with `value` for a tensor of `shape`, which is `target` if it is held here."""
    found = value.get_shape() if hasattr(value, "get_shape") else getattr(value, "shape", None)
    if found is None:
        return [f"{path!r} is a {type(value).__name__}, expected a tensor"]
    if tuple(found) != shape:
        return [f"{path!r} is {tuple(found)}, expected {shape}"]
    if getattr(value, "is_meta", False):
        return [f"{path!r} is on the meta device, expected a tensor with values"]
    if isinstance(value, DTensor) and target is not None and not isinstance(target, DTensor):
        return [f"{path!r} is a DTensor, expected a whole tensor"]
    return []
