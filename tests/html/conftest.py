"""A browser for the reports; tests that need one are skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.html.browser import Page, browser, executable


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    command = executable()
    if command is None:
        pytest.skip("there is no Chromium here")
    with browser(command) as tab:
        yield tab()
