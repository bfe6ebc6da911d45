"""State: saved under one plan, loaded under another, from files and into models without values."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

import autoplan
from autoplan import ConfigError, InputError
from tests.end_to_end import checkpoints
from tests.end_to_end.checkpoints import SAVED, Filled, Snapshot
from tests.end_to_end.training import Case, batch_of, build, errors, one_device
from tests.models import FreeParameters, Mlp, gpt2, language_batch, sequence_batch, vector_batch
from tests.runtime.launch import run_ranks

TOLERANCE = 1e-12
"""Relative, in float64."""

Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Saved on 4 ranks and in simulation; resumed on 4, on 2, and in simulation."""
    folder, simulated = (str(tmp_path_factory.mktemp(name)) for name in ("four", "simulated"))
    four = run_ranks(checkpoints.on_four, 4, folder, timeout_s=240)
    here: dict[str, Any] = {
        f"resumed {name}": checkpoints.resume(4, name, folder) for name in SAVED
    }
    here["saved dropout"] = checkpoints.save(4, "dropout", simulated)
    two = run_ranks(checkpoints.on_two, 2, folder, simulated, timeout_s=240)
    yield {"4": four, "simulation": [here], "2": two}
    for path in (folder, simulated):
        shutil.rmtree(path)


def bit_equal(one: Any, other: Any) -> bool:
    """Two trees of dicts, lists, tensors and plain values, in the same order."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(bit_equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(bit_equal, one, other))
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


@cache
def weights_of_one_device(name: str) -> dict[str, Tensor]:
    case = SAVED[name]
    return one_device(case.model, tuple(case.config.items()), case.rows, case.optimizer).weights


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("where", ["4", "2", "simulation"])
def test_another_plan_goes_on_from_a_checkpoint(results: Results, where: str, name: str) -> None:
    for rank, result in enumerate(results[where]):
        saved: Snapshot = results["4"][rank][f"saved {name}"]
        resumed: Snapshot = result[f"resumed {name}"]
        assert bit_equal(resumed.weights, saved.weights)
        assert bit_equal(resumed.optimizer, saved.optimizer)
        assert max(errors(resumed.weights_after, weights_of_one_device(name)).values()) <= TOLERANCE


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_and_where_it_lies(results: Results, name: str) -> None:
    """The comparisons above compare something: layouts differ, states are there, steps move."""
    saved: Snapshot = results["4"][0][f"saved {name}"]
    for where in ("4", "2"):
        assert results[where][0][f"resumed {name}"].layouts != saved.layouts
    kinds = {"momentum_buffer"} if name == "frozen" else {"exp_avg", "exp_avg_sq", "step"}
    parameters = {path for path, _ in build(SAVED[name]).named_parameters()}
    trained = {path for path in parameters if not path.startswith("frozen.")}
    assert saved.optimizer["state"].keys() == trained
    for state in saved.optimizer["state"].values():
        assert state.keys() == kinds
        assert all(float(each.abs().max()) > 0 for each in state.values())
    moved = errors(saved.weights_after, saved.weights)
    assert all((moved[path] > 1e-6) == (path in trained) for path in parameters)
    uneven = {"dropout": "transformer.wte.weight", "frozen": "position"}[name]
    assert saved.layouts[uneven] == "(S(0))"


def test_a_checkpoint_of_a_simulation(results: Results) -> None:
    saved = results["simulation"][0]["saved dropout"]
    for result in results["2"]:
        resumed = result["from simulation"]
        assert bit_equal(resumed.weights, saved.weights)
        assert bit_equal(resumed.optimizer, saved.optimizer)
        found = errors(resumed.weights_after, saved.weights_after)
        assert max(found.values()) <= TOLERANCE


def test_dropout_goes_on_as_if_never_interrupted(tmp_path: Path) -> None:
    """Under the same plan to the last bit; without the position, other elements are dropped."""
    saved = checkpoints.save(2, "dropout", str(tmp_path))
    case = SAVED["dropout"]
    after = {}
    for position in (True, False):
        module, optimizer = checkpoints.start(case, 2, checkpoints.scrambled)
        checkpoints.load(module, optimizer, str(tmp_path / "dropout"))
        if not position:
            state = module.state_dict()
            state["autoplan_random_step"] = torch.tensor(0)
            module.load_state_dict(state)
        after[position] = checkpoints.go_on(case, module, optimizer).weights_after
    assert bit_equal(after[True], saved.weights_after)
    assert max(errors(after[False], saved.weights_after).values()) > 1e-6


def test_the_position_of_dropout_is_no_business_of_the_original(tmp_path: Path) -> None:
    model, (args, kwargs) = gpt2(dropout=0.1), language_batch(4, 8)
    module = autoplan.parallelize(model, args, kwargs, devices=2, seed=2**64 - 1)
    own = {"autoplan_random_seed", "autoplan_random_step"}
    assert set(module.state_dict()) == own | set(model.state_dict())
    assert list(module.full_state_dict()) == list(model.state_dict())
    module.load_full_state_dict(model.state_dict())
    # A checkpoint of the original has no position, and one of training is loaded for inference.
    checkpoint.save(gpt2().state_dict(), checkpoint_id=str(tmp_path))
    state = {path: value for path, value in module.state_dict().items() if path not in own}
    checkpoint.load(state, checkpoint_id=str(tmp_path))
    module.load_state_dict(state)
    frozen = autoplan.parallelize(model.eval(), args, kwargs, devices=2, training=False)
    assert list(frozen.state_dict()) == list(model.state_dict())
    frozen.load_state_dict(module.state_dict())
    assert bit_equal(frozen.full_state_dict(), module.full_state_dict())
    with pytest.raises(InputError, match=r"unknown 'other'"):
        frozen.load_state_dict({**state, "other": torch.ones(1)})


# -- whole state dicts --------------------------------------------------------------------------


class Varied(nn.Module):
    """Types, ties, a buffer that no state dict holds, a scalar, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.inner = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
        self.inner[1].weight = self.inner[0].weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("shift", torch.randn(8))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.ones(8), persistent=False)
        self.name = "original"

    def get_extra_state(self) -> Any:
        return {"name": self.name}

    def set_extra_state(self, state: Any) -> None:
        self.name = state["name"]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x).float()) * self.scale + self.shift * self.mask + self.count


