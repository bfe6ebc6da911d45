"""The report in a browser: drawn without errors, searched, chosen from, sorted, by keyboard too."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoplan.html.page import html_of
from autoplan.plan import load_plan
from tests.html.browser import Page
from tests.html.plans import hostile, inference, piped, small

WIDTHS = (400, 1280)
NAMES = ("small", "piped", "file", "hostile")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    piped().save(folder / "plan.toml")
    plans = {
        "small": small(),
        "piped": piped(),
        "file": load_plan(folder / "plan.toml"),
        "hostile": hostile(),
    }
    for name, plan in plans.items():
        (folder / f"{name}.html").write_text(html_of(plan, budget_s=1.5), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in plans}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn(
    page: Page, reports: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page.open(reports[name], width, scheme=scheme)
    for section in page.run("[...document.querySelectorAll('main > section')].map((s) => s.id)"):
        page.run(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
        page.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 10)))")
    page.wait("document.querySelectorAll('#bars svg rect').length > 0")
    assert page.run("document.querySelectorAll('#graph .node-box').length") >= 3
    assert page.run("document.querySelectorAll('#graph .edge').length") >= 1
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [
        reports[name].resolve().as_uri()
    ]
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("window.hit") is None
    assert page.run("document.querySelectorAll('img').length") == 0
    if name in ("piped", "file"):
        page.wait("document.querySelectorAll('#gantt rect.kind').length >= 32")


def test_lines_between_stages_say_what_is_sent(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["piped"])
    labels = page.run(
        "[...document.querySelectorAll('.edge.stages text')].map((e) => e.textContent)"
    )
    assert len(labels) == 3
    assert all(label.startswith("send ") for label in labels)


def test_a_long_name_does_not_widen_the_page(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["small"], 400)
    page.run(
        "document.getElementById('course-note').textContent = `in ${'a_long.name'.repeat(20)}`"
    )
    assert page.run("document.documentElement.scrollWidth") <= 400


def test_a_forward_pass_speaks_of_no_gradients(page: Page, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html_of(inference(), budget_s=0.2), encoding="utf-8")
    page.open(tmp_path / "report.html", height=9000)
    page.wait("document.querySelectorAll('#gantt rect.kind').length > 0")
    page.wait("document.querySelectorAll('#course-table td').length > 0")
    for name in ("gantt", "course-note", "course-table", "bars"):
        said = page.run(f"document.getElementById('{name}').textContent")
        assert said
        assert not {"gradient", "optimizer", "backward"} & set(said.replace(",", " ").split()), name
        assert "gradients" not in said


def test_first_paint_is_quick(page: Page, reports: dict[str, Path]) -> None:
    assert page.first_paint_ms(reports["small"]) < 1000


def test_labels_of_the_graph_do_not_overlap(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["small"])
    page.run("workbench.toggle(model.nodes.find((node) => node.members))")
    boxes = page.run(
        "[...document.querySelectorAll('.node-box:not(.cluster) > rect.box')].map((e) => "
        "[e.x.baseVal.value, e.y.baseVal.value, e.width.baseVal.value, e.height.baseVal.value])"
    )
    assert len(boxes) > 6
    for i, (x, y, w, h) in enumerate(boxes):
        for u, v, p, q in boxes[:i]:
            assert x + w <= u or u + p <= x or y + h <= v or v + q <= y
    wide = page.run(
        "[...document.querySelectorAll('.node-box:not(.cluster)')].filter((e) => "
        "[...e.querySelectorAll('text.name, text.under')].some((t) => "
        "t.getBBox().x + t.getBBox().width > e.querySelector('.box').getBBox().x + "
        "e.querySelector('.box').getBBox().width + 1)).map((e) => e.textContent)"
    )
    assert wide == []


@pytest.mark.parametrize("name", ["small", "piped"])
def test_what_a_node_moves_is_all_that_moves_inside(
    page: Page, reports: dict[str, Path], name: str
) -> None:
    """Of every module: what its parts move, and what runs on the edges between them."""
    page.open(reports[name], 1280)
    found = page.run("""
      model.nodes.filter((node) => node.k === "module").map((node) => {
        const within = new Set();
        (function add(each) { within.add(each.id); each.children.forEach(add); })(node);
        const parts = model.nodes.filter((each) => within.has(each.id));
        const own = parts.map((each) => (each.moves_s ?? 0) + (each.between_s ?? 0));
        const edges = model.edges.filter(([from, to]) => within.has(from) && within.has(to));
        const sum = (values) => values.reduce((a, b) => a + b, 0);
        return [model.moving(node), sum(own) + sum(edges.map((edge) => edge[2]))];
      })
    """)
    assert len(found) > 5
    assert any(moved > 0 for moved, _ in found), "collectives, and sends between stages"
    for moved, parts in found:
        assert moved == pytest.approx(parts, rel=1e-9)


def test_search_finds_a_layer_inside_of_a_folded_node(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["small"])
    page.click("#search")
    page.write("h.4.mlp.c_fc/addmm")
    assert page.run("document.getElementById('results').hidden") is False
    assert page.run("document.querySelector('#results li').textContent").startswith(
        "transformer.h.4.mlp.c_fc/addmm#1"
    )
    page.press("Enter")
    title = page.run("document.querySelector('#details h3').textContent")
    assert title.startswith("transformer.h.{")
    assert title.endswith("mlp.c_fc/addmm#1")
    assert page.run("document.querySelectorAll('.node-box.picked').length") == 1
    assert page.run("document.querySelectorAll('.cluster').length") > 0


def test_search_says_where_nothing_is(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["small"])
    page.click("#search")
    page.write("no such layer")
    assert "Nothing" in page.run("document.getElementById('results').textContent")


def test_a_click_shows_details_and_alternatives(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["small"])
    chosen = "model.nodes.find((node) => node.alt && node.k === 'op')"
    page.run(f"workbench.choose({chosen}, {{reveal: true}})")
    page.run("workbench.choose(model.root)")
    assert page.run("document.querySelectorAll('.alternatives').length") == 0
    page.run(
        "[...document.querySelectorAll('.node-box')].find((box) => "
        f"d3.select(box).datum() === {chosen}).querySelector('.strip').setAttribute('id', 'here')"
    )
    page.click("#here")
    title = page.run("document.querySelector('#details h3').textContent")
    assert title == page.run(f"model.fullPath({chosen})")
    rows = page.run(
        "[...document.querySelectorAll('.alternatives tbody tr')].map((row) => row.textContent)"
    )
    assert len(rows) > 1
    assert sum("this plan" in row for row in rows) == 1
    assert page.run("document.querySelectorAll('.alternatives tr.mine').length") == 1


def test_a_plan_from_a_file_says_that_alternatives_are_unknown(
    page: Page, reports: dict[str, Path]
) -> None:
    page.open(reports["file"])
    page.run("workbench.choose(model.nodes.find((node) => node.k === 'op' && !node.view))")
    assert "read from a file" in page.run("document.getElementById('details').textContent")


def test_the_collectives_are_sorted_by_a_click(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["small"])
    table = "document.getElementById('collectives-table')"
    values = f"[...{table}.tBodies[0].rows].map((row) => Number(row.cells[4].dataset.value))"
    head = f"{table}.tHead.rows[0].cells[4].getAttribute('aria-sort')"
    assert page.run(head) == "none"
    page.click("#collectives-table th:nth-child(5) button")
    assert page.run(head) == "descending"
    found = page.run(values)
    assert len(found) > 3
    assert found == sorted(found, reverse=True)
    page.run(f"{table}.querySelector('th:nth-child(5) button').focus()")
    page.press("Enter")
    assert page.run(head) == "ascending"
    assert page.run(values) == sorted(found)
    assert page.run(f"{table}.querySelectorAll('[aria-sort=none]').length") == 7


def test_the_keyboard_walks_the_outline(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["small"])
    page.run("document.getElementById('outline-box').open = true")
    page.run("document.querySelector('#outline [role=treeitem]').focus()")
    for _ in range(3):
        page.press("ArrowDown")
    chosen = page.run("document.activeElement.node.name")
    page.press("ArrowRight")
    assert page.run("document.activeElement.getAttribute('aria-expanded')") in (None, "true")
    page.press("Enter")
    assert chosen in page.run("document.querySelector('#details h3').textContent")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert page.run("document.activeElement.getAttribute('role')") == "treeitem"


def test_the_keyboard_opens_a_node_of_the_graph(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["small"])
    page.run("document.querySelector('.node-box[tabindex=\"0\"]').focus()")
    count = page.run("document.querySelectorAll('.node-box').length")
    page.press("Enter")
    assert page.run("document.querySelectorAll('.node-box').length") > count
    page.click("#fold-all")
    assert page.run("document.querySelectorAll('.node-box').length") == count


def test_light_and_dark(page: Page, reports: dict[str, Path]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.open(reports["small"], scheme="dark")
    dark = page.run(ground)
    assert page.run("document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    page.click("#theme")
    light = page.run(ground)
    assert light != dark
    page.open(reports["small"], scheme="light")
    assert page.run(ground) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(page: Page, reports: dict[str, Path], scheme: str) -> None:
    """WCAG 2.1 AA: 4.5 to 1 for text on what it stands on."""
    page.open(reports["small"], scheme=scheme)
    names = {"ink": "panel", "soft": "shade", "accent": "panel", "warn": "panel"}
    for ink, ground in names.items():
        ratio = _contrast(*(_colour(page, name) for name in (ink, ground)))
        assert ratio >= 4.5, (ink, ground, ratio)


def _colour(page: Page, name: str) -> list[float]:
    text = page.run(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')")
    digits = text.strip().lstrip("#")
    return [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]


def _contrast(one: list[float], other: list[float]) -> float:
    def luminance(colour: list[float]) -> float:
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_chart_and_control_has_a_name(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["piped"], height=9000)
    page.wait("document.querySelectorAll('#gantt rect.kind').length > 0")
    unnamed = page.run(
        "[...document.querySelectorAll('button, select, input, .chart svg, [role=region]')].filter("
        "(e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))"
        ".map((e) => e.outerHTML.slice(0, 200))"
    )
    assert unnamed == []
    assert page.run("document.querySelectorAll('.chart svg').length") >= 4
    assert page.run("document.querySelectorAll('.chart svg:not([role=img])').length") == 0
    assert page.run("document.querySelectorAll('#gantt tbody tr').length") == 4
