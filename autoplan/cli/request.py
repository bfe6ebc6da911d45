"""What is asked, as the library wants it: a config, then `key=value`, then options of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoplan.cli.arguments import RequestOptions


def options_of(asked: RequestOptions) -> dict[str, Any]:
    """The keywords of `autoplan.plan`, checked as far as they can be without a model.

    Raises ConfigError for what is wrong, what is said twice, and where nothing says the devices.
    """
    from autoplan.errors import ConfigError

    overrides = asked.overrides or []
    _check_keys(overrides)
    options = _read(asked.config, overrides)
    said = _read(None, overrides)
    for key, value in _named(asked):
        if key == "hints":
            held = options.get("hints", {})
            options["hints"] = {**held, **value}
            continue
        if said.get(key, value) != value:
            raise ConfigError(
                f"{_flag(key)} {value!r} and {key}={said[key]!r} say different things; leave one "
                "of them out."
            )
        options[key] = value
    if "devices" not in options:
        raise ConfigError(
            "say for how many devices: --devices 8, or devices=8, or a config file that does."
        )
    make(options)
    return options


def make(options: Mapping[str, Any]) -> Any:
    """The request of `options`; ConfigError for what is wrong in them."""
    from autoplan.request import make_request

    return make_request(**{k: v for k, v in options.items() if k not in ("outputs", "seed")})


def _check_keys(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an argument of the model that stands where options do."""
    from autoplan.config.options import OPTIONS
    from autoplan.errors import ConfigError
    from autoplan.parallel.checks import listed, meant

    for text in overrides:
        key, equals, _ = text.partition("=")
        outer = key.partition(".")[0].strip()
        if equals and outer.isidentifier() and outer not in OPTIONS:
            raise ConfigError(
                f"the override {text!r} has no key {outer!r}{meant(outer, tuple(OPTIONS))}; the "
                f"keys are {listed(tuple(OPTIONS))}, and what belongs to the model is set with "
                f"--set {text}."
            )


def _flag(key: str) -> str:
    return {"training": "--inference: training", "time_limit_s": "--time-limit"}.get(
        key, f"--{key}"
    )


def _read(path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """A config with overrides; without a file, the overrides alone."""
    from autoplan.config import read_config

    if path is not None:
        return read_config(path, overrides)
    with tempfile.TemporaryDirectory() as folder:
        nothing = Path(folder, "nothing.toml")
        nothing.touch()
        return read_config(nothing, overrides)


def _named(asked: RequestOptions) -> Iterator[tuple[str, Any]]:
    """Options of their own, by the key that a config has for them."""
    for key in ("devices", "cluster", "memory", "preset", "optimizer", "gap"):
        value = getattr(asked, key)
        if value is not None:
            yield key, value
    if asked.hint:
        yield "hints", dict(map(_hint, asked.hint))
    if asked.microbatches is not None:
        yield "microbatches", _number(asked.microbatches)
    if asked.recompute:
        words = ("auto", "all", "none")
        alone = len(asked.recompute) == 1 and asked.recompute[0] in words
        yield "recompute", asked.recompute[0] if alone else list(asked.recompute)
    if asked.inference:
        yield "training", False
    if asked.time_limit is not None:
        yield "time_limit_s", asked.time_limit


def _hint(text: str) -> tuple[str, str]:
    """`glob=layout`; the glob ends at the first `=`, the layout may hold more."""
    from autoplan.errors import ConfigError

    glob, equals, layout = text.partition("=")
    if not equals or not glob.strip() or not layout.strip():
        raise ConfigError(
            f"--hint {text!r} is not of the form GLOB=LAYOUT, such as 'lm_head.weight=S(0)'."
        )
    return glob.strip(), layout.strip()


def _number(text: str) -> int | str:
    """A whole number where it is one; what it may be instead, the library says."""
    return int(text) if text.lstrip("-").isdigit() else text
