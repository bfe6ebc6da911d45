"""Checks of what a user wrote: names with the nearest known one, and positive whole numbers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from autoplan.errors import ConfigError


def positive(value: Any, name: str) -> int:
    """`value`, called `name`, if it is a positive whole number; else ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive whole number, got {value!r}.")
    return value


def check_key(key: Any, known: Sequence[str], where: str) -> None:
    """Raise ConfigError, with the nearest one, for a key that `where` does not have."""
    if key not in known:
        raise ConfigError(
            f"{where} has no key {key!r}{meant(key, known)}; the keys are {listed(known)}."
        )


def check_name(name: Any, known: Sequence[str], what: str) -> str:
    """`name`, one of the `known` names of a `what`; ConfigError suggests the nearest."""
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{what} {name!r} is not known{meant(name, known)}; use {listed(known)}.")
    return name


def meant(name: Any, known: Sequence[str]) -> str:
    """` (did you mean 'size'?)`, or nothing where no known name is near."""
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def listed(names: Sequence[str]) -> str:
    """Names in quotes, with commas."""
    return ", ".join(map(repr, names))
