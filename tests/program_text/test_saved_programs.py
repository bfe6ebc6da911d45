"""Saved programs: files that run as they are on real ranks, and find what the original model does.

Each rank is a plain script in a process of its own, which imports no planner.
"""

from __future__ import annotations

import ast
import copy
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import autoplan
from autoplan.errors import ConfigError, PlanFileError
from autoplan.plan import load_plan
from tests.models import ideal_cluster
from tests.program_text.running import (
    CASES,
    MEGATRON,
    model_of,
    reference,
    run_files,
    save_on_rank,
    whole_gradients,
)
from tests.runtime.launch import run_ranks

ON_REAL_RANKS = "split by hand, uneven"
"""The case whose programs real ranks save; a simulation saves the others."""


@pytest.mark.parametrize("case", CASES)
def test_ranks_as_scripts_find_what_the_model_does(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    model, args = model_of(name)
    original = copy.deepcopy(model)
    cluster = ideal_cluster(options["devices"])
    module = autoplan.parallelize(model, args, cluster=cluster, **options)
    if case == ON_REAL_RANKS:
        saved_there = run_ranks(save_on_rank, options["devices"], case, str(tmp_path))
        names = [sorted(Path(path).name for path in paths) for paths in saved_there]
        programs = ["rank_0.pt", "rank_0.py", "rank_1.py", "run.py"]
        assert names == [["batch.pt", "constants.pt", *programs], ["rank_1.pt"]]
    else:
        written = module.save_program(tmp_path, args)
        assert all(path.exists() for path in written)
    results = run_files(tmp_path, options["devices"])
    loss, gradients = reference(original, args)
    for result in results:
        torch.testing.assert_close(result["loss"], loss, rtol=1e-9, atol=0)
    found = whole_gradients(module.plan, results)
    assert found.keys() == gradients.keys()
    for path, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[path], gradient, rtol=1e-9, atol=1e-9 * scale)


