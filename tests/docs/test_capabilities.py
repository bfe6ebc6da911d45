"""docs/capabilities.md says what the tests of tests/capabilities show today."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.capabilities import CAPABILITIES, PAGE, TESTS, by_row, render, rows_of

found = by_row(TESTS.glob("test_*.py"))


def test_the_page_is_what_the_tests_show() -> None:
    """Else run `python -m docs.capabilities`."""
    assert PAGE.read_text() == render(found)


def test_every_capability_is_shown_but_those_to_come() -> None:
    assert {row for row, tests in found.items() if not tests} <= {"I", "J"}


def test_a_lost_test_shows() -> None:
    text = render({**found, "7": []})
    assert f"| 7 | {CAPABILITIES['7']} | **not yet** |" in text
    assert f"| 7 | {CAPABILITIES['7']} | **not yet** |" not in render(found)


def test_rows_of_names() -> None:
    assert rows_of("test_row_07_naive_pipeline") == ["7"]
    assert rows_of("test_row_b_verify") == ["B"]
    assert rows_of("test_rows_26_to_29_equal") == ["26", "27", "28", "29"]
    assert rows_of("test_what_a_handler_raises_is_raised") == []


def test_a_row_without_a_title_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_new.py").write_text("def test_row_99_more() -> None: ...\n")
    with pytest.raises(ValueError, match="shows row 99, which has no title"):
        by_row([tmp_path / "test_new.py"])
