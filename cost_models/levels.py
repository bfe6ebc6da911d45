"""Levels of links: nodes, pods of nodes, and so on up to the whole cluster.

A level joins groups of the level below into groups of `size` consecutive ranks. Its link says what
one device has of it, in one direction: of a switch that many devices share, each one's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoplan.cost_models.profile import LinkLevel
from autoplan.errors import ConfigError


@dataclass(frozen=True)
class Slower:
    """A link of a level that is slower for some groups: those called `of`, by their numbers.

    `of`: the name of that level or of one below; groups count from 0, in rank order. Figures that
    are better than the level's own count for nothing.
    """

    of: str
    groups: tuple[int, ...]
    link: LinkLevel


@dataclass(frozen=True)
class Level:
    """A level of links: `size` devices are one group of it, None all of the cluster.

    `link` None: the profile's, `node_link` for the first level and `network_link` for the second.
    """

    name: str
    size: int | None
    link: LinkLevel | None = None
    exceptions: tuple[Slower, ...] = ()


def check_levels(levels: Sequence[Level], num_devices: int) -> None:
    """Raise ConfigError for levels that are no hierarchy, or exceptions that are none of theirs."""
    names = [level.name for level in levels]
    for at, level in enumerate(levels):
        if names.index(level.name) != at:
            raise ConfigError(f"two levels are called {level.name!r}; give each its own name.")
        _check_size(levels, at, num_devices)
        known = {each.name: each.size for each in levels[: at + 1]}
        for each in level.exceptions:
            _check_exception(level, each, known, num_devices)


def _check_size(levels: Sequence[Level], at: int, num_devices: int) -> None:
    level = levels[at]
    last = at == len(levels) - 1
    if level.size is None and not last:
        raise ConfigError(
            f"level {level.name!r} says no devices, and {levels[at + 1].name!r} is above it; give "
            "the number of devices of one of its groups."
        )
    if level.size is None:
        return
    if level.size < 1:
        raise ConfigError(f"a {level.name} has at least 1 device, got devices={level.size}.")
    if last and level.size < num_devices:
        raise ConfigError(
            f"level {level.name!r} has groups of {level.size} devices, and nothing joins those of "
            f"{num_devices} devices; add a level above it."
        )
    below = levels[at - 1].size if at else 1
    if below is not None and level.size % below:
        raise ConfigError(
            f"level {level.name!r} has groups of {level.size} devices, no multiple of the {below} "
            f"of level {levels[at - 1].name!r}; give whole groups of the level below."
        )


def _check_exception(
    level: Level, exception: Slower, known: dict[str, int | None], num_devices: int
) -> None:
    where = f"the exception of {exception.of} {', '.join(map(str, exception.groups))}"
    if exception.of not in known:
        raise ConfigError(
            f"level {level.name!r}: {where} names no level up to this one; use one of "
            f"{', '.join(map(repr, known))}."
        )
    if not exception.groups:
        raise ConfigError(
            f"level {level.name!r}: an exception names no {exception.of} in its groups; give their "
            "numbers, from 0, or leave it out."
        )
    count = -(-num_devices // (known[exception.of] or num_devices))
    for group in exception.groups:
        if not 0 <= group < count:
            raise ConfigError(
                f"level {level.name!r}: there is no {exception.of} {group} among {num_devices} "
                f"devices; use 0 to {count - 1}."
            )
