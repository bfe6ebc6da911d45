"""Models from a user's Python file: `build()` makes the model, with or without example arguments.

def build(width=64):                 # --set width=128
    return Net(width)                # or (model, args), or (model, args, kwargs)

def example_inputs(batch=8):         # only where build returns the model alone
    return (torch.zeros(batch, 64),)  # args, kwargs as a dict, or (args, kwargs)
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from autoplan.cli.arguments import ModelOptions
from autoplan.cli.example_arguments import read_arguments
from autoplan.cli.models import Built, converted, settings_of
from autoplan.errors import AutoplanError, ConfigError
from autoplan.parallel.checks import meant

_BUILD, _EXAMPLE = "build", "example_inputs"


def build_from_file(text: str, asked: ModelOptions) -> Built:
    """Call the function that `text` names, and `example_inputs` where it gives no arguments."""
    path, name = _split(text)
    module = _import(path)
    maker = _maker(module, path, name)
    settings = settings_of(asked)
    for key in ("batch", "tokens"):
        value = getattr(asked, key)
        if value is not None:
            settings[key] = value
    example = getattr(module, _EXAMPLE, None)
    _check_settings(settings, {name or _BUILD: maker, _EXAMPLE: example}, path)
    with torch.device("meta") if asked.meta else contextlib.nullcontext():
        value = _called(maker, settings, path)
        model, args, kwargs = _read(value, text)
        if asked.arg:
            args, kwargs = read_arguments(asked.arg)
        elif args is None:
            if not callable(example):
                raise ConfigError(
                    f"{text!r} gives a model without example arguments; return (model, args) or "
                    f"(model, args, kwargs), add a function {_EXAMPLE}() to the file, or write "
                    "them as --arg 'float32[8,64]'."
                )
            args, kwargs = _arguments(_called(example, settings, path), f"{path}:{_EXAMPLE}")
    return converted(Built(model, args or (), kwargs or {}), asked.dtype)


def _split(text: str) -> tuple[str, str | None]:
    """The file or module, and the function where one is named."""
    path, colon, name = text.rpartition(":")
    if not colon or text.endswith(".py"):
        return text, None
    return path, name


# -- the module -----------------------------------------------------------------------------------


def _import(path: str) -> ModuleType:
    if path.endswith(".py") or os.sep in path:
        return _import_file(Path(path))
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(path)
    except (ImportError, ValueError):
        found = None
    if found is None:
        what = (
            f"{path!r} is no Python file"
            if Path(path).exists()
            else f"no module is called {path!r}"
        )
        raise ConfigError(
            f"{what}; a model is path.py:function, or hf:TYPE of transformers, such as hf:gpt2."
        )
    module: ModuleType = _run(lambda: importlib.import_module(path), path)
    return module


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        others = [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no file {str(path)!r}{meant(path.name, others)}.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # what `python path.py` does
    spec = importlib.util.spec_from_file_location(f"autoplan_model_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError(f"{str(path)!r} is no Python file; name one that ends in .py.")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[spec.name] = module
    _run(lambda: loader.exec_module(module), str(path))
    return module


def _maker(module: ModuleType, path: str, name: str | None) -> Any:
    """What the file calls `name`: a function, a class of modules, or a module."""
    wanted = name or _BUILD
    found = module
    for part in wanted.split("."):
        if not hasattr(found, part):
            own = [
                each
                for each, value in vars(module).items()
                if callable(value) and getattr(value, "__module__", "") == module.__name__
            ]
            listed = f"; it defines {', '.join(own)}" if own else ""
            raise ConfigError(f"{path!r} has no {wanted!r}{meant(wanted, own)}{listed}.")
        found = getattr(found, part)
    return found


# -- calls of the user's code ---------------------------------------------------------------------


def _run(function: Callable[[], Any], path: str) -> Any:
    """Call the user's code; what it raises becomes one sentence with file and line."""
    try:
        return function()
    except AutoplanError:
        raise
    except SyntaxError as error:
        raise ConfigError(
            f"{error.filename}, line {error.lineno}: {error.msg}; this is no valid Python."
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [each for each in frames if Path(each.filename).name == Path(path).name]
        at = (own or frames)[-1]
        said = f"{type(error).__name__}: {str(error).strip() or 'without a message'}"
        raise ConfigError(f"{at.filename}, line {at.lineno}: {said}") from error


def _called(maker: Any, settings: Mapping[str, Any], path: str) -> Any:
    if isinstance(maker, nn.Module) or not callable(maker):
        return maker
    given = {key: value for key, value in settings.items() if _takes(maker, key)}
    for each in inspect.signature(maker).parameters.values():
        needed = each.default is each.empty and each.kind not in (
            each.VAR_POSITIONAL,
            each.VAR_KEYWORD,
        )
        if needed and each.name not in given:
            raise ConfigError(
                f"{maker.__name__} of {path!r} needs {each.name!r}: --set {each.name}=..."
            )
    return _run(lambda: maker(**given), path)


def _takes(maker: Any, name: str) -> bool:
    if isinstance(maker, nn.Module) or not callable(maker):
        return False
    parameters = inspect.signature(maker).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return anything or (
        name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    )


def _check_settings(settings: Mapping[str, Any], makers: Mapping[str, Any], path: str) -> None:
    for key in settings:
        if any(_takes(maker, key) for maker in makers.values()):
            continue
        by_maker = {
            name: list(inspect.signature(maker).parameters)
            for name, maker in makers.items()
            if callable(maker) and not isinstance(maker, nn.Module)
        }
        known = [each for names in by_maker.values() for each in names]
        written = f"--{key}" if key in ("batch", "tokens") else f"--set {key}=..."
        takes = " and ".join(f"{name}({', '.join(names)})" for name, names in by_maker.items())
        raise ConfigError(
            f"{written}: nothing in {path!r} has an argument {key!r}{meant(key, known)}; it has "
            f"{takes or 'no function that takes any'}."
        )


# -- what it returned -----------------------------------------------------------------------------


def _read(value: Any, text: str) -> tuple[nn.Module, tuple[Any, ...] | None, Mapping[str, Any]]:
    """The model, its arguments (None where there are none), and its keyword arguments."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    if not parts or not isinstance(parts[0], nn.Module) or len(parts) > 3:
        raise ConfigError(
            f"{text!r} gives {_spoken(value)}, and a model is expected: an nn.Module, "
            "(model, args), or (model, args, kwargs)."
        )
    if len(parts) == 1:
        return parts[0], None, {}
    args, kwargs = _arguments(parts[1], text)
    if len(parts) == 3:
        if not isinstance(parts[2], Mapping):
            raise ConfigError(
                f"{text!r} gives {_spoken(parts[2])} as keyword arguments; a dict is expected."
            )
        kwargs = {**kwargs, **parts[2]}
    return parts[0], args, kwargs


def _arguments(value: Any, where: str) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """args as a tuple, a list or one tensor; kwargs as a dict; or both, (args, kwargs)."""
    if isinstance(value, Tensor):
        return (value,), {}
    if isinstance(value, Mapping):
        return (), value
    if isinstance(value, (tuple, list)):
        if (
            len(value) == 2
            and isinstance(value[0], (tuple, list))
            and isinstance(value[1], Mapping)
        ):
            return tuple(value[0]), value[1]
        return tuple(value), {}
    raise ConfigError(
        f"{where!r} gives {_spoken(value)} as example arguments; a tuple of them is expected, or a "
        "dict of keyword arguments."
    )


def _spoken(value: Any) -> str:
    name = type(value).__name__
    return "nothing" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