def varied() -> tuple[Varied, autoplan.ParallelModule, Tensor]:
    model, x = Varied(), torch.randn(4, 8).bfloat16()
    return model, autoplan.parallelize(model, (x,), devices=4, preset="fsdp"), x


def test_whole_state_dicts_keep_types_ties_and_extra_states() -> None:
    model, module, _ = varied()
    state = module.full_state_dict()
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(bit_equal(state[path], expected[path]) for path in state)
    assert state["inner.0.weight"] is state["inner.1.weight"]
    fresh = Varied()
    fresh.name = "fresh"
    fresh.load_state_dict(state)
    assert fresh.name == "original"
    assert fresh.inner[0].weight is fresh.inner[1].weight
    state["first.weight"].zero_()  # a copy
    assert float(module.get_parameter("first.weight").detach().abs().max()) > 0
    other = Varied()
    other.name = "other"
    del (given := other.state_dict())["inner.0.weight"]  # as safetensors leaves one of tied out
    module.load_full_state_dict(given)
    state = module.full_state_dict()
    assert all(bit_equal(state[path], value) for path, value in other.state_dict().items())


def test_statistics_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    def normed() -> autoplan.ParallelModule:
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).double()
        return autoplan.parallelize(model, (x,), devices=4, preset="ddp")

    x = torch.randn(8, 6, dtype=torch.float64)
    module, other = normed(), normed()
    for _ in range(2):
        module(x)
    checkpoint.save({"model": module}, checkpoint_id=str(tmp_path))
    checkpoint.load({"model": other}, checkpoint_id=str(tmp_path))
    assert int(other.state_dict()["1.num_batches_tracked"]) == 2
    assert torch.equal(other(x), module(x))
    assert bit_equal(other.full_state_dict(), module.full_state_dict())


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "misspelt": (
        lambda state: {("fc1.wieght" if p == "fc1.weight" else p): v for p, v in state.items()},
        ["missing 'fc1.weight'", "unknown 'fc1.wieght' (did you mean 'fc1.weight'?)"],
    ),
    "misshapen": (
        lambda state: {**state, "fc2.weight": torch.ones(3, 4)},
        ["'fc2.weight' is (3, 4), expected (12, 32)"],
    ),
    "transposed": (
        lambda state: {path: value.t() for path, value in state.items()},
        ["'fc1.weight' is (12, 32), expected (32, 12)"],
    ),
    "another model": (
        lambda state: FreeParameters().state_dict(),
        ["does not fit Mlp", "missing 'fc1.weight'", "and 7 more"],
    ),
    "a wrapped one": (lambda state: {"model": state}, ["missing 'fc1.weight'", "unknown 'model'"]),
    "no tensor": (lambda state: {**state, "fc1.bias": [1.0]}, ["'fc1.bias' is a list"]),
    "no mapping": (lambda state: list(state.values()), ["it is a list, expected a dict"]),
    "without values": (
        lambda state: {path: value.to("meta") for path, value in state.items()},
        ["'fc1.weight' is on the meta device"],
    ),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("method", ["load_full_state_dict", "load_state_dict"])
