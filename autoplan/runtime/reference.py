"""The original model on one device, made comparable: in float64, with keyed dropout."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # torch >= 2.11

from autoplan.runtime.random import dropout_mask

_LOW = (torch.float32, torch.bfloat16, torch.float16)


class _InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Casts to lower precision become casts to float64: a `.float()` in the model would round."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(torch.float64 if _is_low(each) else each for each in args)
        kwargs = {k: torch.float64 if _is_low(v) else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _LOW


class KeyedDropout(TorchFunctionMode):
    """Dropout calls draw from the generator of emitted programs, numbered as they come."""

    def __init__(self, seed: int, step: int) -> None:
        super().__init__()
        self.seed, self.step, self.calls = seed, step, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.dropout, torch.dropout):
            return self.dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        return func(*args, **kwargs)

    def dropout(
        self,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        train: bool | None = None,
    ) -> Tensor:
        """`F.dropout`, drawing by position."""
        active = training if train is None else train
        return self._draw(input, p) if active and p else input

    def attention(self, *args: Any, **kwargs: Any) -> Tensor:
        """`F.scaled_dot_product_attention`, drawing by position where it drops probabilities."""
        given = inspect.signature(_attention).bind(*args, **kwargs)
        given.apply_defaults()
        if not given.arguments["dropout_p"]:
            return F.scaled_dot_product_attention(*args, **kwargs)
        given.arguments["drop"] = self._draw
        return _attention(*given.args, **given.kwargs)

    def _draw(self, x: Tensor, p: float) -> Tensor:
        keep = dropout_mask(x, p, x.shape, (0,) * x.ndim, self.seed, self.calls, self.step)
        self.calls += 1
        return x * (keep.to(x.dtype) / (1.0 - p if p < 1.0 else 1.0))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    drop: Any = None,
) -> Tensor:
    """Scaled dot-product attention as torch documents it, with `drop` on the probabilities."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None:
        masked = (
            scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else None
        )
        scores = scores + attn_mask if masked is None else masked
    result: Tensor = drop(scores.softmax(-1), dropout_p) @ value
    return result


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
    with KeyedDropout(seed, step), _InDouble():  # type: ignore[no-untyped-call]
        return model(*args, **kwargs)
