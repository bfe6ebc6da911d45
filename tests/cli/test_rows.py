"""Rows 22 to 25 and H of the capability table, by the command: configs, and plans as files."""

from __future__ import annotations

from pathlib import Path

import pytest

import autoplan
from tests.cli.conftest import NET, Cli

CONFIG = """\
devices = 4
cluster = "cpu"
memory = "1GB"

[parallel]
data = { mode = "fsdp" }
tensor = { size = 2, mode = "1d" }
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    return path


# -- 23, 24: a config file, and overrides after it ------------------------------------------------


def test_row_23_key_value_after_a_config_file(cli: Cli, config: Path) -> None:
    said = cli("plan", NET, "--config", config, "--json")
    assert said.code == 0, said.err
    assert said.json["mesh"] == {"data": 2, "tensor": 2}
    changed = ("parallel.tensor.size=4", "memory=40GB")
    found = cli("plan", NET, "--config", config, *changed, "--json").json
    assert found["mesh"] == {"tensor": 4}
    assert found["memory_limit_bytes"] == 40_000_000_000
    before_it = cli("plan", NET, *changed, "--config", config, "--json").json
    assert before_it["mesh"] == found["mesh"]


def test_row_23_overrides_need_no_file(cli: Cli) -> None:
    given = ("devices=2", "cluster=cpu", "parallel.tensor.size=2", "parallel.tensor.mode=1d")
    assert cli("plan", NET, *given, "--json").json["mesh"] == {"tensor": 2}


def test_row_23_options_of_their_own_count_over_the_file(cli: Cli, config: Path) -> None:
    hint = ("--hint", "down.weight=tensor=S(0)", "--hint", "up.bias=(B, S(0))")
    given = ("--devices", "2", "--memory", "2GB", "--microbatches", "2", "--recompute", "none")
    found = cli("plan", NET, "--config", config, *given, *hint, "--json").json
    assert found["mesh"] == {"tensor": 2}
    assert found["microbatches"] == 2
    assert found["memory_limit_bytes"] == 2_000_000_000
    assert found["config"]["hints"].keys() == {"down.weight", "up.bias"}
    weight = next(row for row in found["tensors"] if row["path"] == "down.weight")
    assert weight["layout"] == "(S(0))"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["parallel.tensor.sise=4"], "has no key 'sise' (did you mean 'size'?)"),
        (["paralel.tensor.size=4"], "has no key 'paralel' (did you mean 'parallel'?)"),
        (["width=4"], "what belongs to the model is set with --set width=4"),
        (["devices=four"], "devices is 'four', a text, and a whole number is expected"),
        (["devices"], "is not of the form key=value"),
        (["devices=2", "--devices", "4"], "--devices 4 and devices=2 say different things"),
        (["--hint", "S(0)"], "is not of the form GLOB=LAYOUT"),
        (["--hint", "up.weigth=S(0)"], "did you mean"),
        (["--cluster", "h10"], "h10"),
        (["--preset", "fdsp"], "did you mean 'fsdp'?"),
        (["--memory", "lots"], "as a number or '16GB', got 'lots'"),
        (["--microbatches", "some"], "'auto' leaves"),
        (["--recompute", "all", "--inference"], "no backward"),
        (["--devices", "0"], "devices must be a positive number, got 0"),
    ],
)
def test_row_25_what_is_wrong_is_one_message_with_the_nearest(
    cli: Cli, config: Path, given: list[str], message: str
) -> None:
    said = cli("plan", NET, "--config", config, *given)
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.err.startswith("autoplan: ")


def test_row_25_a_mode_is_missing(cli: Cli, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("devices: 8\ncluster: cpu\nparallel: {tensor: 4}\n")
    said = cli("plan", NET, "--config", path)
    assert said.code == 2
    assert "tensor=4 says no mode; write tensor=dict(size=4, mode=" in said.err
    assert cli("plan", NET, "--config", path, "parallel.tensor.mode=1d").code == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "devices = ", "is not TOML"),
        ("run.yaml", "devices: [", "is not YAML"),
        ("run.json", "{}", "no .toml, .yaml or .yml file"),
        ("run.toml", "device = 4", "has no key 'device' (did you mean 'devices'?)"),
        ("run.toml", None, "cannot be read"),
        ("run.toml", "cluster = 'cpu'", "say for how many devices: --devices 8"),
    ],
)
def test_row_25_bad_files_are_refused(
    cli: Cli, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    said = cli("plan", NET, "--config", path)
    assert said.code == 2
    assert message in said.err


def test_row_24_the_config_of_a_plan_asks_for_it_again(cli: Cli, saved: Path) -> None:
    import yaml

    asked = autoplan.load_plan(saved).config
    path = saved.with_name("again.yaml")
    path.write_text(yaml.safe_dump(asked))
    again = saved.with_name("again.toml")
    assert cli("plan", NET, "--config", path, "-o", again).code == 0
    one, other = autoplan.load_plan(saved), autoplan.load_plan(again)
    assert one.choices == other.choices
    assert one.step_time_s == other.step_time_s


# -- H: a plan is a text file, edited and compared by meaning --------------------------------------


def test_row_h_another_spelling_is_no_difference(cli: Cli, saved: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "spaced.toml"
    text = saved.read_text()
    spaced.write_text(text.replace('"(S(0)) -> (B/P)"', '"( S(0) )  -> (B/P)"') + "\n# a note\n")
    assert spaced.read_text() != text
    said = cli("diff", saved, spaced)
    assert (said.code, said.out) == (0, "no difference\n")


def test_row_h_an_edit_is_a_difference_that_verifies(cli: Cli, saved: Path, tmp_path: Path) -> None:
    """A decision of the file is edited; on the model it holds, and computes the same."""
    edited = tmp_path / "edited.toml"
    line = '"down.weight" = "(S(0)) -> (B/P)"'
    assert line in saved.read_text()
    edited.write_text(saved.read_text().replace(line, '"down.weight" = "(B) -> (B/P)"'))
    said = cli("diff", saved, edited)
    assert said.code == 1
    assert "down.weight: (S(0)) read as (B/P) -> (B) read as (B/P)" in said.out.splitlines()
    document = cli("diff", saved, edited, "--json")
    assert document.code == 1
    assert not document.json["equal"]
    assert document.json["differences"] == said.out.splitlines()
    checked = cli("verify", NET, "--plan", edited)
    assert checked.code == 0, checked.out
    shown = cli("show", edited, "--model", NET, "--json").json
    layouts = {row["path"]: row["layout"] for row in shown["tensors"]}
    assert layouts["down.weight"] == "(B)"
    assert layouts["up.weight"] == "(S(0))"


def test_row_h_a_wrong_edit_is_named(cli: Cli, saved: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited.toml"
    edited.write_text(saved.read_text().replace('"up/linear#1" = "b0"', '"up/linear#1" = "q"'))
    said = cli("verify", NET, "--plan", edited)
    assert said.code == 2
    assert "'up/linear#1' says 'q'" in said.err
    cut = tmp_path / "cut.toml"
    cut.write_text(saved.read_text()[:700])
    for command in (("show", cut), ("diff", saved, cut), ("explain", cut, "up")):
        said = cli(*command)
        assert said.code == 2
        assert "is not a plan file of autoplan, or is damaged" in said.err


def test_row_h_survives_a_change_of_the_model(cli: Cli, saved: Path, tmp_path: Path) -> None:
    """Another width changes every op; what still fits is held, and the report lists the rest."""
    said = cli("show", saved, "--model", NET, "--set", "width=32", "--batch", "4")
    assert said.code == 0, said.err
    assert "[128, 32]" in said.out
    other = tmp_path / "other.py"
    other.write_text("import torch\n\n\ndef build():\n    return torch.nn.Conv1d(2, 2, 1)\n")
    said = cli("verify", other, "--plan", saved, "--arg", "float32[2,2,4]")
    assert said.code == 2
    assert "of another model" in said.err
