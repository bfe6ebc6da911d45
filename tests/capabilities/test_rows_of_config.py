"""Rows 20, 23, 24 and 25 of the capability table: the config as a dict, a file, and overrides.

What plans make of it on real ranks is tested with the rows of their schemes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import autoplan
from autoplan import ConfigError
from autoplan.parallel import MeshChoice
from autoplan.request import Request, make_request

EXAMPLES = Path(__file__).parents[2] / "examples"
TWO_D = {"size": 4, "mode": "2d"}
GRID = "tensor_row 2 x tensor_column 2"


def meshes(request: Request) -> list[str]:
    return [str(choice.mesh) for choice in request.meshes]


# -- 20: the data size is inferred ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "devices", "mesh"),
    [
        ({"tensor": TWO_D}, 8, f"data 2 x {GRID}"),
        ({"tensor": TWO_D, "pipeline": 2}, 8, GRID),
        ({"tensor": TWO_D, "pipeline": 2}, 16, f"data 2 x {GRID}"),
        (
            {"sequence": {"size": 2, "mode": "ring"}, "expert": 2},
            8,
            "data 2 x expert 2 x sequence 2",
        ),
        ({"data": {"mode": "fsdp"}, "tensor": {"size": 2, "mode": "1d"}}, 8, "data 4 x tensor 2"),
        ({"data": {"mode": "hsdp", "shard": 2}, "pipeline": 2}, 8, "replicate 2 x shard 2"),
    ],
)
def test_row_20_the_data_size_is_what_all_others_leave(
    parallel: Any, devices: int, mesh: str
) -> None:
    assert meshes(make_request(devices, "cpu", parallel)) == [mesh]


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"data": 4, "tensor": TWO_D}, r"data 4 x tensor 4 = 16 devices, but devices=8"),
        ({"data": 1, "tensor": TWO_D}, r"data 1 x tensor 4 = 4 devices, but devices=8"),
        ({"sequence": {"size": 3, "mode": "ring"}},
         r"sequence size 3 does not divide 8 devices.*9 devices"),
        ({"expert": 2, "sequence": {"size": 2, "mode": "ring"}, "pipeline": 3},
         r"expert x sequence x pipeline = 12 does not divide 8 devices.*12 devices"),
        ({"data": {"mode": "hsdp", "shard": 3}}, r"shard=3 does not divide data size 8"),
    ],
)  # fmt: skip
def test_row_20_nothing_is_clamped(parallel: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_request(8, "cpu", parallel)


# -- 23: overrides on the command line ------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The example, with a config file and what comes after it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, str(EXAMPLES / "plan_gpt2.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=240, check=False
    )


@pytest.mark.parametrize("name", ["plan.toml", "plan.yaml"])
def test_row_23_key_value_after_a_config_file(name: str) -> None:
    changes = ["devices=4", "cluster=cpu", "microbatches=1", "parallel.data=null", "memory=8GB"]
    done = run(str(EXAMPLES / name), *changes, "parallel.tensor.size=4")
    assert done.returncode == 0, done.stderr
    assert "plan of GPT2LMHeadModel for 4 devices (cpu), training" in done.stdout
    assert "mesh: tensor 4" in done.stdout
    assert "limit 8 GB" in done.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parallel.tensor.sise=4", r"parallel.tensor has no key 'sise' (did you mean 'size'?)"),
        ("paralel.tensor.size=4", r"has no key 'paralel' (did you mean 'parallel'?)"),
        ("microbatch=4", r"has no key 'microbatch' (did you mean 'microbatches'?)"),
        ("parallel.tensor.mode=1b", r"tensor mode '1b' is not known"),
        ("devices=5", r"tensor size 2 does not divide 5 devices"),
    ],
)
def test_row_23_an_unknown_key_suggests_the_nearest(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        request_of(EXAMPLES / "plan.toml", override)
    assert message in str(error.value)


def request_of(path: Path, *overrides: str) -> Request:
    """What a config file asks for."""
    return make_request(**autoplan.read_config(path, overrides))


def test_row_23_the_command_line_ends_with_that_error() -> None:
    done = run(str(EXAMPLES / "plan.toml"), "parallel.tensor.sise=4")
    assert done.returncode != 0
    assert "(did you mean 'size'?)" in done.stderr
    assert "Traceback" not in done.stderr


# -- 24: the config as a dict ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "mesh", "stages"),
    [
        ({"pipeline": {"size": 2}, "tensor": TWO_D}, GRID, 2),
        ({"pipeline": 2, "tensor": TWO_D}, GRID, 2),
        ({"tensor": TWO_D}, f"data 2 x {GRID}", 1),
        ({"tensor": {"size": 8, "mode": "2.5d", "depth": 2}}, f"tensor_depth 2 x {GRID}", 1),
        ({"tensor": {"size": 8, "mode": "3d"}},
         "tensor_input 2 x tensor_output 2 x tensor_weight 2", 1),
        ({"tensor": 1, "pipeline": 2}, "data 4", 2),
        ({"pipeline": 2, "data": {"mode": "fsdp"}}, "data 4", 2),
    ],
)  # fmt: skip
def test_row_24_parts_as_dicts_or_numbers(parallel: Any, mesh: str, stages: int) -> None:
    request = make_request(8, "cpu", parallel)
    assert meshes(request) == [mesh]
    assert request.num_stages == stages


def test_row_24_a_size_left_out_is_searched() -> None:
    request = make_request(8, "cpu", {"pipeline": 2, "tensor": {"mode": "1d"}})
    assert meshes(request) == ["tensor 4", "data 2 x tensor 2"]
    schemes = [choice.schemes for choice in request.meshes]
    assert schemes == [{"tensor": "1d"}, {"data": "data", "tensor": "1d"}]
    model, x = (
        torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)),
        torch.ones(8, 32),
    )
    times = {}
    for size in (None, 2, 4):
        tensor = {"mode": "1d", **({"size": size} if size else {})}
        plan = autoplan.plan(model, (x,), devices=4, cluster="cpu", parallel={"tensor": tensor})
        times[size] = plan.step_time_s
    assert times[None] == pytest.approx(min(times[2], times[4]), rel=1e-9)


def test_row_24_what_was_resolved_is_a_config_again() -> None:
    for parallel in (None, {}, {"tensor": TWO_D}, {"tensor": {"mode": "1d"}}, {"expert": {}}):
        for choice in make_request(8, "cpu", parallel).meshes:
            (again,) = make_request(8, "cpu", dict(choice.as_parallel())).meshes
            assert isinstance(again, MeshChoice)
            assert (again.mesh, again.schemes) == (choice.mesh, choice.schemes)


# -- 25: a bad config is refused ------------------------------------------------------------------


def test_row_25_a_mode_is_missing_in_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("devices: 8\ncluster: cpu\nparallel: {tensor: 4}\n")
    with pytest.raises(
        ConfigError, match=r"tensor=4 says no mode; write tensor=dict\(size=4, mode="
    ):
        request_of(path)
    assert meshes(request_of(path, "parallel.tensor.mode=1d")) == ["data 2 x tensor 4"]


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"tensor": {"size": 4, "mode": "4d"}}, r"tensor mode '4d' is not known.*use '1d', '2d', "),
        ({"tensor": {"size": 8, "mode": "2d"}}, r"does not fit mode='2d'.*q x q.*use size=4 or 9"),
        ({"tensor": {"size": 4, "mode": "3d"}}, r"does not fit mode='3d'.*q x q x q.*use size=8"),
        ({"tensor": {"size": 8, "mode": "2.5d", "depth": 4}},
         r"with depth=4.*use depth=2, or size"),
        ({"tensor": {"size": 2, "mod": "1d"}}, r"no key 'mod' \(did you mean 'mode'\?\)"),
        ({"sequence": {"size": 2, "mode": "rign"}},
         r"'rign' is not known \(did you mean 'ring'\?\)"),
        ({"data": {"size": 8, "mode": "zero"}},
         r"data mode 'zero' is not known; use 'data', 'ddp'"),
    ],
)  # fmt: skip
def test_row_25_bad_configs_are_refused(parallel: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_request(8, "cpu", parallel)
