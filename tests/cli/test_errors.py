"""Errors: one message on standard error, an exit code, and with `--json` a document."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import NET, Cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paln"], "No such command 'paln'. Did you mean 'plan'?"),
        (["plan", NET, "--devics", "4"], "No such option: --devics"),
        (["plan"], "Missing argument 'MODEL'. See autoplan plan --help."),
        (["plan", NET, "--devices", "many"], "should be a valid integer"),
        (["run", NET], "Missing option '--plan'"),
        (["show", "no.toml"], "cannot read plan file 'no.toml': No such file or directory"),
        (["plan", NET, "-d", "2", "-c", "cpu", "-o", "no/such/plan.toml"], "is no folder"),
        (["compare", NET, "-d", "2", "--preset", "ddp"], "preset says another; leave it out"),
        (["compare", NET, "-d", "2", "--presets", "ddp,fdsp"], "(did you mean 'fsdp'?)"),
        (["explain", NET, "up", "-d", "2", "--model", NET], "leave --model out"),
        (["verify", NET, "-d", "2", "--precision", "double"], "float64 or model, got 'double'"),
        (["verify", NET, "-d", "2", "--meta"], "which are needed here"),
        (["verify", "hf:gpt2", "--plan", "no.toml"], "cannot read plan file 'no.toml'"),
        (["plan", NET, "-d", "2", "-c", "cpu", "--hint", "up.wieght=S(0)"], "mean 'up.weight'?"),
        (["plan", NET, "-d", "2", "-c", "cpu", "--hint", "up.weight=S(7)"], "of 'up.weight'"),
    ],
)
def test_usage_ends_with_2_and_one_message(cli: Cli, arguments: list[str], message: str) -> None:
    said = cli(*arguments)
    assert said.code == 2
    assert message in said.err
    assert said.err.startswith("autoplan: ")
    assert not said.out.replace("a model file may print\n", "")
    document = cli(*arguments, "--json")
    assert document.code == document.json["exit_code"] == 2
    assert message in document.json["error"]["message"]


def test_options_of_planning_do_not_go_with_a_plan(cli: Cli, saved: Path) -> None:
    for command in (("verify", NET, "--plan", saved), ("explain", saved, "up")):
        said = cli(*command, "--devices", "4")
        assert said.code == 2
        assert "options of planning go" in said.err
    assert "--model" in cli("show", saved, "--batch", "4").err
    assert "add --model" in cli("show", saved, "--trace", "trace.json").err


def test_no_plan_ends_with_1(cli: Cli) -> None:
    said = cli("plan", NET, "-d", "2", "-c", "cpu", "--memory", "5kB", "--json")
    assert said.code == said.json["exit_code"] == 1
    assert said.json["error"]["kind"] == "InfeasibleError"
    assert "5 kB" in said.err


def test_hints_that_no_plan_satisfies_end_with_1(cli: Cli) -> None:
    said = cli("plan", NET, "-d", "2", "-c", "cpu", "--hint", "up.weight=P", "--json")
    assert said.code == said.json["exit_code"] == 1
    assert said.json["error"]["kind"] == "HintError"


def test_an_unknown_path_suggests_the_nearest(cli: Cli, saved: Path) -> None:
    said = cli("explain", saved, "up.weigth")
    assert said.code == 2
    assert "(did you mean 'up.weight'?)" in said.err


def test_debug_shows_where_an_error_arose(cli: Cli) -> None:
    without = cli("plan", f"{NET}:breaks", "-d", "2")
    assert without.code == 2
    assert "Traceback" not in without.err
    with_it = cli("plan", f"{NET}:breaks", "-d", "2", "--debug")
    assert with_it.code == 2
    assert 'raise KeyError("the number of layers")' in with_it.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (ZeroDivisionError("division by zero"), 3, "unforeseen, ZeroDivisionError: division by"),
        (PermissionError(13, "Permission denied", "x.html"), 2, "'x.html': Permission denied"),
        (SystemExit(5), 2, "ended the process with exit(5)"),
    ],
)
def test_other_errors_have_codes_of_their_own(
    cli: Cli,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fails(path: Path) -> None:
        raise error

    monkeypatch.setattr("autoplan.load_plan", fails)
    said = cli("show", saved)
    assert said.code == code
    assert message in said.err
    assert "Traceback" not in said.err


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    said = cli()
    assert said.code == 2
    assert "Commands" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("--save", "no/such/plan.toml", "'no/such' is no folder; make it first"),
        ("--html", ".", "--html '.' is a folder; name a file in it"),
        ("--trace", ".", "--trace '.' is a folder; name a file in it"),
        ("--program", "there.py", "--program 'there.py' is a file; name a folder"),
    ],
)
def test_files_are_checked_before_anything_is_planned(
    cli: Cli, option: str, path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.py").touch()
    said = cli("plan", "no/such/model.py:build", "-d", "2", option, path)
    assert said.code == 2
    assert message in said.err


@pytest.mark.parametrize("size", ["n_layer=-1", "n_layer=0", "n_embd=-64"])
def test_sizes_are_above_zero(cli: Cli, size: str) -> None:
    said = cli("plan", "hf:gpt2", "-d", "2", "--set", size)
    assert said.code == 2
    assert f"--set {size}: a number above 0 is expected" in said.err


def test_nothing_is_verified_with_empty_arguments(cli: Cli) -> None:
    asked = ("-d", "2", "-c", "cpu", "--arg", "float32[0,16]")
    said = cli("verify", f"{NET}:build", *asked)
    assert said.code == 2
    assert "no argument has any" in said.err


@pytest.mark.parametrize("path", [".", "there.toml"])
def test_what_is_there_and_no_model_is_said(
    cli: Cli, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.toml").touch()
    assert f"{path!r} is no Python file" in cli("plan", path, "-d", "2").err
