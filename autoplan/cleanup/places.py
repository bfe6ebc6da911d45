"""Where a node comes from: the user's file, line and module, for reports and errors."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import fx

_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent.parent),
    sysconfig.get_path("stdlib"),
    "<",
)


def is_users(filename: str) -> bool:
    """Whether code is outside of torch, autoplan and Python itself."""
    return not filename.startswith(_NOT_THE_USERS)


def innermost(frame: FrameType | None, wanted: Callable[[str], bool]) -> FrameType | None:
    """The innermost frame from `frame` outwards whose file is `wanted`."""
    while frame is not None and not wanted(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def at_line(frame: FrameType | None) -> str:
    """` at file:line` of a frame, for an error message; nothing of none."""
    return f" at {frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def at(node: fx.Node) -> str:
    source = source_line(node)
    return f" at {source}" if source else ""


def source_line(node: fx.Node) -> str:
    """`file:line in function: code` of the user's statement that made `node`."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    if len(lines) < 2:
        return ""
    place = lines[-2].strip().replace('File "', "").replace('", line ', ":")
    return f"{place}: {lines[-1].strip()}"


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made `node`, e.g. `transformer.h.0.mlp.c_fc`."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        return str(path)
    return ""


def annotate_paths(graph: fx.Graph) -> None:
    """Note module path and source line on every node, under short names."""
    for node in graph.nodes:
        node.meta["path"] = module_path(node)
        node.meta["source"] = source_line(node)
