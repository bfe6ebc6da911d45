"""One page run from its first block to its last, in a process and a folder of its own."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tests.docs.blocks import ROOT, Block, blocks_of, lines_said

BEFORE = Path(__file__).parent / "before"
"""What a page takes as given, such as the reader's model: code that runs before its blocks."""


class PageError(AssertionError):
    """A block failed, or did not say what the page shows."""


def run_page(page: str, answer: str) -> None:
    """Run a page, in the current folder, and write what went wrong to the file `answer`."""
    try:
        _run(Path(page))
        text = ""
    except BaseException:
        text = traceback.format_exc()
    Path(answer).write_text(text, encoding="utf-8")


def _run(page: Path) -> None:
    name = page.relative_to(ROOT).as_posix()
    sys.path.insert(0, str(ROOT / "docs"))  # tiny.py
    scope: dict[str, Any] = {"__name__": "__main__"}
    before = BEFORE / f"{page.stem}.py"
    if before.exists():
        exec(compile(before.read_text(encoding="utf-8"), str(before), "exec"), scope)
    said = ""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        where = f"{name}:{block.line}"
        if block.kind == "file":
            Path(block.name).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            said = _python(block, where, scope)
        elif block.kind == "command":
            said = _commands(block, where)
        elif block.kind == "said":
            said = _check(block.text.splitlines(), said, where)


def _python(block: Block, where: str, scope: dict[str, Any]) -> str:
    """What the block prints; errors name its own line in the page."""
    code = compile("\n" * block.line + block.text, where, "exec")
    out = io.StringIO()
    try:
        with redirect_stdout(out):
            exec(code, scope)
    except Exception as error:
        raise PageError(f"{where} raises, after it printed\n{out.getvalue()}") from error
    return out.getvalue()


def _commands(block: Block, where: str) -> str:
    """Every line that starts with `$ `, or every line without one, is a command that ends well."""
    lines = block.text.splitlines()
    marked = any(line.startswith("$ ") for line in lines)
    said = ""
    for line in lines:
        if marked and not line.startswith("$ "):
            said = _check([line], said, where)
        elif line.strip() and not line.startswith("#"):
            said = _command(line.removeprefix("$ "), where)
    return said


def _command(line: str, where: str) -> str:
    program, *arguments = shlex.split(line, comments=True)
    if program == "autoplan":
        code, said = _autoplan(arguments)
    elif program in ("python", "torchrun"):
        runs = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
        runs += ["--rdzv-endpoint", "127.0.0.1:0"]  # a free port
        path = os.pathsep.join([str(ROOT), str(ROOT / "docs")])
        done = subprocess.run(
            [sys.executable, *(runs if program == "torchrun" else []), *arguments],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=150,
        )
        code, said = done.returncode, done.stdout + done.stderr
    else:
        raise PageError(f"{where}: nothing here knows how to run {line!r}.")
    if code:
        raise PageError(f"{where}: {line!r} ends with {code}, and says\n{said}")
    return said


def _autoplan(arguments: list[str]) -> tuple[int, str]:
    """The command line, in this process."""
    from typer.testing import CliRunner

    from autoplan.cli.app import app

    with redirect_stderr(io.StringIO()):
        result = CliRunner().invoke(app, arguments, prog_name="autoplan")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout + result.stderr


def _check(lines: list[str], said: str, where: str) -> str:
    """What is left of `said` after it said every line."""
    for line in lines:
        end = lines_said(line, said)
        if end < 0:
            raise PageError(f"{where}: nobody says {line!r}, but\n{said}")
        said = said[end:]
    return said
