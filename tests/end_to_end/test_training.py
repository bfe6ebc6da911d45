"""Real ranks train as one device does: losses, gradients, weights, clipping, saved states."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.training import ROUND_TRIPS, Case, Outcome, build, everything, one_device
from tests.models import ideal_cluster
from tests.runtime.launch import run_ranks

TOLERANCE = 1e-9
MODELS = ("gpt2", "llama", "mlp")


FOR_LLAMA = ("fast links", "megatron-sp", "data x tensor", "mesh a x b")


def cases(ranks: int) -> list[Case]:
    """Every model under every scheme; a few ways to train."""
    ideal: dict[str, Any] = {"cluster": ideal_cluster(ranks)}
    fsdp, megatron = {"preset": "fsdp"}, {"preset": "megatron"}
    schemes: dict[str, dict[str, Any]] = {
        "own plan": {},
        "fast links": ideal,
        **{name: {"preset": name} for name in ("ddp", "fsdp", "megatron", "megatron-sp")},
    }
    grid: dict[str, Any] = {"parallel": {"data": 2, "tensor": {"size": 2, "mode": "1d"}}}
    if ranks == 4:
        schemes["data x tensor"] = grid
        schemes["mesh a x b"] = {"parallel": {"mesh": {"a": 2, "b": 2}}, **ideal}
    listed = [Case(m, options, name=name) for m in MODELS for name, options in schemes.items()]
    if ranks == 4:  # on two ranks Llama has run under all of them
        listed = [each for each in listed if each.model != "llama" or each.name in FOR_LLAMA]
    if ranks == 4:
        listed.append(Case("gpt2", {**grid, "preset": "megatron-sp"}, name="data x megatron-sp"))
    uneven = {"n_embd": 20, "n_head": 5}
    return [
        *listed,
        Case("gpt2", {"cluster": "h100"}, name="own plan for h100"),
        Case("gpt2", ideal, uneven, rows=6, name="uneven"),
        Case("free", fsdp, name="fsdp"),
        Case("free", ideal, name="fast links"),
        *(Case(m, drawn=seed, rows=6, name=f"drawn {seed}") for seed, m in enumerate(MODELS)),
        Case("gpt2", fsdp, optimizer="clipped", name="fsdp clipped"),
        Case("llama", megatron, optimizer="clipped", name="megatron clipped"),
        Case("gpt2", ideal, optimizer="momentum", name="momentum"),
        Case("gpt2", {"preset": "ddp"}, local_inputs=True, name="ddp local inputs"),
        Case("mlp", fsdp, local_inputs=True, name="fsdp local inputs"),
        Case("mlp", ideal, local_inputs=True, name="fast links local inputs"),
        Case("llama", megatron, microbatches=2, name="megatron 2 microbatches"),
        Case("gpt2", fsdp, microbatches=2, name="fsdp 2 microbatches"),
        Case("mlp", ideal, microbatches=2, name="fast links 2 microbatches"),
    ]


class Results(dict[int, list[dict[str, Any]]]):
    """Everything on 2 and on 4 ranks, one set of processes each, started when first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self.factory = factory

    def __missing__(self, ranks: int) -> list[dict[str, Any]]:
        folder = str(self.factory.mktemp("states"))
        self[ranks] = run_ranks(everything, ranks, cases(ranks), folder, timeout_s=280)
        return self[ranks]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory)


def pairs() -> list[Any]:
    return [
        pytest.param(ranks, str(case), id=f"{ranks} ranks-{case}")
        for ranks in (2, 4)
        for case in cases(ranks)
    ]


@pytest.mark.parametrize(("ranks", "case"), pairs())
def test_three_steps_equal_one_device(results: Results, ranks: int, case: str) -> None:
    outcomes = [result[case] for result in results[ranks]]
    assert all(isinstance(outcome, Outcome) for outcome in outcomes), outcomes[0]
    for outcome in outcomes:
        assert outcome.losses == outcomes[0].losses  # every rank sees the same loss
        assert outcome.loss_error <= TOLERANCE
        assert max(outcome.gradient_errors.values()) <= TOLERANCE, outcome.gradient_errors
        assert outcome.norm_error <= TOLERANCE
        assert max(outcome.weight_errors.values()) <= TOLERANCE, outcome.weight_errors
        assert outcome.verified.startswith("equal" if "microbatches" not in case else "")


