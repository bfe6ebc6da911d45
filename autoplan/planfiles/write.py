"""Plan files: a plan as TOML to be read, edited and compared, and back.

First what was asked, then the decisions by path, repeated blocks as one line (see
`planfiles.patterns`), then the figures, which make a report without the model, and the options.
Decisions are read as they stand; the figures of an edited file are those of the plan before, and a
note says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from autoplan.layouts import Layout
from autoplan.plan import Certificate, Collective, Plan
from autoplan.planfiles.patterns import Key, grouped, in_order
from autoplan.policies import without_policy

T = TypeVar("T")

REQUEST = (
    "cluster",
    "devices_per_node",
    "training",
    "optimizer",
    "microbatches",
    "memory_limit_bytes",
    "local_inputs",
    "whole_outputs",
)
"""Fields of a plan that say what was asked, beside the mesh."""
SECTIONS = {
    "parameters": "parameter ",
    "inputs": "input ",
    "buffers": "buffer ",
    "constants": "constant ",
    "operations": "",
}
"""Sections of decisions, and what begins the keys in each; the first that fits is a key's."""
RECOMPUTATION = "recomputation"
"""The section of the blocks that backward computes again; left out where there are none."""
ROWS = ("tensors", "operations", "collectives")
CONFIG = "config"
"""The section of the resolved options; files of plans without them have none."""
DECIDED = ("choices", "recomputed", "pipeline", "stages", "wires", CONFIG)
"""Fields of a plan that stand in sections of their own, before the figures."""
END = "complete"

_TOP = """\
# A plan of autoplan: how a model lies on a device mesh. Edit the decisions, [parameters] to
# [operations], and load the file: what does not fit any more is solved again and listed.
# A layout has one entry for each mesh axis: S(d) a slice along dimension d, B the whole value, B/P
# the whole value with an addend of the gradient, P an addend.
"""
_READERS = "path:n = the layout in which all readers find it"
_COMMENTS = {
    "parameters": "path = layout, or: layout in storage -> layout that a step reads",
    "inputs": _READERS,
    "buffers": _READERS,
    "constants": _READERS,
    "operations": "module/op#number = what each axis splits; ...:n = how all readers find output n",
    RECOMPUTATION: "modules that keep nothing for backward, which runs them forward again",
}
_CONFIG = """\

# Every option as it was resolved, to plan again by: a record, which decides nothing here."""
FIGURES = """\

# Figures: computed again when the plan is loaded on a model; edits here have no effect."""


def write_plan(plan: Plan) -> str:
    """The text of a plan file; the same plan gives the same text."""
    if plan.pipeline is None:
        lines = [_TOP, *request(plan), *decisions(plan), FIGURES, *figures(plan, ("figures",))]
    else:
        from autoplan.planfiles.write_pipeline import pipeline_lines

        lines = [_TOP, *pipeline_lines(plan)]
    return "\n".join([*lines, *_config(plan.config), "", "[end]", f"{END} = true"]) + "\n"


def request(plan: Plan) -> Iterator[str]:
    """What was asked."""
    yield f"format = {toml(plan.format)}"
    yield f"model = {toml(plan.model)}"
    yield from ("", "[request]", mesh_line(plan))
    held = plain(plan, but=[each for each in plan.__struct_fields__ if each not in REQUEST])
    yield from (f"{name} = {listed(held[name])}" for name in REQUEST if name in held)


def _config(config: Mapping[str, Any]) -> Iterator[str]:
    """The resolved options, each table of them as a section of its own."""
    if not config:
        return
    yield from (_CONFIG, f"[{CONFIG}]")
    for name, each in config.items():
        if not _is_table(each):
            yield f"{toml_key(name)} = {listed(each)}"
    for name, each in config.items():
        if _is_table(each):
            yield from ("", f"[{section_name((CONFIG, name))}]")
            yield from (f"{toml_key(key)} = {listed(held)}" for key, held in each.items())


def mesh_line(plan: Plan) -> str:
    """`mesh = { data = 2 }`."""
    return f"mesh = {toml(dict(zip(plan.axes, plan.sizes, strict=True)))}"


