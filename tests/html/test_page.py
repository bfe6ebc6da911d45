"""The page as text: one file, nothing loaded, every string escaped."""

from __future__ import annotations

import json
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autoplan.errors import PlanFileError
from autoplan.html.page import html_of, inline_json, inline_script
from autoplan.plan import load_plan
from tests.html.plans import HOSTILE, hostile, piped, residual, small


class Elements(HTMLParser):
    """What elements a page has, with their attributes and the text of its tables."""

    VOID = ("meta", "link", "input", "br", "wbr", "img")

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    plans = {"small": small(), "piped": piped(), "hostile": hostile(), "residual": residual()}
    return {name: html_of(plan, budget_s=0.2) for name, plan in plans.items()}


NAMES = ("small", "piped", "hostile", "residual")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_well_formed_and_loads_nothing(pages: dict[str, str], name: str) -> None:
    elements = Elements(pages[name])
    assert elements.open == []
    assert not elements.named("img")
    assert not elements.named("iframe")
    assert all("src" not in each for each in elements.named("script"))
    assert [each["href"] for each in elements.named("link")] == ["data:,"]
    assert all(str(each["href"]).startswith("#") for each in elements.named("a"))
    style = "".join(re.findall(r"<style>(.*?)</style>", pages[name], re.S))
    assert "@import" not in style
    assert "url(" not in style
    policy = next(e for e in elements.named("meta") if "http-equiv" in e)
    assert str(policy["content"]).startswith("default-src 'none'")


@pytest.mark.parametrize("name", NAMES)
def test_its_structure_is_what_a_screen_reader_needs(pages: dict[str, str], name: str) -> None:
    elements = Elements(pages[name])
    for tag in ("h1", "main", "header", "nav", "footer"):
        assert len(elements.named(tag)) == 1, tag
    assert len(elements.named("table")) == len(elements.named("caption")) > 4
    assert all(each.get("scope") == "col" for each in elements.named("th"))
    identifiers = [str(each["id"]) for _, each in elements.found if "id" in each]
    assert len(identifiers) == len(set(identifiers))
    for each in elements.named("section"):
        assert each["aria-labelledby"] in identifiers
    for each in elements.named("a"):
        assert str(each["href"])[1:] in identifiers


def test_texts_of_the_user_stay_texts(pages: dict[str, str]) -> None:
    page = pages["hostile"]
    assert HOSTILE not in page
    assert escape(HOSTILE) in page or escape(HOSTILE, quote=False) in page
    assert page.count("</script>") == pages["residual"].count("</script>")


def test_json_comes_back_and_ends_no_script() -> None:
    value = {"a": [HOSTILE, "<!-- \u2028 &amp;", 1.5, None], "b": {"c": ["é", 0]}}
    text = inline_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_floats_of_the_data_have_six_digits() -> None:
    assert inline_json([1 / 3, 2.0, 10**12]) == "[0.333333,2.0,1000000000000]"
    with pytest.raises(ValueError, match="JSON"):
        inline_json([float("nan")])


def test_a_library_cannot_end_its_element() -> None:
    assert "</script" not in inline_script('x = "</script><!-- y"')
    assert "<!--" not in inline_script('x = "</script><!-- y"')


def test_the_vendored_files_are_what_their_licences_stand_beside() -> None:
    import autoplan.html

    folder = Path(autoplan.html.__file__).parent / "vendor"
    scripts = sorted(path.name for path in folder.glob("*.js"))
    said = (folder / "README.md").read_text()
    assert scripts == ["d3.min.js", "dagre.min.js"]
    for name in scripts:
        assert f"`{name}`" in said
        assert (folder / f"{name.partition('.')[0]}.LICENSE").read_text().startswith("Copyright")
    assert sum((folder / name).stat().st_size for name in scripts) < 500_000


def test_save_html_writes_the_page_and_says_where_it_cannot(tmp_path: Path) -> None:
    residual().save(tmp_path / "plan.toml")
    loaded = load_plan(tmp_path / "plan.toml")
    loaded.save_html(tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert text == html_of(loaded)
    assert "read from a file" in text
    with pytest.raises(PlanFileError, match="cannot write report"):
        loaded.save_html(tmp_path / "nowhere" / "plan.html")


def test_a_loaded_pipeline_has_its_schedule(tmp_path: Path) -> None:
    piped().save(tmp_path / "plan.toml")
    page = html_of(load_plan(tmp_path / "plan.toml"))
    data = json.loads(re.findall(r'id="plan-data">(.*?)</script>', page, re.S)[0])
    assert len(data["gantt"]["ranks"]) == 4
    assert data["gantt"]["end_s"] == pytest.approx(piped().step_time_s, rel=1e-5)
    assert data["courses"] == []
    assert data["known"] is False