def test_states_that_do_not_fit(method: str, name: str) -> None:
    change, expected = MISFITS[name]
    module = autoplan.parallelize(Mlp(), *vector_batch(), devices=4)
    before = module.full_state_dict()
    with pytest.raises(InputError) as caught:
        getattr(module, method)(change(Mlp().state_dict()))
    for part in expected:
        assert part in str(caught.value)
    assert bit_equal(module.full_state_dict(), before)


def test_loading_in_part_and_by_assignment() -> None:
    module = autoplan.parallelize(Mlp(), *vector_batch(), devices=4)
    one = torch.ones(12, dtype=torch.float64)
    found = module.load_state_dict({"fc2.bias": one, "other": one}, strict=False)
    assert found.missing_keys == ["fc1.weight", "fc1.bias", "fc2.weight"]
    assert found.unexpected_keys == ["other"]
    assert torch.equal(module.full_state_dict()["fc2.bias"], one)
    with pytest.raises(InputError, match=r"'fc2.bias' is \(3,\)"):
        module.load_state_dict({"fc2.bias": torch.ones(3)}, strict=False)
    with pytest.raises(ConfigError, match=r"assign=True"):
        module.load_state_dict(module.state_dict(), assign=True)


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    checkpoint.save(FreeParameters().state_dict(), checkpoint_id=str(tmp_path / "other"))
    checkpoint.save(Mlp(hidden=64).state_dict(), checkpoint_id=str(tmp_path / "wider"))
    module = autoplan.parallelize(Mlp(), *vector_batch(), devices=4)
    for name, said in (("other", "Missing key .*fc1"), ("wider", "ize mismatch")):
        with pytest.raises(CheckpointException, match=said):
            checkpoint.load(module.state_dict(), checkpoint_id=str(tmp_path / name))


# -- models without values ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "loader", ["from a checkpoint", "memory-mapped", "safetensors", "from one rank"]
)
def test_no_rank_ever_holds_a_whole_weight(results: Results, loader: str) -> None:
    for result in results["4"]:
        filled: Filled = result["filled"][loader]
        for said in filled.before:
            assert "Mlp came from the meta device" in said
            assert "'fc1.weight'" in said
            assert "load_full_state_dict" in said
        assert filled.equal
        assert filled.loss == result["filled"]["loss"]
        assert filled.largest_bytes <= result["filled"]["whole"] // 4
        assert result["filled"]["with values"] >= result["filled"]["whole"]


