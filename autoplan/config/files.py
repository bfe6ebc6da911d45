"""Config files: the options of a plan as TOML or YAML, with `key=value` overrides after them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from autoplan.config.options import check_options
from autoplan.errors import ConfigError


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Keyword options for `plan` and `parallelize`, from a .toml, .yaml or .yml file.

    overrides: texts `key=value` that replace what the file says, the last one of a key wins:
    `"parallel.tensor.size=4"`, `"memory=40GB"`, `"recompute=[layers.*]"`,
    `"hints.'lm_head.weight'=S(0)"`. Values are read as TOML, else as YAML; `null`, or nothing,
    leaves an option out. A cluster's file is looked for beside the config. Raises ConfigError,
    which names the file or the override and the key, for an unknown key, a value of a wrong type,
    and a file that cannot be read.
    """
    if not isinstance(path, (str, Path)):
        raise ConfigError(f"a config is the path of a .toml or .yaml file, got {path!r}.")
    path = Path(path)
    where = f"the config file {str(path)!r}"
    try:
        options = without_nothing(_read(path, where))
        check_options(options, where)
    except RecursionError as error:
        raise ConfigError(f"{where} refers to itself without end; write it out.") from error
    cluster = options.get("cluster")
    if isinstance(cluster, str) and (path.parent / cluster).is_file():
        options["cluster"] = str(path.parent / cluster)
    for text in [overrides] if isinstance(overrides, str) else overrides:
        _override(options, text)
    return without_nothing(options)


def without_nothing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that say None, which is as if they were left out."""
    return {
        key: without_nothing(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
        if value is not None
    }


# -- files --------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML whose keys stand once, and in which 40e9 is a number, as JSON has it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a text, and here a list or a table", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


_READERS: Mapping[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def _read(path: Path, where: str) -> dict[str, Any]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{where} is no .toml, .yaml or .yml file; name it by what it holds.")
    try:
        options = reader(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}; check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not TOML in UTF-8: {error}.") from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{where} is not YAML: {said}.") from error
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ConfigError(
            f"{where} holds {options!r}, and a table of options is expected, such as 'devices: 8'."
        )
    return options


# -- overrides ----------------------------------------------------------------------------------


def _override(options: dict[str, Any], text: str) -> None:
    """Put what an override says into `options`."""
    where = f"the override {text!r}"
    if not isinstance(text, str):
        raise ConfigError(f"{where} is no text; write it as 'key=value'.")
    path, value = _parsed(text, where)
    said: Any = value
    for key in reversed(path):
        said = {key: said}
    check_options(without_nothing(said), where)
    table = options
    for depth, key in enumerate(path[:-1]):
        inner = table.get(key)
        if isinstance(inner, int) and not isinstance(inner, bool):
            inner = {"size": inner}  # parallel.data = 4 is short for parallel.data.size = 4
        if inner is not None and not isinstance(inner, dict):
            held = ".".join(path[: depth + 1])
            raise ConfigError(
                f"{where}: {held} is {inner!r}, which has no keys of its own; give all of {held}."
            )
        table[key] = dict(inner or {})
        table = table[key]
    table[path[-1]] = value


def _parsed(text: str, where: str) -> tuple[list[str], Any]:
    """The keys, from the outermost on, and the value."""
    for at, character in enumerate(text):
        path = _keys(text[:at]) if character == "=" else None
        if path is not None:
            return path, _value(text[at + 1 :].strip(), where)
    raise ConfigError(
        f"{where} is not of the form key=value, such as parallel.tensor.size=4; a key with other "
        "signs than letters, digits, - and _ stands in quotes, such as hints.'layers.*'=B."
    )


def _keys(text: str) -> list[str] | None:
    """The parts of a dotted key, as TOML reads it."""
    try:
        table = tomllib.loads(f"{text} = 0") if "\n" not in text else {}
    except tomllib.TOMLDecodeError:
        return None
    path: list[str] = []
    inner: Any = table
    while isinstance(inner, dict) and len(inner) == 1:
        ((key, inner),) = inner.items()
        path.append(key)
    return path if inner == 0 else None


def _value(text: str, where: str) -> Any:
    """A value as TOML has it; else as YAML, where a text needs no quotes."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        table = {}
    if table.keys() == {"value"}:
        return table["value"]
    plain = re.fullmatch(r"[^\[\]{}\"'\n]*", text) is not None
    try:
        value = _yaml(text)
    except yaml.YAMLError:
        if plain:
            return text  # with signs that YAML keeps for itself, such as "*" and "!S"
        raise ConfigError(
            f"{where}: the value {text!r} cannot be read; put a text in quotes."
        ) from None
    # "use: B/P" is a text here, and a table stands in braces.
    return text if plain and isinstance(value, (dict, list)) else value