def decisions(plan: Plan, under: str = "") -> Iterator[str]:
    """Sections of what was decided; `under`: what begins their names."""
    for section, choices in by_section(plan.choices).items():
        if choices or section in ("parameters", "operations"):
            texts = {key: toml(spell_choice(section, key, text)) for key, text in choices.items()}
            comment = "" if under else f"  # {_COMMENTS[section]}"
            yield from ("", f"[{under}{section}]{comment}", *_grouped(texts))
    if plan.recomputed:
        comment = "" if under else f"  # {_COMMENTS[RECOMPUTATION]}"
        blocks = f"blocks = {listed(list(plan.recomputed))}"
        yield from ("", f"[{under}{RECOMPUTATION}]{comment}", blocks)


def figures(plan: Plan, path: Sequence[str], but: Sequence[str] = ()) -> Iterator[str]:
    """The section of figures at `path`, and the sections of its tables and rows."""
    left_out = ("format", "model", "axes", "sizes", *DECIDED, *REQUEST, *ROWS, *but)
    held = plain(plan, but=left_out)
    yield f"[{section_name(path)}]"
    if len(path) == 1:
        yield f"decisions = {toml(fingerprint(plan))}"
    yield from (f"{key} = {listed(each)}" for key, each in held.items() if not _is_table(each))
    for name, table in held.items():
        if _is_table(table):
            yield from ("", f"[{section_name((*path, name))}]")
            yield from (f"{toml_key(key)} = {listed(each)}" for key, each in table.items())
    if plan.pipeline is None:
        yield from _rows(plan, path)


def section_name(path: Sequence[str]) -> str:
    """The name of a section of sections."""
    return ".".join(map(toml_key, path))


def _rows(plan: Plan, path: Sequence[str]) -> Iterator[str]:
    """The rows by what they are of, repeated blocks as one line."""
    for kind in dict.fromkeys(row.kind for row in plan.tensors):
        yield from ("", f"[{section_name((*path, 'tensors', kind))}]")
        yield from _grouped(
            {
                row.path: toml(plain(row, but=("path", "kind")))
                for row in plan.tensors
                if row.kind == kind
            }
        )
    yield from ("", f"[{section_name((*path, 'operations'))}]")
    yield from _grouped(
        {row.key: toml(plain(row, but=("key", "path", "choice"))) for row in plan.operations}
    )
    yield from collectives(plan.collectives, path)


def collectives(rows: Sequence[Collective], path: Sequence[str]) -> Iterator[str]:
    """The sections of collectives, one for each phase."""
    for phase in dict.fromkeys(row.phase for row in rows):
        yield from ("", f"[{section_name((*path, 'collectives', phase))}]")
        places: dict[str, list[Any]] = {}
        for row in rows:
            if row.phase == phase:
                places.setdefault(row.path, []).append(plain(row, but=("path", "phase")))
        yield from _grouped({place: listed(held) for place, held in places.items()})


def _grouped(values: Mapping[str, str]) -> list[str]:
    lines = grouped({Key.of(key): value for key, value in values.items()})
    return [f"{toml(pattern)} = {value}" for pattern, value in lines]


def canonical(plan: Plan) -> Plan:
    """The plan with choices and rows in the order in which its file is read: block by block."""
    choices: dict[str, str] = {}
    for section, entries in by_section(plan.choices).items():
        for key in arranged(list(entries), str):
            choices[SECTIONS[section] + key] = entries[key]
    return msgspec.structs.replace(
        plan,
        choices=choices,
        tensors=arranged(plan.tensors, lambda row: row.path, lambda row: row.kind),
        operations=arranged(plan.operations, lambda row: row.key),
        collectives=arranged(plan.collectives, lambda row: row.path, lambda row: row.phase),
    )


def arranged(
    rows: Sequence[T], key: Callable[[T], str], section: Callable[[T], str] = lambda row: ""
) -> tuple[T, ...]:
    """Rows section by section, and block by block in each."""
    sections: dict[str, list[T]] = {}
    for row in rows:
        sections.setdefault(section(row), []).append(row)
    return tuple(
        held[at]
        for held in sections.values()
        for at in in_order([Key.of(key(row)) for row in held])
    )


