"""docs/coverage.md says what the rules are today."""

from __future__ import annotations

import json
from typing import Any

from autoplan.strategies import RULES
from docs.coverage import DATA, PAGE, render


def data() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DATA.read_text())
    return read


def test_the_page_is_what_the_rules_say() -> None:
    """Else run `python -m docs.coverage`."""
    assert PAGE.read_text() == render(data())


def test_every_op_of_the_families_is_named_once() -> None:
    """With its rule, or among those left replicated."""
    lines = PAGE.read_text().splitlines()
    rows = [line.split("`")[1] for line in lines if line.startswith("| `")]
    left = [line.split("`")[1] for line in lines if line.startswith("- `")]
    ruled = {op if op.count(".") == 2 else f"aten.{op}" for op in rows}
    assert len(rows) + len(left) == len(data()["ops"])
    assert ruled | set(left) == set(data()["ops"])
    assert ruled <= set(RULES)
    assert not set(left) & set(RULES)


def test_every_rule_in_the_table_was_proven() -> None:
    ops = data()["ops"]
    assert ops
    assert all(row["candidates"] > 2 for op, row in ops.items() if op in RULES)


def test_a_lost_rule_shows() -> None:
    """The page is not the data alone: it is written from the rules."""
    given = data()
    lost = next(op for op in given["ops"] if op in RULES)
    fewer = {op: rule for op, rule in RULES.items() if op != lost}
    assert f"- `{lost}`: " in render(given, fewer)
    assert f"- `{lost}`: " not in render(given)
