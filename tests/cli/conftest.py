"""The command line in this process, and a plan that it saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autoplan.cli.app import app

NET = str(Path(__file__).with_name("net.py"))


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON document."""
        found: dict[str, Any] = json.loads(self.out)
        return found


Cli = Callable[..., Said]


def call(*arguments: str | Path) -> Said:
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], prog_name="autoplan")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def cli() -> Cli:
    return call


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the model in `net.py` by FSDP on two devices."""
    path = tmp_path_factory.mktemp("plans") / "two.toml"
    said = call("plan", NET, "-d", "2", "-c", "cpu", "--preset", "fsdp", "--save", path)
    assert said.code == 0, said.err
    return path
