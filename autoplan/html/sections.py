"""Sections: the parts of the report that are text and tables, complete without any script."""

from __future__ import annotations

from html import escape

from autoplan.html.markup import Cell, bullets, paragraphs, section, table
from autoplan.html.spending import Spending
from autoplan.html.words import (
    asked_to_keep,
    fitting_baselines,
    glossary,
    headline,
    percent,
    story,
    where_words,
)
from autoplan.plan import Plan
from autoplan.schemes import scheme_of
from autoplan.units import seconds, size

_MOST_RANKS = 256


def summary(plan: Plan, spending: Spending, advised: list[str]) -> str:
    """The first screen: figures, sentences, and what to change."""
    found = scheme_of(plan)
    scheme = f'<p class="scheme">{escape(found.name)}</p>'
    explained = "".join(f"<li>{escape(line)}</li>" for line in glossary(plan))
    departures = ""
    if found.departures:
        lines = found.departures[:12]
        more = len(found.departures) - len(lines)
        shown = bullets([*lines, *([f"and {more} more"] if more else [])])
        places = "place" if len(found.departures) == 1 else "places"
        departures = (
            f"<details><summary>{len(found.departures)} {places} where the plan departs from that "
            f"name</summary>{shown}</details>"
        )
    return section(
        "summary", "Summary",
        f'<p class="lead">{escape(headline(plan))}</p>',
        f'<div class="figures">{"".join(_figures(plan))}</div>',
        _bar_of(plan, spending),
        '<div class="columns"><div><h3>What will run where</h3>', scheme,
        f"<ul>{explained}</ul>", bullets(where_words(plan)), departures, "</div>",
        f"<div><h3>What it costs</h3>{bullets([*story(plan, spending)])}</div>",
        f'<div class="advice"><h3>What to change</h3>{bullets(advised, "ol")}</div></div>',
    )  # fmt: skip


def _figures(plan: Plan) -> list[str]:
    def figure(name: str, value: str, note: str = "") -> str:
        under = f"<span>{escape(note)}</span>" if note else ""
        return f"<div><h3>{escape(name)}</h3><strong>{escape(value)}</strong>{under}</div>"

    limit = percent(plan.peak_memory_bytes, plan.memory_limit_bytes)
    figures = [
        figure("Step time", seconds(plan.step_time_s), "predicted"),
        figure(
            "Peak memory a device",
            size(plan.peak_memory_bytes),
            f"{limit} of {size(plan.memory_limit_bytes)}",
        ),
    ]
    fitting = fitting_baselines(plan)
    if fitting and plan.step_time_s:
        best, time_s = fitting[0]
        ratio = f"{time_s / plan.step_time_s:.2f} ×"
        name = f"speed of {best.name}"
        if plan.mesh.num_devices == 1:
            name = "it is the model as it is, on one device"
        figures.append(figure("Against the best baseline", ratio, name))
    elif plan.baselines:
        figures.append(figure("Against baselines", "–", "none of them fits in memory"))
    figures.append(figure("Certificate", *_proven(plan)))
    return figures


def _proven(plan: Plan) -> tuple[str, str]:
    """What the certificate says in short, and of what."""
    gap = plan.certificate.gap
    if gap == 0.0:
        kept = ", of plans that keep what was asked for" if asked_to_keep(plan) else ""
        return "proven best", f"under this cost model{kept}"
    if plan.certificate.bound:
        return f"at most {percent(gap, 1.0)} to gain", "under this cost model"
    return "not proven", "under this cost model"


def _bar_of(plan: Plan, spending: Spending) -> str:
    """The step as one bar, with the numbers under it; nothing where its parts are not known."""
    parts = spending.shares
    if not parts:
        return ""
    whole = plan.step_time_s or 1.0
    bars = "".join(
        f'<span class="part {each.name}" style="flex-grow:{each.time_s / whole:.6f}"></span>'
        for each in parts
        if each.time_s > 0
    )
    legend = "".join(
        f'<li class="{each.name}"><b>{escape(each.name)}</b> {escape(seconds(each.time_s))} '
        f"({escape(percent(each.time_s, plan.step_time_s))})</li>"
        for each in parts
    )
    return (
        '<div class="step"><h3>A step'
        f"{', on the average rank' if plan.pipeline else ''}</h3>"
        f'<div class="stepbar" aria-hidden="true">{bars}</div>'
        f'<ul class="legend">{legend}</ul></div>'
    )