def test_run_py_starts_every_rank_with_a_state_dict(tmp_path: Path) -> None:
    """Saved from a plan: no shards, but the whole state dict, and `python run.py`."""
    model, args = model_of("residual")
    options = {"devices": 2, "parallel": {"mesh": {"x": 2}}, "hints": MEGATRON}
    plan = autoplan.plan(model, args, cluster=ideal_cluster(2), **options)
    plan.save_program(tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.save([list(args)], tmp_path / "batch.pt")
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, text=True, capture_output=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loss, gradients = reference(model, args)
    assert float(done.stdout.split("loss ")[1]) == pytest.approx(float(loss), rel=1e-12)
    results = [torch.load(tmp_path / f"result_{rank}.pt") for rank in range(2)]
    for path, gradient in whole_gradients(plan, results).items():
        torch.testing.assert_close(gradient, gradients[path], rtol=1e-9, atol=1e-12)


def test_inference_on_one_device(tmp_path: Path) -> None:
    """In this process: one rank needs no group."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()).double().eval()
    x = torch.randn(6, 4, dtype=torch.float64)
    module = autoplan.parallelize(model, (x,), devices=1, training=False)
    module.save_program(tmp_path, (x,))
    runpy.run_path(str(tmp_path / "rank_0.py"), run_name="__main__")
    result = torch.load(tmp_path / "result_0.pt")
    with torch.no_grad():
        torch.testing.assert_close(result["outputs"][0][0], model(x), rtol=1e-12, atol=0)
    assert result["loss"] is None


# -- the text --------------------------------------------------------------------------------------


def saved(folder: Path, case: str) -> dict[str, str]:
    name, options = CASES[case]
    model, args = model_of(name)
    cluster = ideal_cluster(options["devices"])
    autoplan.plan(model, args, cluster=cluster, **options).save_program(folder)
    return {path.name: path.read_text() for path in sorted(folder.glob("*.py"))}


@pytest.mark.parametrize("case", ["zero3, recomputed", "1f1b, data"])
def test_files_import_torch_and_the_runtime_alone(case: str, tmp_path: Path) -> None:
    for text in saved(tmp_path, case).values():
        imported = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
            elif isinstance(node, ast.Import):
                imported |= {each.name for each in node.names}
        assert imported <= {"torch", "autoplan.runtime.saved"}


def test_equal_ranks_share_a_file_and_stages_have_their_own(tmp_path: Path) -> None:
    assert list(saved(tmp_path / "even", "zero3, recomputed")) == ["rank_0.py", "run.py"]
    # Rows that 2 does not divide: views and slices of the ranks differ.
    uneven = saved(tmp_path / "uneven", "split by hand, uneven")
    assert list(uneven) == ["rank_0.py", "rank_1.py", "run.py"]
    stages = saved(tmp_path / "stages", "1f1b, data")
    assert list(stages) == ["rank_0.py", "rank_2.py", "run.py"]
    assert "RANKS = (2, 3)" in stages["rank_2.py"]
    assert "def body_1(" in stages["rank_2.py"]
    assert "def body_1(" not in stages["rank_0.py"]
    chunks = saved(tmp_path / "chunks", "interleaved, tied, recomputed")["rank_0.py"]
    assert "def body_0(" in chunks
    assert "def body_2(" in chunks


def test_every_value_says_whose_it_is_and_how_it_lies(tmp_path: Path) -> None:
    text = saved(tmp_path, "split by hand, uneven")["rank_1.py"]
    lines = [line.strip() for line in text.splitlines()]
    assert "# layers.0.up: (S(1)) float64[4, 36]" in lines
    spec = "spec('layers.0.up.weight', (36, 9), torch.float64, \"(S(0))\", trained=True),"
    assert f"{spec}  # here [18, 9]" in lines
    body = text.split("def body(")[1].split("):\n")[1].split("\n    return")[0].splitlines()
    assert body[0].strip().startswith("# ")
    commented = {line.strip().split(":")[0] for line in body if line.strip().startswith("#")}
    paths = ("layers.0.norm", "layers.0.up", "layers.0.down", "layers.1.up", "the model")
    assert commented >= {f"# {path}" for path in paths}


# -- what is refused -------------------------------------------------------------------------------


def test_a_plan_from_a_file_needs_its_model(tmp_path: Path) -> None:
    model, args = model_of("residual")
    autoplan.plan(model, args, devices=2, preset="ddp").save(tmp_path / "plan.toml")
    with pytest.raises(ConfigError, match="read from a file knows no model"):
        load_plan(tmp_path / "plan.toml").save_program(tmp_path / "program")


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    model, args = model_of("residual")
    (tmp_path / "file").write_text("")
    plan = autoplan.plan(model, args, devices=2, preset="ddp")
    with pytest.raises(PlanFileError, match="cannot write programs to"):
        plan.save_program(tmp_path / "file" / "program")


def test_the_wrong_rank_and_missing_files_are_named(tmp_path: Path) -> None:
    from autoplan.errors import InputError
    from autoplan.runtime.saved import Rank, spec

    with pytest.raises(InputError, match=r"program for 2 ranks, and 1 were started.*run\.py"):
        Rank({"x": 2}, (0, 1), str(tmp_path / "rank_0.py"))
    with pytest.raises(InputError, match=r"the program of ranks \[3\], and rank 0 runs it"):
        Rank({}, (3,), str(tmp_path / "rank_3.py"))
    rank = Rank({}, (0,), str(tmp_path / "rank_0.py"))
    with pytest.raises(InputError, match=r"no value of 'w': .*weights\.pt"):
        rank.value(spec("w", (2,), torch.float64, "()"))
    with pytest.raises(InputError, match=r"batch\.pt is missing"):
        rank.batches((), 1)
    torch.save([[], []], tmp_path / "batch.pt")
    with pytest.raises(InputError, match="has 2 microbatches, and the program runs 1"):
        rank.batches((), 1)
