"""The structure of a model: the model without its data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from autoplan.errors import ConfigError


def structure_of(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters and buffers hold no data; ties are kept.

    They stay on the model's device, unlike on the meta device, so that tensors which its forward
    makes meet them there. Where only a part of them is on the meta device, it joins the others.
    """
    tensors = (*model.parameters(), *model.buffers())
    if any(isinstance(each, (UninitializedParameter, UninitializedBuffer)) for each in tensors):
        raise ConfigError(
            f"{type(model).__name__} has lazy parameters, which have no shape yet; call it once on "
            "example arguments first."
        )
    device = next((each.device for each in tensors if not each.is_meta), torch.device("meta"))
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        trained = parameter.requires_grad
        memo[id(parameter)] = nn.Parameter(_without_data(parameter, device), requires_grad=trained)
    for buffer in model.buffers():
        memo[id(buffer)] = _without_data(buffer, device)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]}); a plan works "
            "on a copy of its structure: keep only parameters, buffers, modules and plain values "
            "as attributes."
        ) from error


def _without_data(tensor: Tensor, device: torch.device) -> Tensor:
    """Shape, type and strides of `tensor`, with an empty storage."""
    twin = torch.empty_like(tensor.detach(), device=device if tensor.is_meta else tensor.device)
    if not twin.is_meta:
        twin.untyped_storage().resize_(0)
    return twin