def test_weights_of_one_rank(results: Results) -> None:
    for result in results["4"]:
        assert result["one real model"]
        misspelt, nobody = result["misfits"]
        assert "unknown 'fc1.wieght' (did you mean 'fc1.weight'?)" in misspelt
        assert "None on every rank" in nobody


def test_whole_weights_where_a_rank_has_no_rows(results: Results) -> None:
    for result in results["4"]:
        assert len(result["given whole"]) == 6
        assert all(result["given whole"].values()), result["given whole"]


def on_meta(build_model: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build_model()


def test_a_model_without_values_is_refused_until_it_has_them() -> None:
    (x,), _ = sequence_batch()
    truth = FreeParameters()
    module = autoplan.parallelize(on_meta(FreeParameters), (x,), devices=4, preset="fsdp")
    optimizer = torch.optim.AdamW(module.parameters())
    checkpoints.get_state_dict(module, optimizer)  # which steps the optimizer once
    for use in (lambda: module(x), lambda: module.train_step((x,)), lambda: module.verify((x,))):
        with pytest.raises(InputError, match=r"'position', .* and \d more; load them with"):
            use()
    state = truth.state_dict()
    mask = state.pop("mask")
    module.load_state_dict(state, strict=False)
    with pytest.raises(InputError, match=r"without values yet for 'mask'"):
        module(x)
    module.get_buffer("mask").copy_(mask)
    assert bit_equal(module.full_state_dict(), truth.state_dict())


class Loading(Mapping[str, Tensor]):
    """Loads what is looked up."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.looked_up: Counter[str] = Counter()

    def __getitem__(self, path: str) -> Tensor:
        self.looked_up[path] += 1
        return self.state[path].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    def items(self) -> Any:
        raise AssertionError("all at once")

    values = items


def test_a_mapping_that_loads_one_tensor_at_a_time() -> None:
    module = autoplan.parallelize(on_meta(Mlp), *vector_batch(), devices=4)
    state = Mlp().state_dict()
    lazy = Loading(state)
    module.load_full_state_dict(lazy)
    assert bit_equal(module.full_state_dict(), dict(state))
    assert set(lazy.looked_up.values()) == {2}


def test_buffers_that_no_state_dict_holds() -> None:
    model, module, x = varied()
    without = autoplan.parallelize(on_meta(Varied), (x,), devices=4, preset="fsdp")
    state = model.state_dict()
    count = state.pop("count")  # of whole numbers, where no value stands for none
    without.load_state_dict({**state, "shift": model.shift}, strict=False)
    with pytest.raises(InputError, match=r"without values yet for 'count'"):
        without.full_state_dict()
    without.load_full_state_dict(state | {"count": count})
    with pytest.raises(InputError, match=r"in no state dict \('mask'\) load_full_state_dict"):
        without(x)
    without.load_full_state_dict({**model.state_dict(), "mask": model.mask})
    assert torch.equal(without(x), module(x))
    half = on_meta(Varied)
    half.mask = torch.ones(8)  # a buffer on a real device keeps its value
    without = autoplan.parallelize(half, (x,), devices=4, preset="fsdp")
    without.load_full_state_dict(model.state_dict())
    assert torch.equal(without(x), module(x))


def test_every_model_runs_from_the_meta_device() -> None:
    for name in ("gpt2", "llama", "mlp", "free"):
        case = Case(name)
        args, kwargs = batch_of(case)
        model = build(case)
        module = autoplan.parallelize(on_meta(lambda c=case: build(c)), devices=4)
        with pytest.raises(InputError, match=r"meta device"):
            module(*args, **kwargs)
        module.load_full_state_dict({**model.state_dict(), **dict(model.named_buffers())})
        assert module.verify(args, kwargs).ok
        assert bit_equal(module.full_state_dict(), model.state_dict())