def mesh(plan: Plan) -> str:
    """Axes, their groups, and the ranks as they sit in nodes."""
    devices = plan.mesh.num_devices
    rows: list[tuple[Cell | str, ...]] = []
    for axis, length in zip(plan.axes, plan.sizes, strict=True):
        groups = plan.mesh.groups(axis)
        shown = ", ".join(str(group) for group in groups[:4])
        more = f" and {len(groups) - 4} more" if len(groups) > 4 else ""
        rows.append((axis, Cell(str(length), length), f"{shown}{more}", _crosses(plan, axis)))
    head = ["axis", "ranks in a group", "groups", "links"]
    if plan.devices_per_node is None:
        head, rows = head[:3], [row[:3] for row in rows]
    said = [f"{devices} device{'s' * (devices != 1)} of {plan.cluster}, as {plan.mesh}."]
    parts = [paragraphs(said)]
    if rows:
        parts += [table("Axes of the mesh", head, rows, numeric=(1,)), _grid(plan)]
    return section("mesh", "Mesh", *parts)


def _crosses(plan: Plan, axis: str) -> str:
    per_node = plan.devices_per_node
    if per_node is None:
        return ""
    across = any(len({rank // per_node for rank in group}) > 1 for group in plan.mesh.groups(axis))
    return "between nodes" if across else "within a node"


def _grid(plan: Plan) -> str:
    """Ranks as buttons, node by node; one that is chosen shows its group on an axis."""
    count = min(plan.mesh.num_devices, _MOST_RANKS)
    per_node = plan.devices_per_node or count
    nodes = []
    for start in range(0, count, per_node):
        ranks = range(start, min(start + per_node, count))
        cells = "".join(
            f'<span class="rank" data-at="{",".join(map(str, plan.mesh.coordinates(rank)))}">'
            f"{rank}</span>"
            for rank in ranks
        )
        title = f"node {start // per_node}" if plan.devices_per_node else "devices"
        nodes.append(f'<div class="node"><h4>{title}</h4><div class="ranks">{cells}</div></div>')
    more = plan.mesh.num_devices - count
    left = f"<p>and {more} more ranks.</p>" if more else ""
    return (
        '<div class="meshgrid" id="meshgrid"><p class="buttons" id="axes" hidden></p>'
        f'<div class="nodes">{"".join(nodes)}</div>{left}</div>'
    )


def baselines(plan: Plan) -> str:
    """This plan beside the known schemes."""
    rows: list[tuple[Cell | str, ...]] = [
        (
            "this plan",
            Cell(seconds(plan.step_time_s), plan.step_time_s),
            Cell("1.00 ×", 1.0),
            Cell(size(plan.peak_memory_bytes), plan.peak_memory_bytes),
            "",
        )
    ]
    for each in plan.baselines:
        if each.step_time_s is None or each.peak_memory_bytes is None:
            rows.append((each.name, "–", "–", "–", each.note))
            continue
        ratio = each.step_time_s / plan.step_time_s if plan.step_time_s else 1.0
        fits = each.peak_memory_bytes <= plan.memory_limit_bytes
        note = each.note if fits else f"does not fit in {size(plan.memory_limit_bytes)}"
        rows.append(
            (
                each.name,
                Cell(seconds(each.step_time_s), each.step_time_s),
                Cell(f"{ratio:.2f} ×", ratio),
                Cell(size(each.peak_memory_bytes), each.peak_memory_bytes),
                note,
            )
        )
    head = ("scheme", "step time", "of this plan's time", "peak memory a device", "")
    return section(
        "baselines", "Baselines",
        "<p>Standard schemes over all devices, priced by the same cost model; what a scheme leaves "
        "open the planner chose, memory not limited.</p>",
        '<div class="chart" id="baselines-chart"></div>',
        table("This plan and the standard schemes", head, rows, numeric=(1, 2, 3)),
    )  # fmt: skip
