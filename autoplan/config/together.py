"""A config and keywords together: a keyword wins that is not its default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoplan.config.files import read_config, without_nothing
from autoplan.config.options import check_options
from autoplan.errors import ConfigError

Config = str | Path | Mapping[str, Any] | Sequence[str]
"""A file, options such as `Plan.config`, or a file and overrides, `["run.toml", "memory=40GB"]`."""


def with_config(
    config: Config | None, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`options`, with those of `config` where they were left out.

    An option was left out if it is not there, or as `defaults` has it. Raises ConfigError as
    `read_config` does.
    """
    if config is None:
        return dict(options)
    held = _read(config)
    defaults = {} if defaults is None else defaults
    given = {
        key: value
        for key, value in options.items()
        if key not in held or key not in defaults or not _same(value, defaults[key])
    }
    return {**held, **given}


def _read(config: Config) -> dict[str, Any]:
    if isinstance(config, (str, Path)):
        return read_config(config)
    if isinstance(config, Mapping):
        options = without_nothing(config)
        check_options(options, "config")
        return options
    if not isinstance(config, Sequence) or not config:
        raise ConfigError(
            "config is a file, options as a dict, or a list of a file and overrides such as "
            f"['run.toml', 'memory=40GB'], got {config!r}."
        )
    return read_config(config[0], config[1:])


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))
