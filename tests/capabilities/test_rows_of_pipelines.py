"""Rows 5 to 10, 13, 16, 18, 19, 31, 32, 34, 35 and 37 of the capability table: pipelines,
simulated and on real gloo ranks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autoplan.pipelining.events import Times, simulate
from autoplan.pipelining.schedules import Event, read_schedule
from tests.capabilities import pipeline_ranks
from tests.capabilities.pipeline_ranks import (
    CUTS,
    EIGHT,
    LENGTH,
    ROWS,
    SCHEDULES,
    WIDTH,
    Moved,
    Peak,
    Products,
    Steps,
    Trained,
    blocks,
    cut_and_trained,
    cut_by_hints,
    mapped,
    moved,
    on_eight,
    on_four,
    on_launched,
    on_mesh_of_eight,
    on_two,
    peak,
    piped,
    placed,
    products,
    resnet,
    scheduled,
    stepped,
    train,
)
from tests.runtime.launch import run_ranks

pytestmark = pytest.mark.timeout(900)  # many processes, on machines of two cores

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(on_two, 2, timeout_s=400)


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Any]]:
    return run_ranks(on_four, 4, timeout_s=400)


@pytest.fixture(scope="module")
def eight_ranks() -> list[dict[str, Trained]]:
    return run_ranks(on_eight, 8, timeout_s=500)


@pytest.fixture(scope="module")
def simulated() -> dict[str, Trained]:
    return {name: scheduled(name) for name in SCHEDULES}


# -- 5: a layer, or a free parameter, placed on a stage -------------------------------------------


def test_row_05_a_layer_and_a_free_parameter_on_a_stage() -> None:
    """Where the planner itself would put other blocks."""
    module = placed()
    pipeline = module.plan.pipeline
    assert pipeline is not None
    assert pipeline.actual != pipeline.automatic
    pieces = [stage.pieces for stage in pipeline.stages]
    assert "head" in pieces[3]
    assert {"blocks.1", "blocks.2"} <= set(pieces[2])
    assert module._places["head.weight"].homes == (3,)
    assert module._places["position"].homes == (0,)
    assert module._places["blocks.1.up.weight"].homes == (2,)
    assert train(module, blocks()).worst < TOLERANCE


def test_row_05_on_real_ranks(four_ranks: list[dict[str, Any]]) -> None:
    """A parameter exists on the ranks of its stage only."""
    held = [result["5"].held for result in four_ranks]
    for path, stage in (("head.weight", 3), ("position", 0), ("blocks.1.up.weight", 2)):
        assert [path in each for each in held] == [rank == stage for rank in range(4)]
    assert all(result["5"].worst < TOLERANCE for result in four_ranks)


# -- 6: activations move between stages -----------------------------------------------------------

VALUE = (ROWS // 4, LENGTH, WIDTH)


def check_moved(found: Moved) -> None:
    """Two values go on: the blocks', and the embedding, which the last stage alone reads."""
    for stage, shapes in found.received.items():
        assert shapes == ((VALUE, VALUE) if stage else ())
        assert found.sent[stage] == ((VALUE, VALUE) if stage < 3 else ())
    assert found.error < 1e-14


