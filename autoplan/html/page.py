"""The page: all sections, the plan's data, scripts and styles in one file."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from autoplan.errors import PlanFileError
from autoplan.html import sections, tables
from autoplan.html.advice import advice
from autoplan.html.alternatives import BUDGET_S, Alternatives, alternatives_of
from autoplan.html.data import Graph, charts
from autoplan.html.markup import section
from autoplan.html.spending import spending_of
from autoplan.html.tree import tree_of
from autoplan.html.wiring import asked_of, in_order_of_the_graph, wire
from autoplan.html.words import devices_words
from autoplan.plan import Plan

_STYLES = ("base.css", "graph.css")
_LIBRARIES = ("d3.min.js", "dagre.min.js")
_SCRIPTS = (
    "page.js", "tables.js", "model.js", "details.js", "outline.js", "graph.js", "charts.js",
    "gantt.js", "start.js",
)  # fmt: skip


def write_html(plan: Plan, path: str | Path) -> None:
    """Write the report of `plan` to `path`; PlanFileError where that cannot be written."""
    page = html_of(plan)
    try:
        Path(path).write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise PlanFileError(f"cannot write report {str(path)!r}: {error.strerror}.") from error


def html_of(plan: Plan, budget_s: float = BUDGET_S) -> str:
    """The report as text: HTML that loads nothing. `budget_s`: for alternatives.

    A plan that knows its model is asked for alternatives, which takes some seconds; one that was
    read from a file says what it cannot know.
    """
    tree = tree_of(plan)
    asked = asked_of(plan)
    wiring = wire(tree, asked) if asked else in_order_of_the_graph(tree)
    found = alternatives_of(tree, asked, budget_s) if asked else None
    spending = spending_of(plan, asked)
    data = {
        **Graph(plan, tree, wiring, found).rows(),
        **charts(plan, asked),
        "known": bool(asked),
        "stages": len(plan.stages),
        "left_out": found.left_out if found else 0,
    }
    body = "".join(
        [
            sections.summary(plan, spending, advice(plan, asked, spending)),
            sections.mesh(plan),
            _model(bool(asked), found, bool(plan.stages)),
            _memory(data),
            tables.stages(plan),
            tables.collectives(plan),
            sections.baselines(plan),
            tables.parameters(plan),
            tables.certificate(plan),
            tables.hints(plan),
        ]
    )
    parts = {
        "title": escape(f"{plan.model} on {devices_words(plan)}: autoplan"),
        "model": escape(plan.model),
        "nav": _navigation(plan),
        "body": body,
        "styles": "\n".join(_file("static", name) for name in _STYLES),
        "data": inline_json(data),
        "scripts": "".join(
            f"<script>{inline_script(_file(folder, name))}</script>\n"
            for folder, names in (("vendor", _LIBRARIES), ("static", _SCRIPTS))
            for name in names
        ),
    }
    page = _file("static", "page.html")
    head, *rest = page.split("{{")
    return head + "".join(
        parts[name.strip()] + text for name, _, text in (each.partition("}}") for each in rest)
    )


@cache
def _file(folder: str, name: str) -> str:
    return (files("autoplan.html") / folder / name).read_text(encoding="utf-8")


def inline_json(value: Any) -> str:
    """JSON that no text in it can end the script element of, floats to 6 digits."""
    text = json.dumps(_rounded(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def inline_script(text: str) -> str:
    """A script that may stand inside of HTML: what would end its element is spelled otherwise."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _navigation(plan: Plan) -> str:
    names = [
        ("summary", "Summary"), ("mesh", "Mesh"), ("model", "Model"), ("memory", "Memory"),
        *([("pipeline", "Pipeline")] if plan.pipeline is not None else []),
        ("collectives", "Collectives"), ("baselines", "Baselines"), ("parameters", "Parameters"),
        ("certificate", "Certificate"), ("hints", "Hints"),
    ]  # fmt: skip
    return "".join(f'<a href="#{name}">{text}</a>' for name, text in names)


def _model(known: bool, found: Alternatives | None, staged: bool) -> str:
    """The frame of the graph, the outline beside it, and the details of what is chosen."""
    said = (
        "Modules in the order of data; equal blocks in a row are one node. Choose a node for its "
        "details and alternatives; a double click, Enter or its + opens it. Lines say which "
        "collectives, or sends between stages, run between two nodes, and how long in a step; what "
        "travels in a bucket has its part of the bucket's bytes. Drag to move, Ctrl and the wheel "
        "to zoom."
    )
    if not known:
        said = (
            "This plan was read from a file and does not know its model: ops are drawn in the "
            "order in which they run, without which reads which, and without alternatives. Load "
            "it on the model to see both: "
            "autoplan.parallelize(model, ..., plan=path).plan.save_html."
        )
    elif found is not None and found.left_out:
        said += (
            f" Alternatives of {found.left_out} small decisions were left out, to end in time; "
            "plan.explain(path) has those of every one."
        )
    by_stage = '<option value="stage">stage</option>' if staged else ""
    return section(
        "model", "Model", f"<p>{escape(said)}</p>",
        '<div class="tools"><div class="find"><label for="search">Search modules, ops and '
        'parameters</label><input id="search" type="search" autocomplete="off" role="combobox" '
        'aria-expanded="false" aria-controls="results" aria-autocomplete="list" '
        'placeholder="for example layers.3.mlp"><ul id="results" role="listbox" '
        'aria-label="Found" hidden></ul></div>'
        f'<label>Colour by <select id="colour">{by_stage}<option value="layout">layout</option>'
        '<option value="time">time</option></select></label>'
        '<span class="buttons"><button type="button" id="zoom-in" aria-label="Zoom in">+</button>'
        '<button type="button" id="zoom-out" aria-label="Zoom out">−</button>'
        '<button type="button" id="zoom-fit">Fit</button>'
        '<button type="button" id="fold-all">Fold all</button></span></div>'
        '<div class="workbench"><div class="graph" id="graph" role="group" '
        'aria-label="The model as a graph; the outline has the same as a list"></div>'
        '<aside class="details" id="details" aria-live="polite" aria-label="Details">'
        "<p>Choose a node in the graph or in the outline.</p></aside></div>"
        '<div id="legend" class="chips"></div>'
        "<details id=outline-box><summary>Outline: the same model as a list, for the keyboard"
        '</summary><ul id="outline" role="tree" aria-label="Outline of the model"></ul></details>'
        '<noscript><p class="note">The graph and the charts need JavaScript; every table works '
        "without.</p></noscript>",
    )  # fmt: skip


def _memory(data: dict[str, Any]) -> str:
    over_time = (
        '<h3>Over a step</h3><p id="course-note"></p><div class="buttons" id="course-choice"></div>'
        '<div class="chart" id="course"></div><div id="course-table"></div>'
        if data["courses"]
        else "<p class=note>What is alive over a step is not known: the plan was read from a file "
        "and does not know its model.</p>"
    )
    note = f'<p class="note">{escape(data["bars_note"])}</p>' if data["bars_note"] else ""
    return section(
        "memory", "Memory",
        "<h3>At the peak, by rank</h3>", note, '<div class="chart" id="bars"></div>',
        tables.memory(data), over_time,
    )  # fmt: skip
