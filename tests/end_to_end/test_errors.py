"""What users get wrong: every message names what they wrote, what was expected, and the fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import autoplan
from autoplan import (
    AutoplanError,
    CaptureError,
    ConfigError,
    HintError,
    InfeasibleError,
    InputError,
    LayoutError,
    PlanFileError,
)
from tests.models import Mlp, gpt2, ideal_cluster, language_batch, vector_batch

ONE_AXIS = {"mesh": {"a": 4}}

REFUSED: dict[str, tuple[dict[str, Any], type[AutoplanError], list[str]]] = {
    # hints
    "misspelt path": (
        {"hints": {"fc1.weigth": "S(0)"}},
        HintError,
        ["fc1.weigth", "did you mean 'fc1.weight'"],
    ),
    "unknown path": ({"hints": {"zzzzzz": "S(0)"}}, HintError, ["zzzzzz", "report"]),
    "key no text": ({"hints": {3: "S(0)"}}, HintError, ["path", "3"]),
    "nonsense": ({"hints": {"fc1.weight": "Q(1)"}}, HintError, ["fc1.weight", "Q(1)", "B/P"]),
    "unclosed": ({"hints": {"fc1.weight": "S(0"}}, HintError, ["S(0", "entries are S(dim)"]),
    "empty": ({"hints": {"fc1.weight": ""}}, HintError, ["fc1.weight", "cannot read layout ''"]),
    "no such dimension": (
        {"hints": {"fc1.weight": "S(2)"}},
        HintError,
        ["fc1.weight", "S(2)", "2 dimensions", "S(1)"],
    ),
    "too many entries": (
        {"hints": {"fc1.weight": "(S(0), B)"}, "parallel": ONE_AXIS},
        HintError,
        ["(S(0), B)", "2 entries", "mesh a 4 has 1", "dict by axis"],
    ),
    "unknown axis": (
        {"hints": {"fc1.weight": {"tensr": "S(0)"}}, "parallel": ONE_AXIS},
        HintError,
        ["tensr", "['a']"],
    ),
    "stored as addends": ({"hints": {"fc1.weight": "P"}}, HintError, ["fc1.weight", "'P'"]),
    # meshes
    "impossible product": (
        {"parallel": {"data": 3, "tensor": {"size": 2, "mode": "1d"}}},
        ConfigError,
        ["data 3 x tensor 2 = 6", "devices=4", "devices=6"],
    ),
    "no divisor": (
        {"parallel": {"tensor": {"size": 3, "mode": "1d"}}},
        ConfigError,
        ["tensor size 3", "4 devices", "6 devices"],
    ),
    "no mode": ({"parallel": {"tensor": 4}}, ConfigError, ["tensor=4", "no mode", "mode='1d'"]),
    "unknown mode": (
        {"parallel": {"tensor": {"size": 4, "mode": "9d"}}},
        ConfigError,
        ["'9d'", "'1d'"],
    ),
    "unknown key": ({"parallel": {"dat": 4}}, ConfigError, ["'dat'", "did you mean 'data'"]),
    "unknown key below": (
        {"parallel": {"tensor": {"siz": 4}}},
        ConfigError,
        ["parallel['tensor']", "'siz'", "did you mean 'size'"],
    ),
    "size no number": ({"parallel": {"data": "4"}}, ConfigError, ["data", "'4'"]),
    "mesh size 0": ({"parallel": {"mesh": {"a": 0}}}, ConfigError, ["'a'", "positive", "0"]),
    "mesh and data": (
        {"parallel": {"mesh": {"a": 4}, "data": 1}},
        ConfigError,
        ["names every axis", "no other key"],
    ),
    "parallel no dict": ({"parallel": 4}, ConfigError, ["parallel is a dict", "got 4"]),
    "unknown preset": ({"preset": "megatorn"}, ConfigError, ["megatorn", "mean 'megatron'", "ddp"]),
    "no devices": ({"devices": 0}, ConfigError, ["devices", "0"]),
    # the rest
    "unknown cluster": ({"cluster": "h10"}, ConfigError, ["h10", "did you mean 'h100'"]),
    "cluster of another size": (
        {"cluster": ideal_cluster(2)},
        ConfigError,
        ["cluster has 2 devices", "plan is for 4"],
    ),
    "unknown optimizer": ({"optimizer": "adamm"}, ConfigError, ["adamm", "did you mean 'adam"]),
    "memory in words": ({"memory": "lots"}, ConfigError, ["'lots'", "16GB"]),
    "negative memory": ({"memory": -3}, ConfigError, ["-3"]),
    "no microbatch": ({"microbatches": 0}, ConfigError, ["microbatches", "0"]),
    "odd microbatches": (
        {"microbatches": 3},
        InputError,
        ["batch of 8", "3 equal microbatches", "multiple of 3"],
    ),
    "unknown outputs": ({"outputs": "all"}, ConfigError, ["'all'", "'loss'", "'whole'"]),
}


def says(error: pytest.ExceptionInfo[AutoplanError], words: list[str]) -> None:
    text = str(error.value)
    assert not [word for word in words if word not in text], text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize("case", REFUSED)
def test_plan_refuses(case: str) -> None:
    options, kind, words = REFUSED[case]
    with pytest.raises(kind) as error:
        autoplan.plan(Mlp(), *vector_batch(), **{"devices": 4, **options})
    says(error, words)


@pytest.mark.parametrize(
    "options",
    [
        {"hints": {"fc1.weight": None}},
        {"hints": {"fc1.weight": 5}},
        {"hints": ["fc1.weight"]},
        {"args": vector_batch()[0][0]},
        {"model": Mlp},
    ],
    ids=["layout None", "layout a number", "hints a list", "args a tensor", "model a class"],
)
@pytest.mark.parametrize("verb", [autoplan.plan, autoplan.parallelize])
def test_wrong_types_are_named(verb: Callable[..., Any], options: dict[str, Any]) -> None:
    given = {"model": Mlp(), "args": vector_batch()[0], "devices": 4, **options}
    with pytest.raises(AutoplanError):
        verb(**given)


def test_args_that_are_no_tuple_are_named_with_the_fix() -> None:
    (x, _), _ = vector_batch()
    for verb in (autoplan.plan, autoplan.parallelize):
        with pytest.raises(AutoplanError, match=r"args must be a tuple.*Tensor.*args=\("):
            verb(Mlp(), x, devices=4)


def test_a_misspelt_pattern_suggests_a_pattern() -> None:
    args, kwargs = language_batch()
    model = gpt2(n_layer=2)
    with pytest.raises(
        HintError, match=r"did you mean 'transformer\.h\.\*\.mlp\.c_fc\.weight'\? 2 match"
    ):
        autoplan.plan(
            model, args, kwargs, devices=2, hints={"transformer.h.*.mlp.fc.weight": "S(1)"}
        )


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_that_leaves_most_ranks_empty(rows: int) -> None:
    with pytest.raises(HintError) as error:
        autoplan.plan(Mlp(), *vector_batch(rows), devices=8, preset="ddp")
    says(error, ["'x'", f"{rows} rows", "devices 8", "multiple of 8"])
    plan = autoplan.plan(Mlp(), *vector_batch(rows), devices=8)  # other layouts are left
    assert plan.baseline.step_time_s is None
    assert "not possible" in plan.baseline.note
    assert "not possible" in plan.report()


@pytest.mark.parametrize("rows", [2, 6])
def test_a_batch_that_leaves_a_rank_empty_is_right(rows: int) -> None:
    """6 rows cut as torch.chunk cuts are 2, 2, 2 and none."""
    args, kwargs = vector_batch(rows)
    module = autoplan.parallelize(Mlp(), args, kwargs, devices=4, preset="ddp")
    check = module.verify(args, kwargs)
    assert check.ok, check


def test_too_little_memory_names_the_least_that_would_do() -> None:
    model, example = Mlp(256, 1024), vector_batch(8, 256)
    with pytest.raises(InfeasibleError) as error:
        autoplan.plan(model, *example, devices=4, memory="3MB")
    says(error, ["3", "MB", "too small", "least", "Give more memory or devices"])
    least_mb = float(str(error.value).split("found for is ")[1].split(" MB")[0])
    assert least_mb > 3.0
    plan = autoplan.plan(model, *example, devices=4, memory=f"{least_mb + 0.1}MB")
    assert plan.peak_memory_bytes <= (least_mb + 0.1) * 1e6
    roomy = autoplan.plan(model, *example, devices=4)
    assert roomy.step_time_s <= plan.step_time_s * (1 + 1e-9)
    small, example = Mlp(), vector_batch()
    with pytest.raises(InfeasibleError) as error:
        autoplan.plan(small, *example, devices=4, memory="1kB")
    assert "0.0 MB" not in str(error.value)


def test_hints_that_no_strategy_joins() -> None:
    with pytest.raises((HintError, InfeasibleError), match="fc1"):
        autoplan.plan(
            *(Mlp(), *vector_batch()),
            devices=4,
            parallel=ONE_AXIS,
            hints={"fc1.weight": "S(0)", "fc1.*": "B"},
        )


def test_calls_that_do_not_fit() -> None:
    (x, y), _ = vector_batch()
    module = autoplan.parallelize(Mlp(), (x, y), devices=4)
    with pytest.raises(AutoplanError):
        module(x[:, :5], y)
    with pytest.raises(InputError, match="real ranks"):
        autoplan.parallelize(Mlp(), (x, y), devices=4, local_inputs=True)
    with pytest.raises(CaptureError, match="'x'"):
        autoplan.plan(Mlp(), (), devices=4)
    with pytest.raises(ConfigError, match="how many devices"):
        autoplan.parallelize(Mlp(), (x, y))


def test_before_the_plan() -> None:
    module = autoplan.parallelize(Mlp(), devices=4)
    for look in (lambda: module.plan, lambda: module.code, module.report, module.full_state_dict):
        with pytest.raises(InputError, match=r"no plan yet: call it once, or give example args"):
            look()


def test_a_submodule_with_the_name_of_an_attribute() -> None:
    class Planner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plan = torch.nn.Linear(12, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.plan(x)

    with pytest.raises(ConfigError, match=r"'plan'.*rename"):
        autoplan.parallelize(Planner(), (torch.randn(4, 12),), devices=2)


# -- plans and their files ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan() -> autoplan.Plan:
    return autoplan.plan(Mlp(), *vector_batch(), devices=4)


def test_a_saved_plan_is_read_back(plan: autoplan.Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.toml")
    proof = msgspec.structs.replace(plan.certificate, seconds=0.0)  # no part of a plan file
    held = msgspec.structs.replace(plan, certificate=proof)
    assert autoplan.load_plan(tmp_path / "plan.toml") == held


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "weights, not a plan",
        lambda text: '{"a": 1}',
        lambda text: "[]",
        lambda text: text.replace("[parameters]", "[weights]"),
        lambda text: text.replace("devices = 4", "devices = 0"),
    ],
)
def test_a_damaged_or_foreign_file(
    plan: autoplan.Plan, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    path = tmp_path / "plan.toml"
    plan.save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(PlanFileError) as error:
        autoplan.load_plan(path)
    says(error, [str(path), "not a plan file", "damaged"])


def test_files_of_another_time_or_place(plan: autoplan.Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    plan.save(path)
    path.write_text(path.read_text().replace("autoplan-plan/", "autoplan-plan/9"))
    with pytest.raises(PlanFileError, match=r"format 'autoplan-plan/9.*plan again"):
        autoplan.load_plan(path)
    with pytest.raises(PlanFileError, match=r"nowhere\.json.*No such file"):
        autoplan.load_plan(tmp_path / "nowhere.json")
    path.write_bytes(b"\xff\xfe\x00PK")
    with pytest.raises(PlanFileError, match="not a plan file"):
        autoplan.load_plan(path)


def test_a_plan_that_does_not_fit(plan: autoplan.Plan, tmp_path: Path) -> None:
    example = vector_batch()
    with pytest.raises(ConfigError, match=r"plan is for 4 devices, got devices=2"):
        autoplan.parallelize(Mlp(), *example, devices=2, plan=plan)
    with pytest.raises(PlanFileError, match=r"does not mention .*plan again"):
        autoplan.parallelize(gpt2(), *language_batch(), plan=plan)
    path = tmp_path / "plan.toml"
    plan.save(path)
    line = '"fc1.weight" = "(S(7)) -> (B)"'
    path.write_text(re.sub(r'^"fc1\.weight" = ".*"$', line, path.read_text(), flags=re.M))
    with pytest.raises(PlanFileError) as error:
        autoplan.parallelize(Mlp(), *example, plan=autoplan.load_plan(path))
    says(error, ["(S(7)) -> (B)", "fc1.weight", "this model allows"])
    plan.save(path)
    assert autoplan.parallelize(Mlp(), *example, plan=path).verify(*example).ok
    with pytest.raises(AutoplanError, match="plan"):
        autoplan.parallelize(Mlp(), *example, plan=4)  # type: ignore[arg-type]


def test_layouts_of_unknown_paths(plan: autoplan.Plan) -> None:
    with pytest.raises(LayoutError, match=r"'fc1\.weigt'.*did you mean 'fc1\.weight'"):
        plan.layout("fc1.weigt")


def test_autocast_around_a_planned_module() -> None:
    args, kwargs = vector_batch()
    module = autoplan.parallelize(Mlp(), args, kwargs, devices=2)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError) as error:
        module(*args, **kwargs)
    says(error, ["autocast", "inside the model", "bfloat16"])
