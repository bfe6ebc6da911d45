"""The original model on one device, made comparable: in float64, with keyed dropout."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # torch >= 2.11

from autoplan.runtime.random import dropout_mask

_LOW = (torch.float32, torch.bfloat16, torch.float16)


class ReferenceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below autograd: casts to lower precision keep float64, and dropout draws by position.

    A `.float()` in the model would round. Dropout's masks, attention's too, come from one op,
    whoever calls it; the n-th call draws what the n-th random op of an emitted program draws.
    """

    def __init__(self, seed: int, step: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.step, self.calls = seed, step, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bernoulli_.float:
            return args[0].copy_(self._mask(args[0], 1.0 - args[1]))
        if func is torch.ops.aten.native_dropout.default:
            keep = self._mask(args[0], args[1])
            return args[0] * (keep.to(args[0].dtype) / (1.0 - args[1])), keep
        args = tuple(torch.float64 if _is_low(each) else each for each in args)
        kwargs = {k: torch.float64 if _is_low(v) else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def _mask(self, x: Tensor, p: float) -> Tensor:
        # 1 - (1 - p) is p but for rounding.
        p = round(p, 12)
        keep = dropout_mask(x, p, x.shape, (0,) * x.ndim, self.seed, self.calls, self.step)
        self.calls += 1
        return keep


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _LOW


def materialize(
    structure: nn.Module, state: Mapping[str, Tensor], device: torch.device
) -> nn.Module:
    """The model of `structure` with real float64 weights from `state`, ties kept."""
    memo: dict[int, Any] = {}
    for path, parameter in structure.named_parameters(remove_duplicate=False):
        if id(parameter) not in memo:
            value = _double(state[path].detach()).to(device, copy=True)
            memo[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for path, buffer in structure.named_buffers(remove_duplicate=False):
        memo[id(buffer)] = _double(state[path].detach()).to(device, copy=True)
    return copy.deepcopy(structure, memo)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def run_reference(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int, step: int
) -> Any:
    """The model's outputs, in float64 throughout, with keyed dropout."""
    with ReferenceMode(seed, step):
        return model(*args, **kwargs)