@pytest.mark.parametrize(("ranks", "case"), pairs())
def test_collectives_are_those_predicted(results: Results, ranks: int, case: str) -> None:
    outcome = results[ranks][0][case]
    for predicted, seen in (outcome.step_traffic, outcome.call_traffic):
        assert seen == predicted


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_cases_are_what_their_names_say(results: Results, ranks: int) -> None:
    """Or else they would not test what they should."""
    layouts = {
        name: outcome.layouts
        for name, outcome in results[ranks][0].items()
        if isinstance(outcome, Outcome)
    }
    weight = "transformer.h.0.mlp.c_fc.weight"
    assert set(layouts["gpt2 ddp"].values()) == {"(B)"}
    assert "(B)" not in layouts["gpt2 fsdp"].values()
    assert layouts["gpt2 megatron"][weight] == "(S(1))"
    assert "S" in layouts["gpt2 fast links"][weight]
    assert len({str(sorted(each.items())) for name, each in layouts.items() if "gpt2" in name}) >= 4
    if ranks == 4:
        assert results[4][0]["gpt2 data x tensor"].mesh == "data 2 x tensor 2"
        assert results[4][0]["gpt2 mesh a x b"].mesh == "a 2 x b 2"


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("preset", ROUND_TRIPS)
def test_whole_state_dicts_go_round(results: Results, ranks: int, preset: str) -> None:
    for result in results[ranks]:
        found = result[f"round trip {preset}"]
        assert found["keys equal"]
        assert found["loss error"] <= TOLERANCE
        assert "transformer.wpe.weight" in found["refusal"]
        assert "(3,)" in found["refusal"]
        assert found["unchanged"] == 0.0
        assert found["loaded"] == 0.0


@pytest.mark.parametrize("ranks", [2, 4])
def test_arguments_get_their_gradients(results: Results, ranks: int) -> None:
    for result in results[ranks]:
        assert max(result["input gradients"]) <= TOLERANCE


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_plan_from_a_file_is_followed(results: Results, ranks: int) -> None:
    for result in results[ranks]:
        assert result["from file"].startswith("equal")


@pytest.mark.parametrize("ranks", [2, 4])
def test_checkpoints_of_torch_resume_training(results: Results, ranks: int) -> None:
    for result in results[ranks]:
        assert result["checkpoint"]["loaded"] == 0.0
        assert result["checkpoint"]["gone on"] <= 1e-12
        assert result["checkpoint"]["moved"] > 1e-4


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_plan_for_other_devices_than_processes_is_refused(results: Results, ranks: int) -> None:
    for result in results[ranks]:
        assert result["wrong number"].startswith("ConfigError")
        assert f"{2 * ranks} devices" in result["wrong number"]
        assert f"{ranks} processes" in result["wrong number"]


SCRIPT = """
import torch, autoplan
from tests.end_to_end.training import Case, batch_of, build, loss_of
torch.set_num_threads(1)
case = Case("mlp")
args, kwargs = batch_of(case)
module = autoplan.parallelize(build(case), args, kwargs, preset="fsdp")
optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
for _ in range(3):
    loss = loss_of(module(*args, **kwargs))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
if module.plan.mesh.num_devices == 2:
    print(f"loss {loss.item()!r}\\n", end="", flush=True)
"""


def test_a_script_under_torchrun(tmp_path: Path) -> None:
    """The script never names a rank, a process group, or a number of devices."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    truth = one_device("mlp", (), 8, "adamw")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(script)),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = [float(each) for each in re.findall(r"loss (\S+)", done.stdout)]
    assert printed == pytest.approx([truth.losses[-1]] * 2, rel=TOLERANCE)


def test_the_models_start_from_other_weights_on_every_rank() -> None:
    one, other = (build(Case("mlp"), seed).state_dict()["fc1.weight"] for seed in (0, 1))
    assert not torch.equal(one, other)