def test_row_06_activations_move_between_stages() -> None:
    """The model is a plain one; sends are in the plan."""
    module = mapped()
    found = moved(module)
    assert set(found.sent) == {0, 1, 2, 3}
    check_moved(found)
    sends = [each for each in module.plan.collectives if each.kind == "send"]
    assert [each.direction for each in sends] == ["forward", "backward"] * 3
    assert {each.axis for each in sends} == {"pipeline"}
    assert {each.bytes for each in sends} <= {2 * 8 * ROWS // 4 * LENGTH * WIDTH}
    assert {each.count for each in sends} == {4}


def test_row_06_on_real_ranks(four_ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(four_ranks):
        assert set(result["6"].sent) == {rank}
        check_moved(result["6"])


# -- 7, 8, 9, 10, 13: schedules -------------------------------------------------------------------


def check_equal(ranks: list[Trained]) -> None:
    """Losses, gradients, and weights after three steps are those of the unsplit model."""
    for each in ranks:
        assert each.worst < TOLERANCE, each.errors
    assert frozenset.union(*(each.held for each in ranks)) == set(blocks(8).state_dict())


def merged(ranks: list[Trained]) -> dict[str, torch.Tensor]:
    return {path: grad for each in ranks for path, grad in each.gradients.items()}


def check_same_gradients(one: list[Trained], other: list[Trained]) -> None:
    first, second = (
        {k: v for r in ranks for k, v in r.gradients.items()} for ranks in (one, other)
    )
    assert first.keys() == second.keys()
    for path, value in first.items():
        torch.testing.assert_close(second[path], value, rtol=TOLERANCE, atol=1e-15)


def of(ranks: list[dict[str, Any]], name: str) -> list[Trained]:
    return [result[name] for result in ranks]


def forwards(stage: int, count: int) -> list[Event]:
    return [Event("forward", stage, number) for number in range(count)]


def backwards(stage: int, count: int) -> list[Event]:
    return [Event("backward", stage, number) for number in range(count)]


def test_row_07_naive_pipeline(simulated: dict[str, Trained]) -> None:
    """Two stages, one microbatch."""
    check_equal([simulated["naive"]])
    assert simulated["naive"].events == (
        Event("forward", 0, 0),
        Event("forward", 1, 0),
        Event("backward", 1, 0),
        Event("backward", 0, 0),
    )


def test_row_07_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    check_equal(of(two_ranks, "naive"))
    for rank, result in enumerate(of(two_ranks, "naive")):
        assert list(result.events) == [*forwards(rank, 1), *backwards(rank, 1)]


def test_row_08_gpipe(simulated: dict[str, Trained]) -> None:
    """All forwards of a stage, then all its backwards."""
    check_equal([simulated["gpipe"]])
    for stage in (0, 1):
        events = [each for each in simulated["gpipe"].events if each.stage == stage]
        assert events == [*forwards(stage, 4), *backwards(stage, 4)]
    assert simulated["gpipe"].in_flight == {0: 4, 1: 4}


def test_row_08_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    check_equal(of(two_ranks, "gpipe"))
    for rank, result in enumerate(of(two_ranks, "gpipe")):
        assert list(result.events) == [*forwards(rank, 4), *backwards(rank, 4)]
        assert result.in_flight == {rank: 4}


def test_row_09_one_forward_one_backward(simulated: dict[str, Trained]) -> None:
    """At most p - s microbatches in flight at stage s; gradients as GPipe's."""
    check_equal([simulated["1f1b"]])
    assert simulated["1f1b"].in_flight == {0: 2, 1: 1}
    check_same_gradients([simulated["gpipe"]], [simulated["1f1b"]])


def test_row_09_on_real_ranks(
    two_ranks: list[dict[str, Any]], four_ranks: list[dict[str, Any]]
) -> None:
    check_equal(of(two_ranks, "1f1b"))
    check_same_gradients(of(two_ranks, "gpipe"), of(two_ranks, "1f1b"))
    assert [result.in_flight for result in of(two_ranks, "1f1b")] == [{0: 2}, {1: 1}]
    assert [result.in_flight for result in of(four_ranks, "9")] == [{s: 4 - s} for s in range(4)]
    for stage, result in enumerate(of(four_ranks, "9")):
        events = [each for each in result.events if each.stage == stage]
        warm = 4 - stage
        assert events[:warm] == forwards(stage, warm)
        steady = [each.kind for each in events[warm : 2 * 8 - warm]]
        assert steady == ["backward", "forward"] * (8 - warm)
        assert result.worst < TOLERANCE


def check_peaks(gpipe: Peak, one: Peak) -> None:
    """8 microbatches in flight, or 2: most of what is held are activations."""
    assert one.predicted < 0.75 * gpipe.predicted
    assert one.measured < 0.75 * gpipe.measured
    assert all(a < b for a, b in zip(one.of_stages, gpipe.of_stages, strict=True))


def test_row_09_peak_memory_is_below_gpipes() -> None:
    check_peaks(peak("gpipe"), peak("1f1b"))


def test_row_09_peak_memory_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    for result in two_ranks:
        check_peaks(result["peak gpipe"], result["peak 1f1b"])


def test_row_10_interleaved(simulated: dict[str, Trained]) -> None:
    """Two stages on each of two ranks; the bubble is smaller than 1F1B's."""
    found = simulated["interleaved"]
    check_equal([found])
    assert found.ranks == ((0,), (1,), (0,), (1,))
    check_same_gradients([simulated["1f1b"]], [found])
    assert found.bubble < simulated["1f1b"].bubble


def test_row_10_the_bubble_in_the_simulator() -> None:
    """Equal stages: (p-1) / (m+p-1) of the time, or (p-1) / (vm+p-1) with v chunks."""

    def bubble(name: str, chunks: int) -> float:
        orders = read_schedule(name, chunks).orders(2, 4)
        stages = 2 * chunks
        times = Times([1.0 / stages] * stages, [2.0 / stages] * stages)
        return simulate(orders, times).bubble_fraction

    assert bubble("1f1b", 1) == pytest.approx(1 / 5)
    assert bubble("interleaved-1f1b", 2) == pytest.approx(1 / 9)


def test_row_10_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    results = of(two_ranks, "interleaved")
    check_equal(results)
    check_same_gradients(of(two_ranks, "1f1b"), results)
    assert [{event.stage for event in each.events} for each in results] == [{0, 2}, {1, 3}]
    assert all(each.bubble < two_ranks[0]["1f1b"].bubble for each in results)


def test_row_13_gradient_accumulation(simulated: dict[str, Trained]) -> None:
    """8 microbatches equal one batch 8 times as large."""
    check_equal([simulated["accumulated"]])
    assert len(simulated["accumulated"].events) == 2 * 2 * 8


def test_row_13_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    check_equal(of(two_ranks, "accumulated"))
    assert all(len(each.events) == 2 * 8 for each in of(two_ranks, "accumulated"))


# -- 16, 18, 19: on 8 ranks -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [name for name in EIGHT if name.startswith("16")])
def test_row_16_pure_modes_on_8_real_ranks(
    eight_ranks: list[dict[str, Trained]], mode: str
) -> None:
    results = of(eight_ranks, mode)
    assert all(each.worst < TOLERANCE for each in results), results[0].errors
    if mode == "16 pipeline":
        for rank, each in enumerate(results):
            assert f"blocks.{rank}.up.weight" in each.held
            assert sum(path.endswith("up.weight") for path in each.held) == 1
    else:
        assert len({each.held for each in results}) == 1


def check_pairs(results: list[Trained]) -> None:
    """Stage s is ranks 2s and 2s + 1."""
    for each in results:
        assert each.ranks == tuple((2 * s, 2 * s + 1) for s in range(4))
        assert each.worst < TOLERANCE, each.errors


@pytest.mark.parametrize("beside", ["data", "tensor"])
def test_row_18_with_pipeline_4(beside: str) -> None:
    check_pairs([on_mesh_of_eight(f"18 {beside}")])


@pytest.mark.parametrize("beside", ["data", "tensor"])
def test_row_18_on_real_ranks(eight_ranks: list[dict[str, Trained]], beside: str) -> None:
    results = of(eight_ranks, f"18 {beside}")
    check_pairs(results)
    held = [each.held for each in results]
    assert all(held[2 * s] == held[2 * s + 1] for s in range(4))
    assert all("position" in each for each in held[:2])
    assert all("head.weight" in each for each in held[6:])
    assert not any("position" in each for each in held[2:])


def test_row_19_three_dimensions() -> None:
    """Loss and weights after 3 AdamW steps equal one process."""
    result = on_mesh_of_eight("19")
    assert result.ranks == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert result.worst < TOLERANCE, result.errors


def test_row_19_on_real_ranks(eight_ranks: list[dict[str, Trained]]) -> None:
    for each in of(eight_ranks, "19"):
        assert each.ranks == ((0, 1, 2, 3), (4, 5, 6, 7))
        assert each.worst < TOLERANCE, each.errors
        assert set(blocks(2).state_dict()) <= set(each.errors)


# -- 31: a split by hand --------------------------------------------------------------------------


def test_row_31_a_split_by_hand_reproduces() -> None:
    assert cut_and_trained(1).worst < TOLERANCE


def test_row_31_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    """Each rank has the blocks that the hints give it, and their running statistics."""
    for rank, result in enumerate(of(two_ranks, "31")):
        assert result.worst < TOLERANCE, result.errors
        held = {path.split(".")[1] for path in result.held if path.startswith("blocks.")}
        assert held == ({"0"} if rank == 0 else {"1", "2", "3"})
        assert "blocks.0.body.1.running_mean" in result.errors


def test_row_31_the_solvers_cut_is_never_slower() -> None:
    model, example = resnet()
    automatic = piped(model, 2, 1, example, cluster="cpu").plan.step_time_s
    by_hand = [cut_by_hints(cut).plan.step_time_s for cut in CUTS]
    assert automatic <= min(by_hand) * (1 + 1e-9)
    assert max(by_hand) > min(by_hand)


# -- 32: a training step --------------------------------------------------------------------------


def check_steps(found: Steps) -> None:
    assert found.empty
    assert found.filled
    assert found.outputs == 4
    assert found.same == 0.0
    assert found.error < TOLERANCE


def test_row_32_a_training_step() -> None:
    """One call is forward and backward over microbatches; `forward_only` leaves no gradient."""
    check_steps(stepped())


def test_row_32_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    for result in two_ranks:
        check_steps(result["32"])


# -- 34, 35: placements ---------------------------------------------------------------------------


def check_products(ranks: list[Products], local: dict[int, dict[str, tuple[int, ...]]]) -> None:
    found = {rank: shapes for each in ranks for rank, shapes in each.local.items()}
    assert found.keys() == local.keys()
    for rank, shapes in local.items():
        assert {path: found[rank].get(path) for path in shapes} == shapes
        others = {"0", "1", "0.weight", "1.weight"} - shapes.keys()
        assert not others & found[rank].keys()
    for each in ranks:
        assert each.shape == (4, 6)
        assert each.error < 1e-15
        assert each.verified.startswith("equal within 1e-09")


TWO_PLACEMENTS: dict[int, dict[str, tuple[int, ...]]] = {
    0: {"0.weight": (5, 8), "0": (4, 8)},
    1: {"1.weight": (8, 6), "1": (4, 6)},
}


def test_row_34_matmul_over_two_placements() -> None:
    check_products([products("one rank each")], TWO_PLACEMENTS)


def test_row_34_on_real_ranks(two_ranks: list[dict[str, Any]]) -> None:
    check_products([result["34"] for result in two_ranks], TWO_PLACEMENTS)


DATA_THEN_MODEL: dict[int, dict[str, tuple[int, ...]]] = {
    **{rank: {"0.weight": (5, 8), "0": (2, 8)} for rank in (0, 1)},
    **{rank: {"1.weight": (8, 3), "1": (4, 3)} for rank in (2, 3)},
}
"""Stage 1 has the whole (4, 8), and makes (4, 3)."""


def test_row_35_a_different_strategy_on_each_stage() -> None:
    found = products("data, then model")
    check_products([found], DATA_THEN_MODEL)
    assert found.input == (2, 5)


def test_row_35_on_real_ranks(four_ranks: list[dict[str, Any]]) -> None:
    check_products([result["35"] for result in four_ranks], DATA_THEN_MODEL)
    assert {result["35"].input for result in four_ranks} == {(2, 5)}


# -- 37: one node and several ---------------------------------------------------------------------


def torchrun(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A launcher of processes that train four ranks, two stages with data parallelism."""
    folder.mkdir(exist_ok=True)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    command += [pipeline_ranks.__file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    return subprocess.Popen(command, env=environment, cwd=folder)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def finish(folder: Path, launchers: list[subprocess.Popen[bytes]]) -> list[Any]:
    try:
        codes = [each.wait(timeout=200) for each in launchers]
    finally:
        for each in launchers:
            each.kill()
    assert codes == [0] * len(launchers)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


def test_row_37_one_node_and_several(tmp_path: Path) -> None:
    """Four processes of one launcher, and of two on 127.0.0.1, to the bit; and simulation."""
    one = tmp_path / "one"
    alone = ["--nproc-per-node=4", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    found = finish(one, [torchrun(one, "--nnodes=1", *alone)])
    two, port = tmp_path / "two", free_port()
    nodes = ["--nnodes=2", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    launchers = [torchrun(two, *nodes, f"--node-rank={node}") for node in range(2)]
    assert finish(two, launchers) == found
    expected = on_launched()
    for each in found:
        assert each["losses"] == pytest.approx(expected["losses"], rel=TOLERANCE)
        assert each["weights"] == pytest.approx(expected["weights"], rel=TOLERANCE)
        assert each["held"] < expected["held"]
    assert expected["losses"][2] < expected["losses"][0]
