"""Every command on a small model: what it says equals what the library says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autoplan
from tests.cli.conftest import NET, Cli
from tests.cli.net import Net


def test_plan_prints_the_report_and_writes_the_plan(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    said = cli("plan", NET, "--devices", "4", "--cluster", "cpu", "--save", path)
    assert said.code == 0
    plan = autoplan.load_plan(path)
    without_seconds = plan.report().split("\ncertificate")[0]
    assert without_seconds in said.out.replace("a model file may print\n", "")
    assert f"written: {path}" in said.out


def test_plan_as_json_is_the_plan_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    said = cli("plan", NET, "-d", "2", "-c", "cpu", "--preset", "ddp", "-o", path, "--json")
    plan = autoplan.load_plan(path)
    found = said.json  # although the model file prints
    assert found["command"] == "plan"
    assert found["mesh"] == {"devices": 2}
    assert found["scheme"] == plan.scheme == "DDP 2"
    assert found["step_time_s"] == plan.step_time_s
    assert found["peak_memory_bytes"] == plan.peak_memory_bytes == found["memory"]["total"]
    moved = sum(c.bytes * c.count for c in plan.collectives if c.phase != "outputs")
    assert found["communication"]["bytes"] == moved > 0
    assert found["certificate"]["bound"] <= found["step_time_s"] * (1 + 1e-9)
    assert [row["path"] for row in found["tensors"]] == [row.path for row in plan.tensors]
    assert found["config"] == plan.config
    assert found["files"] == {"plan": str(path)}
    assert "a model file may print" in said.err


def test_what_is_written_beside_the_plan(cli: Cli, saved: Path, tmp_path: Path) -> None:
    page, trace, program = tmp_path / "p.html", tmp_path / "p.json", tmp_path / "program"
    files = ("--html", page, "--trace", trace, "--program", program)
    said = cli("show", saved, "--model", NET, *files)
    assert said.code == 0, said.err
    assert f"written: {page}" in said.out
    assert "up.weight" in page.read_text()
    assert json.loads(trace.read_text())["traceEvents"]
    assert any(program.iterdir())


def test_show_says_what_plan_said(cli: Cli, saved: Path) -> None:
    plan = autoplan.load_plan(saved)
    assert cli("show", saved).out == plan.report()
    document = cli("show", saved, "--json").json
    assert document["scheme"] == plan.scheme
    assert document["collectives"]


def test_a_pipeline_says_its_stages(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    options = ("parallel.pipeline.size=2", "microbatches=2", "parallel.pipeline.schedule=gpipe")
    found = cli("plan", NET, "-d", "2", "-c", "cpu", *options, "-o", path, "--json").json
    assert found["pipeline"]["schedule"] == "gpipe"
    assert {row["stage"] for row in found["tensors"] if row["kind"] == "parameter"} == {0, 1}
    # Rows 22: the automatic and the actual stages are in the file, which gives the same plan.
    again = autoplan.load_plan(path)
    assert again.pipeline is not None
    assert list(again.pipeline.actual) == found["pipeline"]["actual"]
    assert list(again.pipeline.automatic) == found["pipeline"]["automatic"]
    assert cli("show", path, "--json").json["pipeline"] == found["pipeline"]
    assert cli("diff", path, path).code == 0
    assert "stage 1 of 2" in cli("explain", path, "down").out


def test_explain_a_file_and_a_file_on_its_model(cli: Cli, saved: Path) -> None:
    alone = cli("explain", saved, "up.weight")
    assert alone.code == 0
    assert alone.out == autoplan.load_plan(saved).explain("up.weight")
    again = cli("explain", saved, "up.weight", "--model", NET, "--json").json
    assert again["solved_again"]
    assert "next best" in again["text"]
    assert "next best" not in alone.out


def test_explain_a_model_plans_it(cli: Cli) -> None:
    said = cli("explain", NET, "up", "-d", "2", "-c", "cpu", "--preset", "megatron")
    assert said.code == 0
    assert "collectives it causes" in said.out
    assert "hints forbid" in said.out


def test_verify_a_plan_on_simulated_ranks(cli: Cli, saved: Path) -> None:
    said = cli("verify", NET, "--plan", saved, "--steps", "2", "--json")
    assert said.code == 0
    found = said.json
    assert found["equal"]
    assert found["devices"] == 2
    assert set(found["errors"]["weights"]) == {name for name, _ in Net().named_parameters()}
    assert max(found["errors"]["weights"].values()) < 1e-9


def test_verify_ends_with_1_where_something_differs(cli: Cli, saved: Path) -> None:
    """Rounding is a difference to a tolerance of nothing, in the model's own precision."""
    options = ("--precision", "model", "--tolerance", "0", "--set", "width=16", "--batch", "7")
    said = cli("verify", NET, "--plan", saved, *options)
    assert said.code == 1
    assert "DIFFERENT" in said.out
    assert "first difference" in said.out


