"""The state of a planned model, saved and loaded.

`torch.distributed.checkpoint` works on `state_dict()` as it is: parameters are DTensors under the
original model's paths, so a checkpoint of one plan loads under any other, on any number of ranks.
Let `torch.distributed.checkpoint.state_dict.get_state_dict` and `set_state_dict` name the
optimizer's state by path, too: `optimizer.state_dict()` alone numbers it, and is empty before the
first step, so that nothing would be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autoplan.errors import ConfigError, InputError
from autoplan.launch import distributed
from autoplan.layouts import local_ranges
from autoplan.placed import SEED, STEP, PlacedModule, local_part
from autoplan.runtime.executor import layout_of


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
        self._refuse(self._misfits(state_dict, own, strict))
        shards = {p: v for p, v in state_dict.items() if p not in own or isinstance(v, DTensor)}
        whole = {path: value for path, value in state_dict.items() if path not in shards}
        result = super().load_state_dict(shards, strict=False)
        for path, value in whole.items():
            self._fill(own[path], value)
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
        executor = self._live_executor
        state = self.state_dict(keep_vars=True)
        missing = self._still_waiting(state)
        if missing:
            raise InputError(self._without_values(missing))
        layouts = {id(state[path]): layout for path, layout in self._storage.items()}
        gathered: dict[int, Tensor] = {}
        result: dict[str, Any] = {}
        for path, value in state.items():
            if path in (SEED, STEP):
                continue
            if id(value) not in gathered:
                known = isinstance(value, nn.Parameter)
                whole = executor.whole(value, layouts[id(value)]) if known else value
                gathered[id(value)] = whole.detach().cpu().clone()
            result[path] = gathered[id(value)]
        return {**result, **self._extra_states}

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
            problems = self._misfits(state, self._tensors(), strict=True)
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
        given = [path for path in own if path in keys]
        if takers:
            box = [given]
            dist.broadcast_object_list(box, src=givers[0])
            given = box[0]
        for path in given:
            if state is None:
                self._receive(own[path], givers[0])
                continue
            value = state[path]
            if takers and dist.get_rank() == givers[0]:
                for rank in takers:
                    self._send(own[path], value, rank)
            self._fill(own[path], value)
        if state is not None:
            self._keep_extra_states(state)

    def _keep_extra_states(self, state: Mapping[str, Any]) -> None:
        self._extra_states.update((p, state[p]) for p in set(state) & self._extra_states.keys())

    @torch.no_grad()
    def _fill(self, target: Tensor, value: Any) -> None:
        """Copy this rank's part of a whole value."""
        local = local_part(target)
        if isinstance(value, DTensor):
            target.copy_(value)
        elif local.numel():
            local.copy_(self._part(target, value, self._live_executor.ranks[0]))

    @torch.no_grad()
    def _send(self, target: Tensor, value: Any, rank: int) -> None:
        if all(start < stop for start, stop in self._ranges(target, rank)):
            part = self._part(target, value, rank)
            part = part.to(device=self._live_executor.device, dtype=target.dtype)
            dist.send(part.contiguous(), rank)

    @torch.no_grad()
    def _receive(self, target: Tensor, rank: int) -> None:
        local = local_part(target)
        if local.numel():
            part = torch.empty_like(local)
            dist.recv(part, rank)
            local.copy_(part)

    def _part(self, target: Tensor, value: Any, rank: int) -> Tensor:
        """What `rank` holds of a whole value: a view of a tensor, or what is read of a file."""
        part: Tensor = value[tuple(slice(*each) for each in self._ranges(target, rank)) or ...]
        return part

    def _ranges(self, target: Tensor, rank: int) -> tuple[tuple[int, int], ...]:
        shape = tuple(target.shape)
        if not isinstance(target, DTensor):
            return tuple((0, size) for size in shape)
        mesh = self._live_executor.mesh
        return local_ranges(shape, layout_of(target), mesh, mesh.coordinates(rank))

    def _misfits(
        self, state: Mapping[str, Any], own: Mapping[str, Tensor], strict: bool
    ) -> list[str]:
        """What of `state` does not fit the tensors `own`; missing and unknown names if `strict`."""
        if not isinstance(state, Mapping):
            return [f"it is a {type(state).__name__}, expected a dict of tensors by path"]
        keys = set(state)  # a mapping may load what it is asked for, even for `in`
        optional = {SEED, STEP, *self._extra_states}
        shared = {id(own[path]) for path in own if path in keys}
        persistent = self.state_dict(keep_vars=True)
        missing = [p for p in persistent if id(own[p]) not in shared and p not in optional]
        unknown = [path for path in state if path not in own and path not in optional]
        problems = [f"missing {path!r}" for path in missing] if strict else []
        for path in unknown if strict else []:
            near = get_close_matches(str(path), missing or list(own), n=1)
            problems.append(f"unknown {path!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        for path, target in own.items():
            if path in keys:
                problems += _misfit(path, state[path], target)
        return problems

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise InputError(
                f"state dict does not fit {self._model_name}: {'; '.join(problems[:5])}{more}."
            )


def _misfit(path: str, value: Any, target: Tensor) -> list[str]:
    """What is wrong with `value` for `target`, if anything."""
    found = value.get_shape() if hasattr(value, "get_shape") else getattr(value, "shape", None)
    if found is None:
        return [f"{path!r} is a {type(value).__name__}, expected a tensor"]
    if tuple(found) != tuple(target.shape):
        return [f"{path!r} is {tuple(found)}, expected {tuple(target.shape)}"]
    if getattr(value, "is_meta", False):
        return [f"{path!r} is on the meta device, expected a tensor with values"]
    if isinstance(value, DTensor) and not isinstance(target, DTensor):
        return [f"{path!r} is a DTensor, expected a whole tensor"]
    return []
