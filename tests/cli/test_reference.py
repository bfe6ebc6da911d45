"""docs/command_line.md: its examples run as they stand, its keys and options are those that are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from autoplan.cli.app import COMMANDS, app
from tests.cli.conftest import NET, Cli, Said

TEXT = Path(__file__).parents[2].joinpath("docs", "command_line.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """Code blocks of a kind, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.M | re.S)


def steps(block: str) -> list[tuple[str, list[str]]]:
    """Every command of a block with the lines shown of what it says."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def says(line: str, text: str) -> int:
    """Where `text` ends after saying a line, whose `...` stand for anything; -1 if it does not."""
    words = r"\s+".join(map(re.escape, line.split()))
    pattern = words.replace(r"\.\.\.", r".*?")
    found = re.search(pattern, text, re.S)
    return -1 if found is None else found.end()


def test_the_examples_say_what_is_shown(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(blocks("python")[0])
    (tmp_path / "run.toml").write_text(blocks("toml")[0])
    said = Said(0, "", "")
    commands = [each for block in blocks("console") for each in steps(block)]
    assert len(commands) > 10
    for command, lines in commands:
        if command == "echo $?":
            assert lines == [str(said.code)]
            continue
        program, *arguments = shlex.split(command)
        assert program == "autoplan"
        said = cli(*arguments)
        text = said.out + said.err
        for line in lines:
            end = says(line, text)
            assert end >= 0, f"{command} does not say {line!r}, but {text}"
            text = text[end:]


def test_what_says_too_little_does_not_pass() -> None:
    assert says("mesh: ... x tensor 4", "mesh: data 2 x\n tensor 4\n") == 24
    assert says("mesh: ... x tensor 5", "mesh: data 2 x tensor 4\n") == -1


def test_the_keys_are_those_of_the_documents(cli: Cli, saved: Path) -> None:
    listed: dict[str, list[str]] = {}
    for names, keys in re.findall(r"^\| (.*?) \| (`command`.*?|`error`.*?) \|$", TEXT, re.M):
        for name in re.findall(r"`(\w+)`", names) or ["error"]:
            listed[name] = re.findall(r"`(\w+)`", keys)
    planned = ("-d", "2", "-c", "cpu")
    calls: dict[str, tuple[str | Path, ...]] = {
        "plan": (NET, *planned, "--preset", "ddp"),
        "show": (saved,),
        "explain": (saved, "up"),
        "diff": (saved, saved),
        "verify": (NET, "--plan", saved),
        "compare": (NET, *planned, "--presets", "ddp"),
        "doctor": (),
    }
    for name, arguments in calls.items():
        document = cli(name, *arguments, "--json").json
        assert list(document) == listed[name]
        assert document["command"] == name
    assert list(cli("show", "no.toml", "--json").json) == listed["error"]
    assert {"run", "demo"} == listed.keys() - calls.keys() - {"error"}


def test_every_option_that_is_named_exists() -> None:
    known = {option for command in commands() for option in options_of(command)}
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose))
    assert named - {"--help", "--install-completion"} <= known


def test_the_table_has_every_command() -> None:
    listed = re.findall(r"^\| `(\w+)[^|]*` \| .* \| .* \|$", TEXT, re.M)
    assert [command.name for command in commands()] == listed[: len(commands())]


def commands() -> list[Any]:
    group: Any = typer.main.get_command(app)
    return list(group.commands.values())


def options_of(command: Any) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts]


def test_examples_of_the_help_are_read() -> None:
    """Every example parses: its options exist, and are given what they take."""
    group: Any = typer.main.get_command(app)
    for described in COMMANDS:
        for example in described.examples:
            program, name, *arguments = shlex.split(example.partition(" | ")[0])
            assert (program, name) == ("autoplan", described.function.__name__)
            group.commands[name].make_context(name, arguments)


def test_a_document_is_json_for_other_programs(cli: Cli, saved: Path) -> None:
    """No nan or infinity, which JSON does not have."""
    said = cli("show", saved, "--json")
    json.loads(said.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