def test_compare_has_a_row_for_each_scheme_and_the_search(cli: Cli) -> None:
    names = "ddp,fsdp,megatron,3d,ulysses,search"
    found = cli("compare", NET, "-d", "2", "-c", "cpu", "--presets", names, "--json").json
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == names.split(",")
    assert found["best"] == "search"
    for name in ("ddp", "fsdp", "megatron"):
        assert rows[name]["step_time_s"] >= rows["search"]["step_time_s"]
        assert rows[name]["communication"]["bytes"] > 0
    assert "q x q x q" in rows["3d"]["reason"]
    assert "scaled_dot_product_attention" in rows["ulysses"]["reason"]
    text = cli("compare", NET, "-d", "2", "-c", "cpu", "--presets", "ddp,3d").out
    assert "DDP 2" in text
    assert "q x q x q" in " ".join(text.split())


def test_compare_says_what_does_not_fit(cli: Cli) -> None:
    """FSDP stores half of everything, plain data parallelism all of it, on two devices."""
    # 4 x 4 bytes a parameter under AdamW, of 2112 parameters: 34 kB whole.
    options = ("--memory", "32kB", "--presets", "ddp,fsdp")
    found = cli("compare", NET, "-d", "2", "-c", "cpu", *options, "--json").json
    rows = {row["name"]: row for row in found["rows"]}
    assert not rows["ddp"]["possible"]
    assert "memory" in rows["ddp"]["reason"]
    assert rows["fsdp"]["peak_memory_bytes"] <= 32_000
    nothing = cli("compare", NET, "-d", "2", "-c", "cpu", "--memory", "5kB", "--presets", "ddp")
    assert nothing.code == 1


def test_doctor_tries_what_it_says(cli: Cli) -> None:
    said = cli("doctor", "--json")
    assert said.code == 0
    found = said.json
    assert found["healthy"]
    status = {each["question"]: each["status"] for each in found["findings"]}
    assert status["solver"] == status["plan"] == status["simulate and verify"] == "ok"
    assert "h100" in found["machine"]["clusters"]


def test_doctor_ends_with_1_where_something_needed_is_broken(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pulp.HiGHS", None)
    said = cli("doctor")
    assert said.code == 1
    assert "failed" in said.out


@pytest.mark.parametrize(
    "command", ["plan", "show", "explain", "diff", "verify", "compare", "run", "demo", "doctor"]
)
def test_help_has_examples_and_exit_codes(cli: Cli, command: str) -> None:
    said = cli(command, "--help")
    assert said.code == 0
    assert f"autoplan {command}" in said.out.split("Examples:")[1]
    assert "Exit codes:" in said.out
    assert "--json" in said.out


def test_version_is_that_of_the_package(cli: Cli) -> None:
    assert cli("--version").out == f"autoplan {autoplan.__version__}\n"
    assert "Commands" in cli("--help").out
