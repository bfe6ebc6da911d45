"""Families of models as their users write them: tiny, with random weights, in train mode.

Sizes are uneven on purpose: 6 rows, 7 or 11 tokens, 12 heads, a vocabulary of 101 words. Dropout
is on wherever a model has some. Importing this needs no transformers; building some of it does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]
Built = tuple[nn.Module, tuple[Any, ...], Arguments]
"""A model in train mode, and positional and keyword arguments of a call of it."""

ROWS, TOKENS, VOCABULARY, CLASSES, WIDTH = 6, 7, 101, 5, 24


@dataclass(frozen=True)
class Family:
    """How to build one family; `source` is the file of the builder, "plain" or "transformers"."""

    name: str
    build: Callable[[], Built]
    source: str


FAMILIES: dict[str, Family] = {}


def family(build: Callable[[], Built]) -> Callable[[], Built]:
    """Register a builder under its name."""
    name = build.__name__
    assert name not in FAMILIES, f"two families are called {name}"
    FAMILIES[name] = Family(name, build, "plain")
    return build


def pretrained(
    name: str,
    model: str,
    config: str,
    arguments: Callable[[], Arguments],
    prepare: Callable[[nn.Module], object] = lambda model: None,
    **given: Any,
) -> None:
    """Register a model of transformers, by the names of its classes and the entries of its config.

    `prepare` is called with the model, for what its config does not say.
    """

    def build() -> Built:
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**given))
        prepare(made)
        return made, (), arguments()

    assert name not in FAMILIES, f"two families are called {name}"
    FAMILIES[name] = Family(name, build, "transformers")


def every_family() -> dict[str, Family]:
    """All families, by name."""
    for module in ("language", "perception", "plain", "architectures", "spellings", "layers"):
        importlib.import_module(f"tests.zoo.{module}")
    return FAMILIES


def seeded(name: str, seed: int = 0) -> Built:
    """The family's model and arguments, the same in every process."""
    torch.manual_seed(seed)
    model, args, kwargs = every_family()[name].build()
    return model.train(), args, kwargs


def without_labels(model: nn.Module, kwargs: Arguments) -> Arguments:
    """The arguments of inference; a decoder then reads what were the labels."""
    rest = {name: value for name, value in kwargs.items() if name not in ("labels", "return_loss")}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and "labels" in kwargs:
        rest["decoder_input_ids"] = kwargs["labels"].clamp_min(0)
    return rest


# -- arguments ----------------------------------------------------------------------------------


def tokens(rows: int = ROWS, length: int = TOKENS) -> Tensor:
    """Words without the first three, which are special ones in most vocabularies."""
    return torch.randint(3, VOCABULARY, (rows, length))


def next_words(length: int = TOKENS) -> Callable[[], Arguments]:
    """A language model's batch: some labels are ignored."""

    def arguments() -> Arguments:
        ids = tokens(length=length)
        labels = ids.clone()
        labels[0, :2] = -100
        return {"input_ids": ids, "labels": labels}

    return arguments


def padded_words(length: int = TOKENS) -> Callable[[], Arguments]:
    """The same with a padding mask: rows of different lengths."""

    def arguments() -> Arguments:
        mask = torch.ones(ROWS, length, dtype=torch.int64)
        mask[1, length - 2 :] = 0
        mask[4, length - 3 :] = 0
        return {**next_words(length)(), "attention_mask": mask}

    return arguments


def classified_words() -> Arguments:
    return {"input_ids": tokens(), "labels": torch.randint(0, CLASSES, (ROWS,))}


def pictures(size: int = 16, rows: int = ROWS) -> Callable[[], Arguments]:
    """Pictures with their classes."""

    def arguments() -> Arguments:
        labels = torch.randint(0, CLASSES, (rows,))
        return {"pixel_values": torch.randn(rows, 3, size, size), "labels": labels}

    return arguments


# -- plain modules ------------------------------------------------------------------------------


class Loss(nn.Module):
    """A function of a model and its arguments, as a module."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def sequences() -> Tensor:
    return torch.randn(ROWS, TOKENS, WIDTH)


def vectors(width: int = WIDTH) -> Tensor:
    return torch.randn(ROWS, width)


def classes() -> Tensor:
    return torch.randint(0, CLASSES, (ROWS,))
