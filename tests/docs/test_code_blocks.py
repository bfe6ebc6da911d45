"""Every code block of README.md and docs/ runs, and says what the page shows below it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import autoplan
from tests.docs.blocks import PAGES, ROOT, blocks_of, lines_said
from tests.docs.running import BEFORE, run_page
from tests.runtime.launch import start_process

ELSEWHERE = {"docs/command_line.md": "tests/cli/test_reference.py"}
"""Pages whose commands are run by a test of their own."""

NOT_RUN: tuple[str, ...] = ()
"""The page of every block that is marked as not run."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


RUN = [p for p in PAGES if name_of(p) not in ELSEWHERE and blocks_of(p.read_text())]


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = tmp_path / "answer.txt"
    process = start_process(0, _in_folder, str(tmp_path), str(page), str(answer))
    process.join(240)
    process.kill()
    assert answer.exists(), "the process of the page died, or took too long"
    assert not answer.read_text(), answer.read_text()


def _in_folder(folder: str, page: str, answer: str) -> None:
    os.chdir(folder)
    run_page(page, answer)


def test_blocks_that_are_not_run_are_counted() -> None:
    found = [(name_of(p), b) for p in RUN for b in blocks_of(p.read_text())]
    assert tuple(name for name, block in found if block.kind == "not run") == NOT_RUN
    assert sum(block.kind == "python" for _, block in found) > 40


def test_pages_run_elsewhere_are_named_there() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text()


def test_the_python_of_the_command_line_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model file, and what a script started by `autoplan run` does with the plan."""
    text = (ROOT / "docs/command_line.md").read_text()
    first, second = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    scope: dict[str, Any] = {}
    exec(first, scope)
    scope["model"], x = scope["build"](16), scope["example_inputs"](8, 16)
    scope |= {"args": (x,), "kwargs": {}}
    plan = autoplan.plan(scope["model"], (x,), devices=2, cluster="cpu", preset="fsdp")
    plan.save(tmp_path / "plan.toml")
    monkeypatch.setenv("AUTOPLAN_PLAN", str(tmp_path / "plan.toml"))
    exec(second, scope)
    assert len(list(scope["pm"].parameters())) == 4
    scope["pm"](x)
    assert scope["pm"].plan.diff(plan) == "no difference"


def test_what_is_given_is_given_to_a_page() -> None:
    assert {path.stem for path in BEFORE.glob("*.py")} <= {page.stem for page in RUN}


def test_the_model_of_the_pages_is_the_one_that_is_shown() -> None:
    shown = [b for b in blocks_of((ROOT / "docs/tutorial.md").read_text()) if b.name == "tiny.py"]
    assert [block.text for block in shown] == [(ROOT / "docs/tiny.py").read_text()]


def test_targets_of_make_exist() -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", page.read_text(), re.M)
        assert set(named) <= made, name_of(page)


@pytest.mark.parametrize(
    "page",
    ["```python\n1\n", "```\n1\n```\n", "```yaml\na: 1\n```\n", "~~~toml\na = 1\n~~~\n"],
)
def test_blocks_that_nobody_runs_are_refused(page: str) -> None:
    with pytest.raises(ValueError):
        blocks_of(page)


def test_kinds_of_blocks() -> None:
    page = (
        "```python\n1\n```\n```text\n2\n```\n<!-- not run: needs a GPU -->\n```python\n3\n```\n"
        '- a\n\n  ```toml title="a.toml"\n  b = 1\n  ```\n```console\n$ c\n```\n'
    )
    found = [(b.kind, b.text, b.line, b.name) for b in blocks_of(page)]
    assert found == [
        ("python", "1\n", 1, ""),
        ("said", "2\n", 4, ""),
        ("not run", "3\n", 8, "needs a GPU"),
        ("file", "b = 1\n", 13, "a.toml"),
        ("command", "$ c\n", 16, ""),
    ]


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint(1 / 0)\n```\n",
        "```python\nprint(1)\n```\n```text\n2\n```\n",
        "```console\n$ python -c 'print(3)'\n4\n```\n",
        "```sh\npython -c 'raise SystemExit(1)'\n```\n",
        "```sh\nrm nothing\n```\n",
    ],
)
def test_a_page_that_is_wrong_is_found(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.docs.running.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text(page)
    run_page(str(tmp_path / "page.md"), "answer.txt")
    assert "page.md:" in (tmp_path / "answer.txt").read_text()


def test_lines_said() -> None:
    assert lines_said("mesh: ... x tensor 4", "mesh: data 2 x\n tensor 4\n") == 24
    assert lines_said("mesh: ... x tensor 5", "mesh: data 2 x tensor 4\n") == -1
