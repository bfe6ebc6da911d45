"""The command as a process: how it starts, what `run` launches, and signals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import autoplan
from autoplan.cli.run import Launch
from tests.cli.conftest import NET, Cli

ROOT = Path(__file__).parents[2]
TRAIN = Path(__file__).with_name("train.py")
COMMAND = [sys.executable, "-m", "autoplan"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False
    )


def test_the_installed_command_is_this_one() -> None:
    from autoplan.cli import main

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"autoplan": f"{main.__module__}:{main.__name__}"}


def test_help_answers_without_torch() -> None:
    """Beyond what the package itself imports: the folder stands in for it here."""
    program = f"""\
import sys, time, types
package = types.ModuleType("autoplan")
package.__path__ = [{str(ROOT / "autoplan")!r}]
sys.modules["autoplan"] = package
from autoplan.cli import main
sys.argv = ["autoplan", *sys.argv[1:]]
try:
    main()
finally:
    print(time.process_time(), sorted({{"torch", "numpy", "pulp"}} & set(sys.modules)))
"""
    for arguments in (["--help"], ["plan", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        seconds, heavy = done.stdout.splitlines()[-1].split(" ", 1)
        assert float(seconds) < 1.0
        assert heavy == "[]"


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        (("--preset", "ddp"), ("loading autoplan", "planning")),
        (("--microbatches", "auto"), ("capturing the model", "comparing with known schemes")),
    ],
)
def test_progress_goes_to_a_terminal_and_a_document_to_standard_output(
    arguments: Sequence[str], stages: Sequence[str]
) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "plan", NET, "-d", "2", "-c", "cpu", *arguments, "--json"]
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        seen = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            seen += more
        assert json.loads(process.stdout.read())["devices"] == 2
    os.close(ours)
    assert process.returncode == 0
    text = seen.decode()
    assert [each for each in stages if each not in text] == []


def test_a_reader_that_has_seen_enough_is_no_error(saved: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "show", str(saved)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


# -- run ------------------------------------------------------------------------------------------


def test_run_trains_by_the_plan_on_real_processes(saved: Path, tmp_path: Path) -> None:
    losses = tmp_path / "found.json"
    done = run("run", "--plan", saved, "--json", TRAIN, losses, "--json", "--steps=3")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["exit_code"] == 0
    assert document["processes"] == document["devices"] == 2
    assert "trained" in done.stderr
    found = json.loads(losses.read_text())
    assert found["world"] == 2
    assert found["arguments"] == [str(losses), "--json", "--steps=3"]
    assert found["choices"] == autoplan.load_plan(saved).choices
    from tests.cli.net import build

    x = torch.linspace(-1.0, 1.0, 128).reshape(8, 16)
    assert found["loss"] == pytest.approx(float(build()(x).detach()), rel=1e-5)


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(f"import os, sys, time\nos.environ['AUTOPLAN_PLAN']\n{text}\n")
    return path


def test_run_ends_with_the_code_of_what_failed_first(cli: Cli, saved: Path, tmp_path: Path) -> None:
    """Rank 1 ends with 7; rank 0, which would run for a minute, is ended with it."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    waits = script(tmp_path, "sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)")
    begun = time.monotonic()
    said = cli("run", "--plan", saved, waits)
    assert said.code == 7
    assert time.monotonic() - begun < 50
    assert "rank 1 of" in said.err
    assert "failed first, with exit code 7" in said.err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "AUTOPLAN_PLAN" not in os.environ


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_run_passes_signals_on(
    saved: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Only the command is sent the signal; both of its processes end, too."""
    text = "open(sys.argv[1] + os.environ['RANK'], 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    waits = script(tmp_path, text)
    marks = [tmp_path / f"started{rank}" for rank in (0, 1)]
    command = [*COMMAND, "run", "--plan", str(saved), str(waits), str(tmp_path / "started")]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not all(each.exists() and each.read_text() for each in marks):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "autoplan/cli" not in said  # the script's own traceback may be there
    for each in marks:
        with pytest.raises(ProcessLookupError):
            os.kill(int(each.read_text()), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nproc-per-node", "3"], "is for 2 devices, and 3 processes on 1 machine are 3; give "),
        (["--nnodes", "3"], "take a number of machines that divides 2"),
        (["--nnodes", "2"], "give --master-port 29500"),
        ([], "there is no script 'no.py'"),
    ],
)
def test_run_starts_nothing_that_does_not_fit(
    cli: Cli, saved: Path, options: list[str], message: str
) -> None:
    said = cli("run", "--plan", saved, *options, "no.py" if not options else TRAIN)
    assert said.code == 2
    assert message in said.err


def test_run_warns_of_a_script_that_does_not_read_the_plan(
    cli: Cli, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plain.py"
    path.write_text("print('trains by itself')\n")
    launched: list[object] = []
    monkeypatch.setattr("autoplan.cli.run.launch", lambda *given: launched.append(given) or 0)
    said = cli("run", "--plan", saved, path)
    assert said.code == 0
    assert launched
    assert "does not mention AUTOPLAN_PLAN" in said.err


# -- demo -----------------------------------------------------------------------------------------


def simulated(here: Launch, plan: Path, script: Path, arguments: Sequence[str]) -> int:
    """All processes of a launch in this one."""
    from autoplan.cli.demo_training import losses

    steps, path = arguments
    assert autoplan.load_plan(plan).mesh.num_devices == here.processes
    Path(path).write_text(json.dumps(losses(str(plan), int(steps), lambda step, loss: None)))
    return 0


def check_demo(found: dict[str, Any]) -> None:
    assert found["equal"]
    assert found["plan"]["devices"] == 2
    assert len(found["losses"]["many"]) == len(found["losses"]["one"]) == 2
    assert found["losses"]["many"] == pytest.approx(found["losses"]["one"], abs=1e-4)
    assert found["losses"]["one"][0] != found["losses"]["one"][1]


def test_demo_trains_alike_with_simulated_processes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoplan.cli.demo.launch", simulated)
    check_demo(cli("demo", "--devices", "2", "--steps", "2", "--json").json)


def test_demo_ends_with_1_where_the_trainings_differ(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(here: Launch, plan: Path, script: Path, arguments: Sequence[str]) -> int:
        Path(arguments[1]).write_text("[5.0]")
        return 0

    monkeypatch.setattr("autoplan.cli.demo.launch", other)
    said = cli("demo", "--devices", "2", "--steps", "1")
    assert said.code == 1
    assert "NOT the same training" in said.out


@pytest.mark.slow
def test_demo_trains_alike_on_two_processes_and_one() -> None:
    done = run("demo", "--devices", "2", "--steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    check_demo(json.loads(done.stdout))
