"""Malformed plan files: what makes them of the text of a plan of three residual blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable


def line(start: str, new: str) -> Callable[[str], str]:
    """The first line that starts with `start` replaced."""

    def change(text: str) -> str:
        changed, count = re.subn(
            rf"^{re.escape(start)}.*$", lambda _: new, text, count=1, flags=re.M
        )
        assert count == 1, start
        return changed

    return change


def value(start: str, new: str) -> Callable[[str], str]:
    """The value of the first line whose key starts with `start` replaced."""

    def change(text: str) -> str:
        pattern = rf'^("?{re.escape(start)}[^=\n]*"?) = .*$'
        changed, count = re.subn(pattern, lambda m: f"{m[1]} = {new}", text, count=1, flags=re.M)
        assert count == 1, start
        return changed

    return change


def without(start: str) -> Callable[[str], str]:
    return line(start, "")


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, 1)

    return change


def also(section: str, new: str) -> Callable[[str], str]:
    """One line more at the top of a section."""

    def change(text: str) -> str:
        head = rf"^\[{re.escape(section)}\].*$"
        changed, count = re.subn(head, lambda m: f"{m[0]}\n{new}", text, count=1, flags=re.M)
        assert count == 1, section
        return changed

    return change


def within(section: str, change: Callable[[str], str]) -> Callable[[str], str]:
    """A change of what comes from the head of a section on."""

    def changed(text: str) -> str:
        at = text.index(f"\n[{section}]")
        return text[:at] + change(text[at:])

    return changed


def cut(share: float) -> Callable[[str], str]:
    return lambda text: text[: int(share * len(text))]


def cut_at(mark: str) -> Callable[[str], str]:
    """The file up to and with the first line that holds `mark`: whole lines, and valid TOML."""

    def change(text: str) -> str:
        end = text.index("\n", text.index(mark)) + 1
        return text[:end]

    return change


UP = "layers.{0..2}.up.weight"
LINEAR = "layers.{0..2}.up/linear#1"

WHOLE: dict[str, Callable[[str], str | bytes]] = {
    # cut off, or no text at all
    **{f"cut at {share:.0%}": cut(share) for share in (0.02, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99)},
    **{
        f"cut after {mark}": cut_at(mark)
        for mark in (
            "format =",
            "[request]",
            "whole_outputs",
            "[parameters]",
            "[operations]",
            "# Figures",
            "step_time_s",
            "[figures.memory]",
            "[figures.certificate]",
            "[figures.operations]",
            "[figures.collectives",
            "[end]",
        )
    },
    "empty": lambda text: "",
    "blank": lambda text: " \n\n\t\n",
    "comment": lambda text: "# nothing\n",
    "binary": lambda text: bytes(range(256)),
    "zeros": lambda text: bytes(1000),
    "utf-16": lambda text: text.encode("utf-16"),
    "latin-1": lambda text: ("# é\n" + text).encode("latin-1"),
    "zip": lambda text: b"PK\x03\x04" + text.encode(),
    "carriage returns": lambda text: text.replace("\n", "\r"),
    "prose": lambda text: "weights, not a plan\n",
    "json": lambda text: json.dumps({"a": 1}),
    "json list": lambda text: "[1, 2]",
    "json of version 1": lambda text: json.dumps({"format": "autoplan-plan/1", "choices": {}}),
    "another toml": lambda text: '[tool.ruff]\nline-length = 100\nselect = ["E"]\n',
    "deep lists": lambda text: "x = " + "[" * 20_000 + "]" * 20_000,
    "deep tables": lambda text: "x = " + "{a=" * 5_000 + "1" + "}" * 5_000,
    "deep list in it": also("figures", "notes = " + "[" * 150 + "]" * 150),
    "twice": lambda text: text + text,
    "a line of another": lambda text: text + "[weights]\nx = 1\n",
}

HEAD: dict[str, Callable[[str], str | bytes]] = {
    "no format": without("format"),
    "format 9": line("format", 'format = "autoplan-plan/9"'),
    "format 1": line("format", 'format = "autoplan-plan/1"'),
    "format as number": line("format", "format = 2"),
    "format as list": line("format", 'format = ["autoplan-plan/2"]'),
    "no model": without("model"),
    "model as number": line("model", "model = 3"),
    "unknown at the top": line("model", 'model = "M"\nmodle = "M"'),
    "no request": without("[request]"),
    "no mesh": without("mesh"),
    "mesh as list": line("mesh", "mesh = [2, 2]"),
    "mesh of size 0": line("mesh", "mesh = { outer = 0, inner = 2 }"),
    "mesh of size 1": line("mesh", "mesh = { outer = 1, inner = 2 }"),
    "mesh of negative size": line("mesh", "mesh = { outer = -2, inner = 2 }"),
    "mesh of halves": line("mesh", "mesh = { outer = 2.5, inner = 2 }"),
    "mesh of texts": line("mesh", 'mesh = { outer = "2", inner = 2 }'),
    "mesh of truths": line("mesh", "mesh = { outer = true, inner = 2 }"),
    "mesh of one name": line("mesh", "mesh = { outer = 2, outer = 2 }"),
    "mesh without names": line("mesh", 'mesh = { "" = 2, inner = 2 }'),
    "mesh of three axes": line("mesh", "mesh = { outer = 2, inner = 2, third = 2 }"),
    "mesh of one axis": line("mesh", "mesh = { outer = 4 }"),
    "mesh of a billion": line("mesh", "mesh = { outer = 1000000000, inner = 2 }"),
    "mesh of many digits": line("mesh", f"mesh = {{ outer = {'9' * 5000}, inner = 2 }}"),
    "no cluster": without("cluster"),
    "cluster as number": line("cluster", "cluster = 8"),
    "training as text": line("training", 'training = "yes"'),
    "training as number": line("training", "training = 1"),
    "optimizer as list": line("optimizer", "optimizer = []"),
    "no microbatches": line("microbatches", "microbatches = 0"),
    "negative microbatches": line("microbatches", "microbatches = -4"),
    "huge microbatches": line("microbatches", "microbatches = 1" + "0" * 40),
    "microbatches as float": line("microbatches", "microbatches = 1.5"),
    "negative memory": line("memory_limit_bytes", "memory_limit_bytes = -1"),
    "endless memory": line("memory_limit_bytes", "memory_limit_bytes = inf"),
    "memory as text": line("memory_limit_bytes", 'memory_limit_bytes = "16GB"'),
    "unknown and near in request": also("request", "hint = []"),
    "unknown in request": also("request", "optimiser = 'sgd'"),
    "request as text": lambda text: re.sub(
        r"^\[request\](.|\n)*?\n\n", 'request = "x"\n', text, flags=re.M
    ),
}

DECISIONS: dict[str, Callable[[str], str | bytes]] = {
    "no parameters": without("[parameters]"),
    "no operations": without("[operations]"),
    "parameters as list": lambda text: text.replace("[parameters]", "[[parameters]]"),
    "no layout": value(UP, '"S0"'),
    "empty layout": value(UP, '""'),
    "layout of one axis": value(UP, '"(S(0))"'),
    "layout of three axes": value(UP, '"(S(0), B, B)"'),
    "layout in small letters": value(UP, '"(s(0), b)"'),
    "layout without a bracket": value(UP, '"(S(0), S(1)"'),
    "layout of words": value(UP, '"split, whole"'),
    "two arrows": value(UP, '"(B, B) -> (B, B) -> (B, B)"'),
    "arrow to nothing": value(UP, '"(B, B) ->"'),
    "layout as list": value(UP, '["S(0)", "B"]'),
    "layout as number": value(UP, "0"),
    "layout as table": value(UP, '{ outer = "S(0)" }'),
    "layout as nan": value(UP, "nan"),
    "split of a dimension that is not there": value(UP, '"(S(7), B)"'),
    "split of a negative dimension": value(UP, '"(S(-9), B)"'),
    "split of many digits": value(UP, f'"(S({"9" * 5000}), B)"'),
    "addend in storage": value(UP, '"(P, B)"'),
    "index of one axis": value(LINEAR, '"o"'),
    "index of three axes": value(LINEAR, '"o | o | o"'),
    "index that is empty": value(LINEAR, '"o | "'),
    "index that is not there": value(LINEAR, '"o | zebra"'),
    "index as list": value(LINEAR, '["o", "o"]'),
    "no index": value(LINEAR, '""'),
    "value of an op as an index": value(f"{LINEAR}:0", '"b0 | B"'),
    "value of an op split too far": value(f"{LINEAR}:0", '"(S(5), B)"'),
    "the same key": also("parameters", f'"{UP}" = "(B, B)"'),
    "the same path in two lines": also("parameters", '"layers.1.up.weight" = "(B, B)"'),
    "patterns that overlap": also("operations", '"layers.{1..5}.up/linear#1" = "o | o"'),
    "pattern that is open": also("operations", '"layers.{0..2.up/linear#1" = "o | o"'),
    "pattern without numbers": also("operations", '"layers.{}.up/linear#1" = "o | o"'),
    "pattern of letters": also("operations", '"layers.{a..c}.up/linear#1" = "o | o"'),
    "pattern that falls": also("operations", '"layers.{5..3}.up/linear#1" = "o | o"'),
    "pattern with spaces": also("operations", '"layers.{5, 6}.up/linear#1" = "o | o"'),
    "pattern of a billion": also("operations", '"layers.{3..999999999}.up/linear#1" = "o | o"'),
    "patterns of a billion": also("operations", '"{0..9999}.{0..9999}.{0..9}/relu#1" = "o | o"'),
    "pattern of many digits": also("operations", f'"l.{{3..{"9" * 5000}}}.up/mul#1" = "o | o"'),
    "bare key": also("operations", "layers.0.up = 3"),
}

FIGURES: dict[str, Callable[[str], str | bytes]] = {
    "no figures": lambda text: text[: text.index("[figures]")] + "[end]\ncomplete = true\n",
    "no step time": without("step_time_s"),
    "negative step time": line("step_time_s", "step_time_s = -1.0"),
    "step time nan": line("step_time_s", "step_time_s = nan"),
    "endless step time": line("step_time_s", "step_time_s = inf"),
    "step time as text": line("step_time_s", 'step_time_s = "1 ms"'),
    "decisions of a number": line("decisions", "decisions = 3"),
    "no decisions": without("decisions"),
    "unknown in figures": also("figures", "steptime = 3"),
    "notes as text": also("figures", 'notes = "none"'),
    "negative memory": line("gradients", "gradients = -5"),
    "memory as float": line("gradients", "gradients = 5.5"),
    "memory of many digits": line("gradients", "gradients = 1" + "0" * 30),
    "no kind of memory": without("gradients"),
    "unknown memory": also("figures.memory", "spare = 3"),
    "gap nan": line("gap", "gap = nan"),
    "negative gap": line("gap", "gap = -0.5"),
    "config as list": swap("[config]", "[[config]]"),
    "config of a date": also("config", "when = 2024-01-01"),
    "gap of config nan": within("config", line("gap", "gap = nan")),
    "status as number": line("status", "status = 1"),
    "negative variables": line("num_variables", "num_variables = -1"),
    "baseline without its name": swap('{ name = "data parallel"', '{ nom = "data parallel"'),
    "negative shape": swap("shape = [64, 16]", "shape = [64, -16]"),
    "shape of floats": swap("shape = [64, 16]", "shape = [64.5, 16]"),
    "shape as text": swap("shape = [64, 16]", 'shape = "64 x 16"'),
    "row without a type": swap('dtype = "float32", ', ""),
    "row with more": swap('dtype = "float32", ', 'dtype = "float32", stride = 1, '),
    "row with its path": swap('dtype = "float32", ', 'dtype = "float32", path = "x", '),
    "no rows": lambda text: re.sub(
        r"\[figures\.tensors(.|\n)*?(?=\[figures\.op)", "[figures.tensors]\n\n", text
    ),
    "row of no table": also("figures.tensors.parameter", '"x" = 3'),
    "row twice": also("figures.tensors.parameter", '"layers.1.up.weight" = { dtype = "float32", '
        'shape = [1], local_shape = [1], layout = "(B, B)" }'),
    "row of a bad layout": swap('layout = "(', 'layout = "(Q, '),
    "op of negative time": swap("forward_s = ", "forward_s = -"),
    "op without a name": swap('op = "aten', 'opp = "aten'),
    "collective of a number": also("figures.collectives.body", '"x" = 1'),
    "collective of numbers": also("figures.collectives.body", '"x" = [1]'),
    "collective of negative bytes": swap(" bytes = ", " bytes = -"),
    "collective of half a count": swap("count = 1", "count = 0.5"),
    "end without its word": line("complete", ""),
    "end that is false": line("complete", "complete = false"),
    "end with more": also("end", "more = 1"),
}  # fmt: skip

MALFORMED = {
    f"{group}: {name}": change
    for group, changes in (
        ("whole", WHOLE),
        ("head", HEAD),
        ("decisions", DECISIONS),
        ("figures", FIGURES),
    )
    for name, change in changes.items()
}
