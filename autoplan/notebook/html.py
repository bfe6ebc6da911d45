"""A plan and a parallel module as HTML: self-contained, escaped, without script or colours of text.

Colours of text and lines are those around it, so that it reads on light and on dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from autoplan.errors import AutoplanError
from autoplan.launch import distributed
from autoplan.notebook.figure import COLOURS
from autoplan.placed import local_part
from autoplan.plan import Baseline, Memory, Plan
from autoplan.units import seconds, size

if TYPE_CHECKING:
    from autoplan.module import ParallelModule

_CELL = "padding:2px 10px 2px 0;border:none;background:none;color:inherit;"
_KINDS = (
    "parameters", "gradients", "optimizer", "gathered", "activations", "inputs", "temporaries",
)  # fmt: skip


def plan_html(plan: Plan) -> str:
    """Mesh and scheme, time and memory beside known schemes, what memory holds, and the report."""
    devices = plan.mesh.num_devices
    mode = "training" if plan.training else "inference"
    proof = plan.certificate
    facts = [
        ("devices", f"{devices} x {plan.cluster}, {mode}"),
        ("mesh", str(plan.mesh) if plan.mesh.ndim else "one device"),
        ("scheme", plan.scheme),
        ("certificate", f"{proof.status}, gap {proof.gap:.3%}"),
    ]
    if plan.pipeline is not None:
        rows = f"{len(plan.stages)} stages, {plan.pipeline.bubble:.1%} of the time idle"
        facts.insert(2, ("pipeline", f"{plan.pipeline.schedule}: {rows}"))
    return _frame(
        f"plan of {plan.model}",
        [
            _table([], [[name, value] for name, value in facts]),
            _table(["", "step time", "peak memory a device", ""], list(_compared(plan))),
            _memory(plan.memory),
            _folded("report", f"<pre style='color:inherit'>{escape(plan.report())}</pre>"),
        ],
    )


def module_html(module: ParallelModule) -> str:
    """What this process holds of a parallel module, and its plan."""
    name = f"{type(module).__name__} of {module._model_name}"
    if not module._entries:
        said = "no plan yet: call it once, or give example args to parallelize()"
        return _frame(name, [f"<div>{escape(said)}</div>"])
    executors = module._executors
    count = sum(len(each.ranks) for each in executors.values())
    where = "this rank's parts" if distributed() else f"{count} simulated ranks, values whole"
    parameters = [local_part(each) for each in module.parameters()]
    held = sum(each.numel() * each.element_size() for each in parameters)
    device = next(iter(executors.values())).device
    rows = [
        ["here", f"{where}, on {device}"],
        ["parameters", f"{len(parameters)}, {size(held)}"],
        ["forms of arguments", f"{len(module._entries)} planned"],
    ]
    return _frame(name, [_table([], rows), plan_html(module.plan)])


def _frame(title: str, parts: Iterable[str]) -> str:
    inside = "".join(f"<div style='margin:6px 0'>{part}</div>" for part in parts)
    return (
        "<div style='font-family:sans-serif;font-size:13px;line-height:1.4;color:inherit'>"
        f"<b>{escape(title)}</b>{inside}</div>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows."""
    lines = []
    if head:
        cells = "".join(f"<th style='{_CELL}text-align:left'>{escape(each)}</th>" for each in head)
        lines.append(f"<tr style='background:none'>{cells}</tr>")
    for row in rows:
        cells = "".join(f"<td style='{_CELL}text-align:left'>{escape(each)}</td>" for each in row)
        lines.append(f"<tr style='background:none'>{cells}</tr>")
    style = "border:none;border-collapse:collapse;font-size:inherit"
    return f"<table style='{style}'>{''.join(lines)}</table>"


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _compared(plan: Plan) -> Iterator[list[str]]:
    limit = f"limit {size(plan.memory_limit_bytes)}"
    yield ["this plan", seconds(plan.step_time_s), size(plan.peak_memory_bytes), limit]
    for base in plan.baselines:
        yield _of(base, plan)


def _of(base: Baseline, plan: Plan) -> list[str]:
    if base.step_time_s is None or base.peak_memory_bytes is None:
        return [base.name, "-", "-", base.note]
    more = f"{base.step_time_s / plan.step_time_s:.2f} x the time" if plan.step_time_s else ""
    if base.peak_memory_bytes > plan.memory_limit_bytes:
        more += ", does not fit"
    return [base.name, seconds(base.step_time_s), size(base.peak_memory_bytes), more]


def _memory(memory: Memory) -> str:
    """What is alive at the peak, as one bar."""
    whole = max(memory.total, 1)
    bars, named = [], []
    for kind in _KINDS:
        held = getattr(memory, kind)
        if not held:
            continue
        colour = f"background:{COLOURS[kind]}"
        share = f"width:{100 * held / whole:.3f}%"
        text = escape(f"{kind} {size(held)}")
        style = f"display:inline-block;height:10px;{share};{colour}"
        bars.append(f"<span title='{text}' style='{style}'></span>")
        square = f"<span style='display:inline-block;width:9px;height:9px;{colour}'></span>"
        named.append(f"<span style='margin-right:12px'>{square} {text}</span>")
    bar = f"<div style='border:1px solid;font-size:0;max-width:640px'>{''.join(bars)}</div>"
    where = escape(f"peak in {memory.moment}") if memory.moment else "peak"
    return f"{bar}<div>{where}: {''.join(named)}</div>"


def plan_or_error(module: ParallelModule) -> str:
    """`module_html`, or what is wrong: a notebook shows a module in any state."""
    try:
        return module_html(module)
    except AutoplanError as error:
        return _frame(type(module).__name__, [f"<div>{escape(str(error))}</div>"])
