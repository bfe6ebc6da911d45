"""What a notebook shows of plans and modules: HTML without script, rows, and figures."""

from __future__ import annotations

import sys
import types
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import autoplan
from autoplan.errors import ConfigError, PlanFileError
from autoplan.notebook.frame import COLUMNS, rows_of
from autoplan.plan import Plan, load_plan
from tests.models import ideal_cluster
from tests.pipelining.plans import CASES, batch, cluster_of, residual, tied_plan
from tests.planner.models import MLP


@cache
def plan_of(name: str) -> Plan:
    if name == "mlp":
        x = torch.randn(16, 8, dtype=torch.float64)
        return autoplan.plan(MLP().double(), (x,), devices=2, cluster=ideal_cluster(2))
    return autoplan.plan(residual(), *batch(), cluster=cluster_of(name), **CASES[name])


class Shape(HTMLParser):
    """Tags of a document, which must close in order, and its attributes."""

    _EMPTY = ("br", "hr", "img", "meta", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self._EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def is_safe(html: str) -> Shape:
    """Shown by notebooks that trust nothing: no script, handlers, links, or other files."""
    shape = Shape(html)
    assert not {"script", "link", "iframe", "style", "img", "object"}.intersection(shape.tags)
    for name, value in shape.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "src")
        assert "url(" not in value
    # Text has the colour of what is around it, on light and on dark.
    styles = [value for name, value in shape.attributes if name == "style"]
    for style in styles:
        for rule in style.split(";"):
            assert not rule.startswith("color:") or rule == "color:inherit"
    return shape


# -- html ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "1f1b"])
def test_a_plan_as_html(name: str) -> None:
    plan = plan_of(name)
    shape = is_safe(plan._repr_html_())
    for line in plan.report().splitlines():
        assert line in shape.text
    assert plan.scheme in shape.text
    assert str(plan.mesh) in shape.text
    assert "data parallel" in shape.text
    if plan.pipeline is not None:
        assert "1f1b: 2 stages" in shape.text


class Named(nn.Module):
    """A module whose name is markup."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.ModuleDict({"<b onclick='x'>": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return self.inside["<b onclick='x'>"](x).square().mean()


def test_what_users_name_is_escaped() -> None:
    plan = autoplan.plan(Named(), (torch.randn(4, 4),), devices=2)
    html = plan._repr_html_()
    is_safe(html)
    assert "<b onclick" not in html
    assert "&lt;b onclick" in html


def test_a_module_as_html() -> None:
    args = (torch.randn(16, 8),)
    module = autoplan.parallelize(MLP(), devices=2, preset="ddp")
    assert "no plan yet" in is_safe(module._repr_html_()).text
    module.train_step(args)
    shape = is_safe(module._repr_html_())
    assert "ParallelModule of MLP" in shape.text
    assert "2 simulated ranks" in shape.text
    weights = sum(p.numel() * 4 for p in MLP().parameters())
    assert f"4, {weights / 1e3:.4g} kB" in shape.text
    assert "plan of MLP" in shape.text


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "1f1b"])
def test_rows_are_those_of_the_plan(name: str) -> None:
    plan = plan_of(name)
    rows = rows_of(plan)
    assert {tuple(row) for row in rows} == {COLUMNS}
    parameters = {row["path"]: row for row in rows if row["kind"] == "parameter"}
    for each in (row for row in plan.tensors if row.kind == "parameter"):
        found = parameters[each.path]
        assert (found["layout"], found["shape"]) == (each.layout, each.shape)
        assert found["local_shape"] == each.local_shape
        assert found["bytes"] == 8 * torch.Size(each.local_shape).numel()
        assert found["stage"] == plan.stage(each.path)
    ops = [row for row in rows if "/" in row["path"] and row["kind"].startswith("aten")]
    assert len(ops) == len(plan.operations)
    spent = sum(row["time_s"] for row in ops)
    counted = sum(row.forward_s + row.backward_s for row in plan.operations)
    assert spent == pytest.approx(counted, rel=1e-12)
    moved = [row for row in rows if row["count"] is not None]
    assert [row["bytes"] for row in moved] == [row.bytes for row in plan.collectives]
    assert all(row["bytes"] == 8 * torch.Size(row["local_shape"]).numel() for row in ops)


def test_a_tied_parameter_counts_once() -> None:
    """GPT-2's head is its embedding: one row has the bytes."""
    (stage,) = (tied_plan().stages[1],)
    rows = [row for row in rows_of(stage) if row["kind"] in ("parameter", "tied")]
    assert sum(row["bytes"] or 0 for row in rows) == stage.memory.parameters
    tied = {row["path"]: row["bytes"] for row in rows if row["kind"] == "tied"}
    assert tied == {"lm_head.weight": None}