def by_section(choices: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Choices by section of the file, their keys without what the section says."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for key, text in choices.items():
        section = next(name for name, prefix in SECTIONS.items() if key.startswith(prefix))
        found[section][key.removeprefix(SECTIONS[section])] = text
    return found


def fingerprint(plan: Plan) -> str:
    """What the figures were computed from, in short: changes with every edit of a decision."""
    asked = [plan.axes, plan.sizes, *(getattr(plan, name) for name in REQUEST)]
    text = repr((asked, sorted(plan.choices.items()), *plan.recomputed))
    if _is_table(plan.config.get("cluster")):  # which no name stands for
        text += repr(plan.config["cluster"])
    if plan.pipeline is not None:
        cut = (plan.pipeline.schedule, plan.pipeline.size, *sorted(plan.stage_map.items()))
        parts = [(fingerprint(stage), sorted(stage.wires.items())) for stage in plan.stages]
        text += repr((cut, parts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def is_box(key: str) -> bool:
    """Whether a key names the value that readers find, `...:0`, and not what makes it."""
    return re.search(r":\d+$", key) is not None


def spell_choice(section: str, key: str, choice: str) -> str:
    """A choice as the file says it: layouts in brackets, a parameter's once if nothing is boxed."""
    if section == "parameters" and " -> " in choice:
        stored, use = choice.split(" -> ")
        return stored if stored == use and not is_box(key) else choice
    return f"({', '.join(choice.split(' | '))})" if is_box(key) else choice


def read_choice(section: str, key: str, text: str, ndim: int) -> str:
    """A choice from the file's spelling, or any other of the same layout.

    Raises LayoutError for what is no layout, ValueError for another number of axes.
    """
    if section == "parameters" and ("->" in text or not is_box(key)):
        text, policy = without_policy(text)
        stored, arrow, use = text.partition("->")
        layouts = [_layout(part, ndim) for part in ((stored, use) if arrow else (stored, stored))]
        return " -> ".join(map(str, layouts)) + policy
    if is_box(key):
        return " | ".join(map(str, _layout(text.replace("|", ","), ndim)))
    inner = text.strip()
    if inner.startswith("(") and inner.endswith(")"):
        inner = inner[1:-1]
    labels = [each.strip() for each in re.split(r"[|,]", inner)] if inner.strip() else []
    if len(labels) != ndim:
        raise ValueError(_count(text, len(labels), ndim, "indices", "o | B"))
    if not all(labels):
        raise ValueError(f"{text!r} names no index for an axis; write B for one that splits none")
    return " | ".join(labels)


def _layout(text: str, ndim: int) -> Layout:
    layout = Layout.parse(text)
    if len(layout) != ndim:
        raise ValueError(_count(text, len(layout), ndim, "entries", "(B, S(1))"))
    return layout


def _count(text: str, found: int, ndim: int, noun: str, example: str) -> str:
    return (
        f"{text!r} has {found} {noun}, the mesh has {ndim} {'axis' if ndim == 1 else 'axes'}; "
        f"write one for each axis, as {example} on two"
    )


_fields = lru_cache(msgspec.structs.fields)


def plain(value: Any, but: Sequence[str] = ()) -> Any:
    """Structs as dicts, tuples as lists; without None, which TOML lacks, and default values."""
    if isinstance(value, msgspec.Struct):
        return {
            field.name: plain(held)
            for field in _fields(type(value))
            if field.name not in but
            and (held := getattr(value, field.name)) not in (None, field.default)
            and not (isinstance(value, Certificate) and field.name == "seconds")
        }
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def toml(value: Any) -> str:
    """One value as TOML on one line."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{toml_key(key)} = {toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return f"[{', '.join(map(toml, value))}]"


def toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml(key)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def listed(value: Any) -> str:
    """A value; a list of texts or tables has one line for each."""
    if not isinstance(value, list) or not value or not isinstance(value[0], (str, dict)):
        return toml(value)
    return "\n".join(["[", *(f"  {toml(each)}," for each in value), "]"])
