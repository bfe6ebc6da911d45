"""Captures and baselines made once in a process, for tests of what is done with plans."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.baselines import baselines
from autoplan.capture import Captured, capture
from autoplan.plan import Baseline
from autoplan.request import Request

_known: dict[Any, Captured] = {}
_priced: dict[Any, tuple[Captured, tuple[Baseline, ...]]] = {}


@contextmanager
def captured_once(name: Hashable) -> Iterator[None]:
    """Inside, a model captured again with arguments of the same form is the first capture.

    Capture reads a structure without weights and leaves a value that no pass changes. `name` says
    what the model is built from: two models of one name must differ in their weights alone. What
    known schemes take for it is priced once, too: it depends on no hint, pipeline or limit.
    """

    def known(
        model: nn.Module,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        training: bool = True,
    ) -> Captured:
        leaves, spec = pytree.tree_flatten((args, dict(kwargs or {})))
        state = (*model.named_parameters(), *model.named_buffers())
        key = (
            name,
            training,
            torch.is_grad_enabled(),
            tuple(each.training for each in model.modules()),
            tuple((path, _form(tensor)) for path, tensor in state),
            spec,
            tuple(map(_form, leaves)),
        )
        if key not in _known:
            _known[key] = capture(model, args, kwargs, training)
        return _known[key]

    def priced(captured: Captured, request: Request) -> tuple[Baseline, ...]:
        asked = (request.setting, request.local_inputs, request.whole_outputs)
        key = (id(captured), request.devices, repr(request.cluster), *asked)
        if key not in _priced:
            _priced[key] = captured, baselines(captured, request)
        return _priced[key][1]

    with (
        patch("autoplan.planned.capture", known),
        patch("autoplan.planning.capture", known),
        patch("autoplan.planning.baselines", priced),
    ):
        yield


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device.type, leaf.requires_grad
    return type(leaf), leaf