def test_rows_of_a_file_know_no_types_of_ops(tmp_path: Path) -> None:
    plan_of("mlp").save(tmp_path / "plan.toml")
    known, alone = rows_of(plan_of("mlp")), rows_of(load_plan(tmp_path / "plan.toml"))
    assert len(known) == len(alone)
    for one, other in zip(known, alone, strict=True):
        unknown = ("dtype", "bytes") if "/" in one["path"] else ()
        assert {**one, **dict.fromkeys(unknown)} == {**other, **dict.fromkeys(unknown)}


def test_a_data_frame_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what pandas is called: it is not among what the tests need."""
    calls = []
    fake = types.ModuleType("pandas")
    fake.DataFrame = lambda rows, columns: calls.append((rows, columns)) or "frame"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", fake)
    plan = plan_of("mlp")
    assert plan.to_dataframe() == "frame"
    assert calls == [(rows_of(plan), list(COLUMNS))]


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # importing it raises ImportError
    with pytest.raises(ConfigError, match=r"pandas is not installed; run `pip install pandas`"):
        plan_of("mlp").to_dataframe()


# -- figures ---------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", ["mlp", "1f1b", "interleaved"])
def test_a_figure_is_svg_without_script(name: str, tmp_path: Path) -> None:
    plan = plan_of(name)
    figure = plan.figure()
    figure.save(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text() == figure._repr_svg_()
    root = ElementTree.fromstring(figure.svg)
    assert root.tag == f"{SVG}svg"
    tags = {each.tag.removeprefix(SVG) for each in root.iter()}
    assert tags <= {"svg", "text", "rect", "line", "polygon", "title"}
    titles = [each.text or "" for each in root.iter(f"{SVG}title")]
    ranks = 1 if plan.pipeline is None else plan.pipeline.size
    texts = [each.text or "" for each in root.iter(f"{SVG}text")]
    assert sum(text.startswith("rank ") for text in texts) == ranks
    assert sum(title == "parameters" for title in titles) == ranks
    if plan.pipeline is not None:
        count = plan.microbatches * len(plan.stages)
        events = [t for t in titles if t.startswith(("forward ", "backward ")) and ", stage " in t]
        assert len(events) == 2 * count
    width = float(root.attrib["width"])
    for each in root.iter(f"{SVG}rect"):
        end = float(each.attrib["x"]) + float(each.attrib["width"])
        assert 0 <= float(each.attrib["x"]) <= end <= width


def test_the_height_of_a_stack_is_the_peak() -> None:
    """The highest point of all kinds is the peak, which is as high as the drawing goes."""
    root = ElementTree.fromstring(plan_of("mlp").figure().svg)
    (line,) = root.iter(f"{SVG}line")
    bottom = float(line.attrib["y1"])
    corners = [
        float(corner.split(",")[1])
        for each in root.iter(f"{SVG}polygon")
        for corner in each.attrib["points"].split()
    ]
    assert min(corners) == pytest.approx(bottom - 86, abs=0.01)
    assert max(corners) == pytest.approx(bottom, abs=0.01)


def test_figures_that_cannot_be(tmp_path: Path) -> None:
    plan_of("mlp").save(tmp_path / "plan.toml")
    with pytest.raises(ConfigError, match="knows no model"):
        load_plan(tmp_path / "plan.toml").figure()
    with pytest.raises(PlanFileError, match="cannot write figure"):
        plan_of("mlp").figure().save(tmp_path / "none" / "figure.svg")
