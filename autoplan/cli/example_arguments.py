"""Example arguments as text: `float32[8,16]`, `labels=int64[8]`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoplan.errors import ConfigError
from autoplan.parallel import check_name

_TYPES = ("float32", "float64", "bfloat16", "float16", "int64", "int32", "bool")
_FORM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<type>\w+)\[(?P<shape>[\d,\s]*)\]")


def read_arguments(texts: Sequence[str]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Tensors by position, and by name; ConfigError for what is no type with a shape.

    Numbers are drawn from a generator of their own: floats from N(0, 1), whole numbers from {0, 1},
    so that they may be classes or tokens of any model.
    """
    generator = torch.Generator().manual_seed(0)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for text in texts:
        form = _FORM.fullmatch(text.strip())
        if form is None:
            raise ConfigError(
                f"--arg {text!r} is not of the form [NAME=]TYPE[SHAPE], such as 'float32[8,16]' or "
                "'labels=int64[8]'."
            )
        shape = [int(each) for each in form["shape"].split(",") if each.strip()]
        kind = getattr(torch, check_name(form["type"], _TYPES, f"--arg {text!r}: the type"))
        value = draw(kind, shape, generator)
        if form["name"] is None:
            args.append(value)
        else:
            kwargs[form["name"]] = value
    return tuple(args), kwargs


def draw(kind: torch.dtype, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A tensor of a type and a shape, on the CPU or, under `torch.device("meta")`, without data."""
    if torch.get_default_device().type == "meta":
        return torch.empty(tuple(shape), dtype=kind)
    if kind.is_floating_point:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(kind)
    return torch.randint(2, tuple(shape), generator=generator).to(kind)
