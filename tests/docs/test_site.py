"""The site of docs/ builds without a warning, and needs nothing of the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

mkdocs = pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: any warning, such as of a link to nowhere, ends it."""
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    front = (site / "index.html").read_text()
    for page in PAGES[1:]:
        path = page.relative_to(ROOT / "docs").with_suffix("")
        if path.name != "index":
            assert (site / path / "index.html").exists()
            assert f'href="{path.as_posix()}/"' in front


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    loads = r'<(?:script|img|link rel="(?:stylesheet|preconnect|icon)")[^>]*(?:src|href)="https?:'
    for page in site.rglob("*.html"):
        assert not re.search(loads, page.read_text()), page.name
