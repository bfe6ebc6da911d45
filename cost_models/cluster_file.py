"""Cluster files: levels of links around a hardware profile, as TOML; and clusters as plain data.

    profile = "h100"            # a shipped profile, or the path of one beside this file
    devices = 64                # may be left out; else plans for other numbers are refused

    [[levels]]                  # from the node outwards; figures left out are the profile's
    name = "node"
    devices = 8

    [[levels]]                  # the last level joins the whole cluster
    name = "network"
    exceptions = [{ of = "node", groups = [3], bandwidth_bytes_per_s = { value = 25e9, source =
        "one of two ports of its adapters is down" } }]

A third level and those above it give `latency_s`, `bandwidth_bytes_per_s` and `bandwidth_fraction`
themselves, each with its source, per device and in one direction.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from autoplan.cost_models.cluster import Cluster
from autoplan.cost_models.levels import Level, Slower
from autoplan.cost_models.profile import (
    Fraction,
    LinkLevel,
    Profile,
    Quantity,
    load_profile,
    profile_names,
)
from autoplan.errors import ConfigError


class _Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The figures of a link; those left out are another link's."""

    latency_s: Quantity | None = None
    bandwidth_bytes_per_s: Quantity | None = None
    bandwidth_fraction: Fraction | None = None


class _Exception(_Figures, frozen=True, forbid_unknown_fields=True, kw_only=True):
    of: str
    groups: tuple[int, ...]


class _Level(_Figures, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    devices: int | None = None
    exceptions: tuple[_Exception, ...] = ()


class _Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    profile: str | Profile
    name: str = ""
    devices: int | None = None
    devices_per_node: int | None = None
    levels: tuple[_Level, ...] = ()


_FIGURES = tuple(field.name for field in msgspec.structs.fields(_Figures))
_KEYS = [f.name for kind in (_Cluster, _Level, _Exception) for f in msgspec.structs.fields(kind)]


def load_cluster(
    cluster: str | Path | Mapping[str, Any] | Cluster | None, num_devices: int, default: str
) -> Cluster:
    """The cluster that a user names: a profile, a .toml file of a profile or of a cluster, a
    Cluster of the right size, or the plain data of one.

    None means the profile called `default`. Raises ConfigError as `load_profile` does, and when a
    Cluster or a file has another number of devices than `num_devices`.
    """
    if isinstance(cluster, Cluster):
        if cluster.num_devices != num_devices:
            raise ConfigError(
                f"the cluster has {cluster.num_devices} devices, the plan is for {num_devices}; "
                f"make the two equal."
            )
        return cluster
    if isinstance(cluster, Mapping):
        return _read(cluster, num_devices, "the cluster", Path(), "cluster")
    named = default if cluster is None else cluster
    if isinstance(named, Path) or named.endswith(".toml"):
        tables = _tables(Path(named))
        if tables is not None:
            where = f"the cluster file {str(named)!r}"
            return _read(tables, num_devices, where, Path(named).parent, Path(named).stem)
    return Cluster(load_profile(named), num_devices)


def describe_cluster(cluster: Cluster) -> str | dict[str, Any]:
    """A cluster as plain data, which `load_cluster` reads: the name of a shipped profile alone, or
    what a cluster file says."""
    profile = cluster.profile
    shipped = next((each for each in map(load_profile, profile_names()) if each == profile), None)
    if shipped is not None and cluster.devices_per_node is None and not cluster.levels:
        return shipped.name
    found = _Cluster(
        profile=profile if shipped is None else shipped.name,
        devices=cluster.num_devices,
        devices_per_node=cluster.devices_per_node,
        levels=tuple(map(_described, cluster.levels)),
    )
    plain: dict[str, Any] = _without_none(msgspec.json.decode(msgspec.json.encode(found)))
    return plain


def _tables(path: Path) -> dict[str, Any] | None:
    """What a file says if it is a cluster's; None where it is a profile's, or cannot be read."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # a profile's reader says what is wrong
    return tables if {"profile", "levels"} & set(tables) else None


def _read(
    tables: Mapping[str, Any], num_devices: int, where: str, folder: Path, name: str
) -> Cluster:
    try:
        said = msgspec.convert(dict(tables), _Cluster)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} does not fit: {error}{_meant(str(error))}.") from error
    if said.devices not in (None, num_devices):
        raise ConfigError(
            f"{where} has devices = {said.devices}, the plan is for {num_devices}; make the two "
            "equal, or leave devices out of it."
        )
    profile = said.profile
    if isinstance(profile, str):
        beside = folder / profile
        profile = load_profile(beside if beside.suffix == ".toml" else profile)
        if said.name or said.levels:
            profile = msgspec.structs.replace(profile, name=said.name or name, aliases=())
    try:
        return _made(said, profile, num_devices)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _made(said: _Cluster, profile: Profile, num_devices: int) -> Cluster:
    """The first two levels' figures become the profile's, so that questions about its links, such
    as where a faster network pays, are about these."""
    own = ("node_link", "network_link")
    for field, level in zip(own, said.levels, strict=False):
        link = _link(level, getattr(profile, field))
        profile = msgspec.structs.replace(profile, **{field: link})
    levels = []
    for at, each in enumerate(said.levels):
        link = getattr(profile, own[at]) if at < len(own) else _whole(each)
        slower = tuple(Slower(e.of, e.groups, _slower(each, e, link)) for e in each.exceptions)
        levels.append(Level(each.name, each.devices, None if at < len(own) else link, slower))
    return Cluster(profile, num_devices, said.devices_per_node, tuple(levels))


def _link(figures: _Figures, usual: LinkLevel) -> LinkLevel:
    """A link with the usual figures where others are not given."""
    return msgspec.structs.replace(usual, **_given(figures))


def _slower(level: _Level, exception: _Exception, usual: LinkLevel) -> LinkLevel:
    link = _link(exception, usual)
    better = link.achievable_bytes_per_s > usual.achievable_bytes_per_s
    if better or link.latency_s.value < usual.latency_s.value:
        raise ConfigError(
            f"level {level.name!r}: the exception of {exception.of} "
            f"{', '.join(map(str, exception.groups))} is faster than the level's own link; give "
            "the level the faster figures, and make the others the exceptions."
        )
    return link


def _whole(level: _Level) -> LinkLevel:
    missing = [name for name in _FIGURES if getattr(level, name) is None]
    if missing:
        raise ConfigError(
            f"level {level.name!r} says no {' and no '.join(missing)}, and a profile has figures "
            "of two levels only; give them, each as { value = ..., source = '...' }."
        )
    return LinkLevel(**_given(level))


def _given(figures: _Figures) -> dict[str, Any]:
    held = {name: getattr(figures, name) for name in _FIGURES}
    return {name: each for name, each in held.items() if each is not None}


def _described(level: Level) -> _Level:
    figures = {} if level.link is None else _figures(level.link)
    slower = tuple(
        _Exception(of=each.of, groups=each.groups, **_figures(each.link))
        for each in level.exceptions
    )
    return _Level(name=level.name, devices=level.size, exceptions=slower, **figures)


def _figures(link: LinkLevel) -> dict[str, Any]:
    return {name: getattr(link, name) for name in _FIGURES}


def _without_none(value: Any) -> Any:
    """Plain data without what is None, and without lists and texts of nothing."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v not in (None, [], "")}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _meant(error: str) -> str:
    """A guess where the error is about an unknown key."""
    unknown = re.search(r"unknown field `(.*?)`", error)
    near = difflib.get_close_matches(unknown.group(1), _KEYS, n=1) if unknown else []
    return f" (did you mean {near[0]!r}?)" if near else ""
