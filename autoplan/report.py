"""The plan as text for a terminal: what runs where, what it costs, and what is proven."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from autoplan.hints.pins import PinPrice
from autoplan.layouts import Layout, Split
from autoplan.plan import OperationRow, Plan, TensorRow
from autoplan.policies import POLICY_TEXTS
from autoplan.repeated import (
    Moved,
    kind_of,
    moved_in_a_step,
    read_otherwise,
    repeated_collectives,
    repeated_tensors,
    template,
)
from autoplan.report_pipeline import numbers, print_pipeline, proven_of_pipeline
from autoplan.schemes import scheme_of
from autoplan.units import seconds, size

_WIDTH = 118
_MOST_DEPARTURES = 8
_SHARED = " is read by several stages"
"""How hints end that `pipelining.stages` gives."""
PROLOGUE_WORDS = (
    "each bucket alone, with all its latency; a step counts it as a part of a full bucket"
)
MEMORY_WORDS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "gathered": "gathered parameters",
    "activations": "activations",
    "inputs": "arguments and buffers",
    "temporaries": "temporaries",
}
"""Of the kinds of `Memory`, in the order in which they are told."""


def report(plan: Plan) -> str:
    """Mesh, baseline, layouts per block, collectives, memory, certificate, ops without rules."""
    text = io.StringIO()
    console = Console(file=text, width=_WIDTH, color_system=None, legacy_windows=False)
    _head(console, plan)
    print_pipeline(console, plan)
    _tensors(console, plan)
    _collectives(console, plan)
    _memory(console, plan)
    _certificate(console, plan)
    _shapes(console, plan)
    _operations_without_rule(console, plan)
    _hints(console, given_hints(plan), plan.pins)
    if plan.notes:
        console.print("\nnotes")
        for line in plan.notes:
            console.print(f"  {line}", markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _head(console: Console, plan: Plan) -> None:
    devices = plan.mesh.num_devices
    mode = "training" if plan.training else "inference"
    console.print(
        f"plan of {plan.model} for {devices} device{'s' * (devices != 1)} ({plan.cluster}), {mode}",
        markup=False,
        highlight=False,
    )
    console.print(f"mesh: {plan.mesh}", highlight=False)
    for axis in plan.mesh.axes:
        console.print(f"  {axis}: ranks {plan.mesh.groups(axis)}", markup=False, highlight=False)
    _scheme(console, plan)
    table = Table(box=None, pad_edge=False)
    for column in ("", "step time", "peak memory a device", ""):
        table.add_column(column, justify="left" if not column else "right")
    limit = f"limit {size(plan.memory_limit_bytes)}"
    table.add_row("this plan", seconds(plan.step_time_s), size(plan.peak_memory_bytes), limit)
    for base in plan.baselines:
        if base.step_time_s is None or base.peak_memory_bytes is None:
            table.add_row(base.name, "-", "-", base.note)
            continue
        ratio = ""
        if plan.step_time_s:
            ratio = f"{base.step_time_s / plan.step_time_s:.2f} x this plan's time"
        if base.peak_memory_bytes > plan.memory_limit_bytes:
            ratio += ", does not fit in memory"
        table.add_row(base.name, seconds(base.step_time_s), size(base.peak_memory_bytes), ratio)
    console.print()
    console.print(table, markup=False, highlight=False)


def _scheme(console: Console, plan: Plan) -> None:
    """The known scheme that the plan is, and where it is not."""
    found = scheme_of(plan)
    console.print(f"scheme: {found.name}", markup=False, highlight=False)
    for line in found.departures[:_MOST_DEPARTURES]:
        console.print(f"  but {line}", markup=False, highlight=False, soft_wrap=True)
    if len(found.departures) > _MOST_DEPARTURES:
        console.print(f"  and {len(found.departures) - _MOST_DEPARTURES} more", highlight=False)


def _shapes(console: Console, plan: Plan) -> None:
    """What the search chose from."""
    if not plan.shapes:
        return
    console.print(f"\nsearch: the best of {plan.num_shapes} shapes", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("shape", "at least", "about", "step time", ""):
        table.add_column(column, justify="left" if column in ("shape", "") else "right")
    for row in plan.shapes:
        known = (row.at_least_s, row.about_s, row.step_time_s)
        table.add_row(row.shape, *(seconds(each) if each else "" for each in known), row.status)
    console.print(table, markup=False, highlight=False)


def _tensors(console: Console, plan: Plan) -> None:
    """Every tensor once, those of repeated blocks with equal layouts together."""
    console.print("\nlayouts (* is any block; a parameter stored and read differently shows both)")
    table = Table(box=None, pad_edge=False)
    for column in ("path", "kind", "logical", "local", "layout", "times"):
        table.add_column(column, justify="right" if column == "times" else "left", overflow="fold")
    _add_stages(table, plan)
    for each in repeated_tensors(plan):
        row = each.first
        layout = f"{row.layout} read {row.use}" if read_otherwise(row) else row.layout
        layout += POLICY_TEXTS[row.policy]
        shapes = str(list(row.shape)), str(list(row.local_shape))
        kind = kind_of(plan, row, each.stages[0])
        texts = (each.path, kind, *shapes, layout, str(each.times))
        _add_row(table, texts, numbers(each.stages))
    console.print(table, markup=False, highlight=False)


def _add_stages(table: Table, plan: Plan) -> None:
    if plan.pipeline is not None:
        table.add_column("stages", overflow="fold")


def _add_row(table: Table, texts: Sequence[str], stages: str) -> None:
    """A row, with its stages where the table has a column for them."""
    table.add_row(*[*texts, stages][: len(table.columns)])


def _collectives(console: Console, plan: Plan) -> None:
    sends = "" if plan.pipeline is None else ", and sends between stages,"
    console.print(f"\ncollectives{sends} of a step (bytes of one; time of all, predicted)")
    if not plan.collectives:
        console.print("  none")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("phase", "direction", "kind", "axis", "bytes", "count", "time", "where"):
        right = column in ("bytes", "count", "time")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    _add_stages(table, plan)
    for each in repeated_collectives(plan):
        row, all_of = each.first, Moved.by(each.rows)
        numbers_of = size(row.bytes), str(all_of.count), seconds(all_of.time_s)
        texts = (row.phase, row.direction, row.kind, row.axis, *numbers_of)
        _add_row(table, (*texts, each.path or "the model"), numbers(each.stages))
    console.print(table, markup=False, highlight=False)
    moved = moved_in_a_step(plan)
    everywhere = "" if plan.pipeline is None else ", all stages together"
    console.print(
        f"  a step{everywhere}: {moved.count} collective{'s' * (moved.count != 1)}, "
        f"{size(moved.bytes)}, {seconds(moved.time_s)}",
        highlight=False,
    )
    if any(row.phase == "prologue" for row in plan.collectives):
        console.print(f"  phase prologue: {PROLOGUE_WORDS}", highlight=False)
    if any(row.phase == "outputs" for row in plan.collectives):
        console.print("  phase outputs: only where a call returns more than the loss")


def _memory(console: Console, plan: Plan) -> None:
    whose = "" if plan.pipeline is None else ", of the fullest pipeline rank"
    console.print(f"\npeak memory a device{whose}, predicted")
    table = Table(box=None, pad_edge=False, show_header=False)
    memory = plan.memory
    for name, value in (*memory_rows(plan), ("total", memory.total)):
        name = f"{name} ({plan.optimizer})" if name == MEMORY_WORDS["optimizer"] else name
        table.add_row(f"  {name}", size(value))
    console.print(table, markup=False, highlight=False)
    if memory.moment:
        console.print(f"  reached in {memory.moment}", markup=False, highlight=False)
    if plan.recomputed:
        blocks = dict.fromkeys(map(template, plan.recomputed))
        count = len(plan.recomputed)
        whose = " on the rank with most" if plan.pipeline is not None else ""
        console.print(
            f"  recomputed in backward: {count} block{'s' * (count > 1)} ({', '.join(blocks)}), "
            f"{seconds(plan.recomputation_s)} of a step{whose}",
            markup=False,
            highlight=False,
        )


def memory_words(plan: Plan) -> dict[str, str]:
    """What the kinds of memory are called; where no parameter is gathered, none is said to be."""
    if any(row.kind == "parameter" and _is_gathered(row) for row in plan.tensors):
        return MEMORY_WORDS
    return MEMORY_WORDS | {"gathered": "values of parameters alone"}


def _is_gathered(row: TensorRow) -> bool:
    """Whether a step reads a parameter along some axis in larger parts than it is stored in."""
    stored, use = Layout.parse(row.layout), Layout.parse(row.use or row.layout)
    pairs = zip(stored, use, strict=True)
    return any(isinstance(one, Split) and not isinstance(other, Split) for one, other in pairs)


def memory_rows(plan: Plan) -> list[tuple[str, int]]:
    """The bytes at the peak by kind, in words."""
    return [(name, getattr(plan.memory, kind)) for kind, name in memory_words(plan).items()]


def _certificate(console: Console, plan: Plan) -> None:
    proof = plan.certificate
    what = {
        "optimal": "proven optimal" if proof.gap == 0.0 else "optimal but for the gap",
        "time limit": "best plan within the time limit",
        "not proven": "best plan found, with recomputation as a choice,",
    }.get(proof.status, proof.status)
    known = f"lower bound {seconds(proof.bound)}, gap {proof.gap:.3%}"
    known = known if proof.bound else "no bound was computed"
    console.print(
        f"\ncertificate: {what} under this cost model; step time {seconds(proof.objective)}, "
        f"{known}",
        highlight=False,
    )
    folded = ""
    if proof.folding:
        lost = seconds(proof.folding_s) if proof.folding_s else "nothing"
        folded = f" ({proof.num_classes} with repeated blocks alike, which alone costs {lost})"
    took = f"; solved in {seconds(proof.seconds)}" if proof.seconds else ""
    console.print(
        f"  {proof.num_variables} variables{folded}; "
        f"{proof.num_binaries} binaries in the ILP{took}",
        highlight=False,
    )
    for line in proven_of_pipeline(plan):
        console.print(f"  {line}", markup=False, highlight=False)


def _operations_without_rule(console: Console, plan: Plan) -> None:
    missing: dict[str, list[OperationRow]] = {}
    for row in plan.operations_without_rule:
        missing.setdefault(row.op, []).append(row)
    if not missing:
        return
    console.print("\nops without a rule, run replicated on every rank")
    for op, rows in missing.items():
        time = sum(row.forward_s + row.backward_s for row in rows)
        console.print(
            f"  {op}: {len(rows)} x, {seconds(time)} a step, {_places(rows)}", highlight=False
        )


def given_hints(plan: Plan) -> list[str]:
    """What somebody asked for; not how a pipeline holds what its stages share."""
    return [hint for hint in plan.hints if not hint.endswith(_SHARED)]


def _hints(console: Console, hints: Sequence[str], pins: Sequence[PinPrice]) -> None:
    """What the plan was asked for; of each pin what a step would save without it alone."""
    if not hints and not pins:
        return
    console.print("\nhints" + " (what a plan without one alone saves a step)" * bool(pins))
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "right"):
        table.add_column(justify=justify, overflow="fold")
    for pin in pins:
        if pin.time_s is None or pin.memory_bytes is None:
            table.add_row(f"  {pin.hint}", pin.note, "")
        else:
            saved = _signed(pin.time_s, seconds), _signed(pin.memory_bytes, size)
            table.add_row(f"  {pin.hint}", *(("costs nothing", "") if pin.note else saved))
    if pins:  # they hold every hint, and every scheme once
        console.print(table, markup=False, highlight=False)
        return
    for line in hints:
        console.print(f"  {line}", markup=False, highlight=False)


def _signed(value: float, spell: Callable[[float], str]) -> str:
    return f"-{spell(-value)}" if value < 0 else spell(value)


def _places(rows: Sequence[OperationRow]) -> str:
    paths = list(dict.fromkeys(template(row.path) or "the model itself" for row in rows))
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return "in " + ", ".join(paths[:3]) + more
