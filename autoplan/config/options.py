"""The options that a config may hold: their keys, and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from autoplan.errors import ConfigError
from autoplan.parallel import KEYS, PIPELINE_KEYS
from autoplan.parallel.checks import listed, meant
from autoplan.parallel.meshes import AXIS_KEYS
from autoplan.parallel.parts import DATA_KEYS, EXPERT_KEYS, SEQUENCE_KEYS, TENSOR_KEYS


@dataclass(frozen=True)
class Kind:
    """What a value may be: of a type, or one of some `words`. Of a table, `keys` says what each key
    holds, or `each` what all do; of a list, `each` says what its entries are."""

    types: tuple[type, ...]
    said: str
    words: tuple[str, ...] = ()
    keys: Mapping[str, Kind] | None = None
    each: Kind | None = None


WHOLE = Kind((int,), "a whole number")
WHOLE_OR_AUTO = Kind((int,), "a whole number or 'auto'", ("auto",))
NUMBER = Kind((int, float), "a number")
TEXT = Kind((str,), "a text")
FLAG = Kind((bool,), "true or false")
ANY = Kind((str, int, float, bool, dict, list, NoneType), "plain data")

_TYPES = {"mode": TEXT, "preset": TEXT, "sequence_parallel": FLAG}


def _part(keys: tuple[str, ...]) -> Kind:
    """A size, or a table of these keys."""
    entries = {key: _TYPES.get(key, WHOLE) for key in keys}
    return Kind((int, dict), "a size or a table", keys=entries)


_AXES = {
    "data": _part(DATA_KEYS),
    "tensor": _part(TENSOR_KEYS),
    "sequence": _part(SEQUENCE_KEYS),
    "expert": _part(EXPERT_KEYS),
    "mesh": Kind((dict,), "a table of axes and their sizes", each=_part(AXIS_KEYS)),
}
_PIPELINE_TYPES = {
    "size": WHOLE_OR_AUTO,
    "stage_map": Kind((list,), "a list of stages", each=WHOLE),
    "stages": Kind(
        (list,),
        "a list with a table for each pipeline rank",
        each=Kind((dict, NoneType), "a table as parallel itself", keys=_AXES),
    ),
}
_PIPELINE = Kind(
    (int, dict),
    "a size, 'auto', or a table",
    ("auto",),
    {key: _PIPELINE_TYPES.get(key, ANY) for key in PIPELINE_KEYS},
)
_PARALLEL = {key: _PIPELINE if key == "pipeline" else _AXES[key] for key in KEYS}

OPTIONS: Mapping[str, Kind] = {
    "devices": WHOLE,
    "cluster": Kind((str, dict), "the name or the file of a cluster"),
    "parallel": Kind((dict,), "a table", keys=_PARALLEL),
    "preset": TEXT,
    "hints": Kind((dict,), "a table of paths and their layouts", each=ANY),
    "memory": Kind((int, float, str), "a number of bytes, or a text such as '40GB'"),
    "training": FLAG,
    "optimizer": TEXT,
    "microbatches": WHOLE_OR_AUTO,
    "time_limit_s": NUMBER,
    "gap": NUMBER,
    "local_inputs": FLAG,
    "outputs": TEXT,
    "recompute": Kind((bool, str, list), "a text, true, false, or a list of paths"),
    "seed": WHOLE,
}
"""The keywords of `plan` and `parallelize` that a config may hold."""


def check_options(options: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key or a type that no option has; `where` names the config."""
    _check_table(options, OPTIONS, "", where)


def _check(value: Any, kind: Kind, path: str, where: str) -> None:
    # True is an int to Python, and none to a user.
    fits = isinstance(value, kind.types) and (bool in kind.types or not isinstance(value, bool))
    if not fits and not (isinstance(value, str) and value in kind.words):
        raise ConfigError(
            f"{where}: {path} is {value!r}, {_spoken(value)}, and {kind.said} is expected; correct "
            "it, or leave it out."
        )
    if isinstance(value, Mapping):
        if kind.keys is not None:
            _check_table(value, kind.keys, path, where)
        else:
            _check_table(value, dict.fromkeys(value, kind.each or ANY), path, where)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check(each, kind.each or ANY, f"{path}[{number}]", where)


def _check_table(table: Mapping[str, Any], keys: Mapping[str, Kind], path: str, where: str) -> None:
    place = f"{where}: {path}" if path else where
    for key, value in table.items():
        if not isinstance(key, str):
            raise ConfigError(f"{place} has the key {key!r}, which is no text; write it in quotes.")
        if key not in keys:
            known = tuple(keys)
            raise ConfigError(
                f"{place} has no key {key!r}{meant(key, known)}; the keys are {listed(known)}."
            )
        _check(value, keys[key], f"{path}.{key}".removeprefix("."), where)


def _spoken(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    names |= {dict: "a table", list: "a list", NoneType: "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
