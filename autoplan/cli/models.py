"""Models that a command names: `path.py:function`, `package.module:function`, or `hf:TYPE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoplan.cli.arguments import ModelOptions

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Built:
    """A model with its example arguments, the whole batch."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def build(text: str, asked: ModelOptions, training: bool = True, values: bool = False) -> Built:
    """The model that `text` names, and example arguments.

    values: with weights and numbers to compute with; otherwise a model of transformers has shapes
    and types alone. Raises ConfigError for a name, an option or a file that does not fit.
    """
    from autoplan.errors import ConfigError

    kind, colon, name = text.partition(":")
    if colon and kind == "hf":
        from autoplan.cli.hugging_face import build_hugging_face

        return build_hugging_face(name, asked, training, values)
    if values and asked.meta:
        raise ConfigError("--meta builds without weights, which are needed here; leave it out.")
    from autoplan.cli.python_file import build_from_file

    return build_from_file(text, asked)


def is_model(text: str) -> bool:
    """Whether `text` names a model, and no plan file."""
    return text.startswith("hf:") or ":" in text or text.endswith(".py")


def settings_of(asked: ModelOptions) -> dict[str, Any]:
    """What `--set` says, values read as YAML; ConfigError where it is not NAME=VALUE."""
    import yaml

    from autoplan.errors import ConfigError

    settings: dict[str, Any] = {}
    for text in asked.set_ or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"--set {text!r} is not of the form NAME=VALUE, such as --set n_layer=2."
            )
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--set {text!r}: the value cannot be read; put a text in quotes."
            ) from error
    return settings


def converted(built: Built, dtype: str | None) -> Built:
    """The model in another floating type, its floating example arguments too."""
    import torch
    from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

    if dtype is None:
        return built
    to = floating_type(dtype)

    def cast(leaf: Any) -> Any:
        floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.to(to) if floating else leaf

    args, kwargs = pytree.tree_map(cast, (built.args, dict(built.kwargs)))
    return Built(built.model.to(to), args, kwargs)


def floating_type(name: str) -> Any:
    """A floating type of torch by its name; ConfigError suggests the nearest."""
    import torch

    from autoplan.parallel import check_name

    known = ("float32", "bfloat16", "float16", "float64")
    return getattr(torch, check_name(name, known, "the type"))
