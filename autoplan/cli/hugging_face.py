"""Models of transformers by their type, from their config alone: nothing is downloaded.

`hf:gpt2` is `GPT2LMHeadModel(GPT2Config())` with random weights, or none; `--set` replaces entries
of the config, by the names that it has for them or those that transformers shares among families
(`hidden_size`, `num_hidden_layers`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoplan.cli.arguments import ModelOptions
from autoplan.cli.models import Built, converted, settings_of
from autoplan.errors import ConfigError
from autoplan.parallel.checks import meant

_TASKS = {
    "pairs": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "images": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
}
"""What a family is trained for, the first that it has: T5, BERT, GPT-2, ViT."""

EXAMPLES = ("gpt2", "bert", "t5", "vit", "llama", "mixtral")
_ALWAYS = ("num_labels", "attn_implementation", "use_cache", "decoder_start_token_id")
_BATCH, _TOKENS = 8, 128
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class _Family:
    config: Any
    model: Any
    task: str


def build_hugging_face(name: str, asked: ModelOptions, training: bool, values: bool) -> Built:
    """A model of transformers with its usual inputs, labels among them where it trains.

    values: on the CPU with random weights; otherwise on the meta device. Raises ConfigError for an
    unknown type, a size that its config does not have, and an option that does not fit.
    """
    if asked.arg:
        raise ConfigError(f"hf:{name} has arguments of its own; leave --arg out.")
    family = _family(name)
    config = _config(family, name, settings_of(asked))
    with torch.device("cpu" if values else "meta"):
        torch.manual_seed(0)
        model: nn.Module = _made(family, config, name).train(training)
        kwargs = dict(_inputs(family, config, name, asked, training))
    return converted(Built(model, (), kwargs), asked.dtype)


def _family(name: str) -> _Family:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            from transformers import CONFIG_MAPPING
            from transformers.models.auto import modeling_auto
    except ImportError as error:
        raise ConfigError(
            f"hf:{name} needs transformers, which is not installed here: pip install transformers."
        ) from error
    known = tuple(CONFIG_MAPPING.keys())
    if name not in known:
        begun = max((each for each in known if name.startswith(each)), key=len, default="")
        suggested = f" (did you mean {begun!r}?)" if begun else meant(name, known)
        raise ConfigError(
            f"hf:{name} is no type of model that transformers has{suggested}; a type is "
            f"expected, such as {', '.join(EXAMPLES)}: models are built from their config, and "
            "nothing is downloaded."
        )
    config = CONFIG_MAPPING[name]
    for task, mapping in _TASKS.items():
        models = getattr(modeling_auto, mapping)
        if config in models:
            model = models[config]
            return _Family(config, model[0] if isinstance(model, tuple) else model, task)
    raise ConfigError(
        f"hf:{name} is no model of language or images whose inputs are known here; build it in a "
        "Python file of your own, and give path.py:function."
    )


def _config(family: _Family, name: str, settings: Mapping[str, Any]) -> Any:
    """The family's config with `settings`; ConfigError with the nearest name, or the type."""
    usual = family.config()
    shared = dict(getattr(family.config, "attribute_map", {}))
    known = (*usual.to_dict(), *shared, *_ALWAYS)
    for key in settings:
        if key not in known:
            sizes = [each for each in known if isinstance(getattr(usual, each, None), int)]
            raise ConfigError(
                f"--set {key}=...: the config of hf:{name} has no {key!r}{meant(key, known)}; "
                f"whole numbers in it are {', '.join(sizes)}."
            )
    given = {shared.get(key, key): value for key, value in settings.items()}
    for key in given:
        usually = getattr(usual, key, None)
        if isinstance(usually, int) and not isinstance(given[key], int):
            raise ConfigError(f"--set {key}={given[key]!r}: a whole number is expected.")
        counts = isinstance(usually, int) and usually > 0 and not key.endswith("_token_id")
        if counts and given[key] < 1 and not isinstance(usually, bool):
            raise ConfigError(f"--set {key}={given[key]!r}: a number above 0 is expected.")
    if family.task in ("causal", "pairs") and "use_cache" in usual.to_dict():
        given.setdefault("use_cache", False)
    if family.task == "pairs" and getattr(usual, "decoder_start_token_id", None) is None:
        given.setdefault("decoder_start_token_id", getattr(usual, "pad_token_id", None) or 0)
    words = given.get("vocab_size", getattr(usual, "vocab_size", None))
    for key, value in usual.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int) and words and value >= words:
            given.setdefault(key, 0)
    try:
        return family.config(**given)
    except Exception as error:
        raise ConfigError(f"hf:{name} does not take these sizes: {_first(error)}") from error


def _made(family: _Family, config: Any, name: str) -> nn.Module:
    try:
        model: nn.Module = family.model(config)
    except Exception as error:
        raise ConfigError(f"hf:{name} cannot be built with these sizes: {_first(error)}") from error
    return model


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: " + " ".join(str(error).split())


# -- inputs ---------------------------------------------------------------------------------------


def _inputs(
    family: _Family, config: Any, name: str, asked: ModelOptions, training: bool
) -> Mapping[str, Tensor]:
    rows = asked.batch or _BATCH
    if family.task == "images":
        if asked.tokens is not None:
            raise ConfigError(
                f"hf:{name} reads images, which have no tokens; leave --tokens out, or give "
                "--set image_size=..."
            )
        side = getattr(config, "image_size", 224)
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        shape = (rows, getattr(config, "num_channels", 3), height, width)
        images = {"pixel_values": torch.randn(shape)}
        return images | ({"labels": _whole(config.num_labels, (rows,))} if training else {})
    longest, key = _longest(config)
    tokens = asked.tokens if asked.tokens is not None else min(_TOKENS, longest)
    if tokens > longest:
        raise ConfigError(
            f"--tokens {tokens}: hf:{name} has {key}={longest}; add --set {key}={tokens}, or take "
            "fewer."
        )
    ids = _whole(config.vocab_size, (rows, tokens))
    if training:
        return {"input_ids": ids, "labels": ids}
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if family.task == "pairs" else {})


def _longest(config: Any) -> tuple[int, str]:
    """The most tokens of a sequence, and what the config calls them."""
    for key in _LENGTHS:
        value = getattr(config, key, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value, dict(getattr(config, "attribute_map", {})).get(key, key)
    return 2**31, "the length"


def _whole(below: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(max(below, 1), shape)
