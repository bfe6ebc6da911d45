"""Config files with overrides, config beside keywords, and the config that a plan resolved."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import autoplan
from autoplan.config import cluster_of, read_config, resolved_config, with_config
from autoplan.config.options import OPTIONS
from autoplan.cost_models import load_cluster
from autoplan.errors import ConfigError, PlanFileError
from autoplan.plan import Plan, decode_plan, encode_plan
from autoplan.planfiles.read import read_plan
from autoplan.planfiles.write import toml, write_plan
from autoplan.planning import capture_microbatch, plan_captured
from autoplan.request import Request, make_request
from tests.planner.models import MLP, Residual

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCH = (torch.randn(64, 16),)


def write(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# -- files ----------------------------------------------------------------------------------------


def test_toml_and_yaml_are_read_alike() -> None:
    found = read_config(EXAMPLES / "plan.toml")
    assert found == read_config(str(EXAMPLES / "plan.yaml"))
    assert found["parallel"] == {
        "data": {"mode": "fsdp"},
        "tensor": {"size": 2, "mode": "1d", "sequence_parallel": True},
    }
    assert (found["devices"], found["memory"]) == (8, "60GB")


def test_every_keyword_of_the_two_verbs_may_stand_in_a_config() -> None:
    own = {"model", "args", "kwargs", "plan", "config"}
    verbs = (autoplan.plan, autoplan.parallelize)
    keywords = {name for verb in verbs for name in inspect.signature(verb).parameters} - own
    assert set(OPTIONS) == keywords


def test_a_cluster_is_looked_for_beside_the_config(tmp_path: Path) -> None:
    write(tmp_path, 'profile = "h100"\n', "mine.toml")
    path = write(tmp_path, 'cluster = "mine.toml"\n')
    assert read_config(path) == {"cluster": str(tmp_path / "mine.toml")}
    assert read_config(path, ["cluster=h100"]) == {"cluster": "h100"}
    path = write(tmp_path, 'cluster = "elsewhere.toml"\n')
    assert read_config(path) == {"cluster": "elsewhere.toml"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("memory: 40e9\ntime_limit_s: 1e3\n", {"memory": 40e9, "time_limit_s": 1000.0}),
        ("preset:\nparallel:\n  tensor: null\n", {"parallel": {}}),
        ("parallel: {pipeline: {size: 2, schedule: 1f1b, stages: [null, {data: 2}]}}",
         {"parallel": {"pipeline": {"size": 2, "schedule": "1f1b",
          "stages": [None, {"data": 2}]}}}),
        ("microbatches: auto\nparallel: {pipeline: {size: auto}}",
         {"microbatches": "auto", "parallel": {"pipeline": {"size": "auto"}}}),
        ("parallel: {pipeline: auto}", {"parallel": {"pipeline": "auto"}}),
        ("hints: {'layers.*': {stage: -1}}", {"hints": {"layers.*": {"stage": -1}}}),
    ],
)  # fmt: skip
def test_yaml(tmp_path: Path, text: str, found: dict[str, Any]) -> None:
    assert read_config(write(tmp_path, text, "run.yml")) == found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "device = 8\n", r"run.toml' has no key 'device' \(did you mean 'devices'\?\)"),
        ("run.toml", "[parallel.tensor]\nsise = 8\n",
         r"run.toml': parallel.tensor has no key 'sise' \(did you mean 'size'\?\); the keys are"),
        ("run.yaml", "parallel: {tensr: 2}",
         r"run.yaml': parallel has no key 'tensr' \(did you mean 'tensor'\?\)"),
        ("run.yaml", "parallel: {pipeline: {size: 2, stages: [{dat: 2}]}}",
         r"parallel.pipeline.stages\[0\] has no key 'dat' \(did you mean 'data'\?\)"),
        ("run.yaml", "parallel: {mesh: {x: {siz: 2}}}",
         r"parallel.mesh.x has no key 'siz' \(did you mean 'size'\?\)"),
        ("run.toml", 'devices = "8"\n',
         r"run.toml': devices is '8', a text, and a whole number is expected; correct it"),
        ("run.toml", "devices = true\n", r"devices is True, true or false, and a whole number"),
        ("run.toml", "devices = 8.0\n", r"devices is 8.0, a number, and a whole number is exp"),
        ("run.toml", "devices = 2024-01-01\n", r"devices is .*, a date, and a whole number"),
        ("run.toml", "parallel = 8\n", r"parallel is 8, a whole number, and a table is expected"),
        ("run.toml", '[parallel]\ntensor = { size = "4" }\n',
         r"run.toml': parallel.tensor.size is '4', a text, and a whole number is expected"),
        ("run.toml", "[parallel]\ndata = [4]\n", r"parallel.data is \[4\], a list, and a size or"),
        ("run.toml", '[parallel.pipeline]\nsize = 2\nstage_map = [0, "1"]\n',
         r"parallel.pipeline.stage_map\[1\] is '1', a text, and a whole number"),
        ("run.toml", 'microbatches = "4"\n', r"is '4', a text, and a whole number or 'auto'"),
        ("run.toml", 'parallel.pipeline = "4"\n', r"a size, 'auto', or a table is expected"),
        ("run.toml", "training = 1\n", r"training is 1, a whole number, and true or false is exp"),
        ("run.yaml", "hints: [a]", r"hints is \['a'\], a list, and a table of paths"),
        ("run.yaml", "hints: {1: B}", r"hints has the key 1, which is no text; write it in quotes"),
        ("run.yaml", "- devices", r"run.yaml' holds \['devices'\], and a table of options is exp"),
        ("run.yaml", "devices: 1\ndevices: 2", r"not YAML: .*'devices' stands there twice"),
        ("run.yaml", "devices: [", r"run.yaml' is not YAML: .*line 1"),
        ("run.toml", "devices = \n", r"run.toml' is not TOML.*line 1"),
        ("run.json", "{}", r"run.json' is no .toml, .yaml or .yml file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_one_error(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read_config(write(tmp_path, text, name))
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml' cannot be read: No such file.*check the"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"path of a .toml or .yaml file, got 8"):
        read_config(8)  # type: ignore[arg-type]
    path = tmp_path / "latin.toml"
    path.write_bytes("preset = 'é'".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_config(path)


# -- overrides ------------------------------------------------------------------------------------

BASE = """
devices = 8
memory = "60GB"
[parallel]
data = 4
tensor = { size = 2, mode = "1d" }
[hints]
lm_head = "B"
"""


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["devices=16"], "devices", 16),
        (["devices = 16"], "devices", 16),
        (["memory=40GB"], "memory", "40GB"),
        (["memory='40GB'"], "memory", "40GB"),
        (["memory=40e9"], "memory", 40e9),
        (["training=false"], "training", False),
        (["training=False"], "training", False),
        (["recompute=[layers.*]"], "recompute", ["layers.*"]),
        (['recompute=["layers.0", "layers.1"]'], "recompute", ["layers.0", "layers.1"]),
        (["recompute=auto"], "recompute", "auto"),
        (["optimizer="], "optimizer", None),
        (["memory=null"], "memory", None),
        (["devices=4", "devices=2"], "devices", 2),
        (["parallel.tensor.size=4"], "parallel",
         {"data": 4, "tensor": {"size": 4, "mode": "1d"}}),
        (["parallel.tensor.mode=2.5d", "parallel.tensor.depth=2"], "parallel",
         {"data": 4, "tensor": {"size": 2, "mode": "2.5d", "depth": 2}}),
        (["parallel.data.mode=fsdp"], "parallel",
         {"data": {"size": 4, "mode": "fsdp"}, "tensor": {"size": 2, "mode": "1d"}}),
        (["parallel.tensor=null"], "parallel", {"data": 4}),
        (["parallel={mesh = {x = 2}}"], "parallel", {"mesh": {"x": 2}}),
        (["parallel.pipeline.schedule=1f1b"], "parallel",
         {"data": 4, "tensor": {"size": 2, "mode": "1d"}, "pipeline": {"schedule": "1f1b"}}),
        (["hints.lm_head=S(0)"], "hints", {"lm_head": "S(0)"}),
        (["hints.'layers.*.weight'=tensor=S(0)"], "hints",
         {"lm_head": "B", "layers.*.weight": "tensor=S(0)"}),
        (['hints."a=b"=B'], "hints", {"lm_head": "B", "a=b": "B"}),
        (["hints.lm_head=use: B/P"], "hints", {"lm_head": "use: B/P"}),
        (["hints.lm_head=*"], "hints", {"lm_head": "*"}),
        (["hints.lm_head=!S"], "hints", {"lm_head": "!S"}),
        (["preset=ring"], "preset", "ring"),
    ],
)  # fmt: skip
def test_overrides(tmp_path: Path, overrides: list[str], key: str, value: Any) -> None:
    path = write(tmp_path, BASE)
    before = read_config(path)
    found = read_config(path, overrides)
    expected = {**before, key: value}
    assert found == {name: each for name, each in expected.items() if each is not None}
    assert type(found.get(key)) is type(value)
    assert read_config(path) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("devices", r"override 'devices' is not of the form key=value, such as parallel.tensor.s"),
        ("=8", "not of the form key=value"),
        ("hints.layers.*.weight=B", r"a key with other signs .* stands in quotes"),
        ("device=8", r"override 'device=8' has no key 'device' \(did you mean 'devices'\?\)"),
        ("parallel.tensor.sise=8", r"parallel.tensor has no key 'sise' \(did you mean 'size'\?\)"),
        ("devices=eight", r"override 'devices=eight': devices is 'eight', a text, and a whole n"),
        ("memory.size=8", r"memory is \{'size': 8\}, a table, and a number of bytes"),
        (
            "hints.lm_head.tensor=B",
            r"hints.lm_head is 'B', which has no keys.*give all of hints.lm",
        ),
        ("recompute=[a", r"the value '\[a' cannot be read; put a text in quotes"),
    ],
)
def test_overrides_that_cannot_be_meant(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read_config(write(tmp_path, BASE), [override])
    assert str(error.value).endswith(".")


sizes = st.integers(1, 64)
# 0e0 is a number where the file is read, as JSON has it, and not where PyYAML writes it.
paths = st.text(min_size=1).filter(lambda key: not re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", key))
options = st.fixed_dictionaries(
    {},
    optional={
        "devices": sizes,
        "cluster": st.sampled_from(["h100", "a100"]),
        "memory": st.one_of(sizes, st.floats(1, 1e12), st.sampled_from(["40GB", "1.5 TiB"])),
        "training": st.booleans(),
        "recompute": st.one_of(st.booleans(), st.lists(st.sampled_from(["layers.*", "a b", "x"]))),
        "hints": st.dictionaries(paths, st.sampled_from(["S(0)", "use: B", "!S"])),
        "parallel": st.fixed_dictionaries(
            {},
            optional={
                "data": st.one_of(sizes, st.fixed_dictionaries({}, optional={"zero": sizes})),
                "tensor": st.fixed_dictionaries(
                    {}, optional={"size": sizes, "mode": st.sampled_from(["1d", "2d", "2.5d"])}
                ),
            },
        ),
    },
)


def leaves(table: dict[str, Any], under: str = "") -> list[tuple[str, Any]]:
    """Every dotted key that holds no table, with its value."""
    found = []
    for name, each in table.items():
        key = f"{under}{toml(name) if under else name}"
        found += leaves(each, f"{key}.") if isinstance(each, dict) and each else [(key, each)]
    return found


@given(options)
@settings(max_examples=100, deadline=None)
def test_what_is_written_as_toml_or_yaml_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("configs")
    text = "\n".join(f"{key} = {toml(each)}" for key, each in written.items())
    assert read_config(write(folder, text)) == written
    path = write(folder, yaml.safe_dump(written, allow_unicode=False), "run.yaml")
    assert read_config(path) == written


@given(before=options, after=options)
@settings(max_examples=100, deadline=None)
def test_overrides_one_by_one_are_the_file_that_says_so(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Clearing a file's options and giving those of another reads as the other."""
    folder = tmp_path_factory.mktemp("configs")
    path = write(folder, "\n".join(f"{key} = {toml(each)}" for key, each in before.items()))
    overrides = [f"{key}=null" for key in before]
    overrides += [f"{key}={toml(each)}" for key, each in leaves(after)]
    assert read_config(path, overrides) == after


# -- beside keywords ------------------------------------------------------------------------------


def test_what_is_said_explicitly_wins(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    defaults = {"devices": 1, "memory": None, "preset": None, "gap": 0.0}
    given = {"devices": 1, "memory": "1GB", "preset": None, "gap": 0.0}
    found = with_config(path, given, defaults)
    assert found == {**read_config(path), "memory": "1GB", "preset": None, "gap": 0.0}
    assert with_config(None, given, defaults) == given
    assert with_config({"devices": 2}, {"devices": 4}) == {"devices": 4}
    assert with_config([str(path), "devices=2"], given, defaults)["devices"] == 2
    assert with_config({"gap": 0, "preset": None}, {}) == {"gap": 0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": 2}, r"config has no key 'device' \(did you mean 'devices'\?\)"),
        ([], r"config is a file, options as a dict, or a list.*got \[\]"),
        (8, r"config is a file.*got 8"),
    ],
)
def test_a_config_that_is_none(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_config(config, {})


def test_both_verbs_take_a_config(tmp_path: Path) -> None:
    path = write(tmp_path, 'devices = 4\ncluster = "cpu"\nseed = 3\n[parallel]\ndata = 2\n')
    config = [str(path), "parallel.tensor.size=2", "parallel.tensor.mode=1d", "memory=3GB"]
    plan = autoplan.plan(Residual(2), BATCH, config=config)
    assert (str(plan.mesh), plan.memory_limit_bytes) == ("data 2 x tensor 2", 3 * 10**9)
    plan = autoplan.plan(Residual(2), BATCH, config=config, memory="1GB", outputs="whole")
    assert (plan.memory_limit_bytes, plan.whole_outputs) == (10**9, True)
    module = autoplan.parallelize(Residual(2), BATCH, config=config, devices=2, parallel={})
    assert str(module.plan.mesh) == "data 2"
    with pytest.raises(ConfigError, match=r"'device=4' has no key 'device'"):
        autoplan.plan(Residual(2), BATCH, config=[str(path), "device=4"])


def test_a_plan_is_planned_again_by_its_config(tmp_path: Path) -> None:
    parallel = {"tensor": {"mode": "1d"}}
    plan = autoplan.plan(Residual(2), BATCH, devices=4, cluster="cpu", parallel=parallel)
    sizes = dict(zip(plan.axes, plan.sizes, strict=True))
    assert plan.config["parallel"]["tensor"] == {"size": sizes["tensor"], "mode": "1d"}
    again = autoplan.plan(Residual(2), BATCH, config=plan.config)
    assert again.diff(plan) == "no difference"
    assert again.config == plan.config
    plan.save(tmp_path / "plan.toml")
    assert autoplan.load_plan(tmp_path / "plan.toml").config == plan.config
    loaded = autoplan.parallelize(Residual(2), BATCH, plan=tmp_path / "plan.toml").plan
    assert loaded.config == plan.config


# -- as a plan resolved it ------------------------------------------------------------------------


def planned(model: torch.nn.Module, **options: Any) -> tuple[Request, Plan]:
    """A plan with its config, as planning saves it."""
    request = make_request(**options)
    captured = capture_microbatch(model, BATCH, {}, request)
    found = plan_captured(captured, request, type(model).__name__)
    meshes = [
        next(c for c in request.meshes if c.mesh == stage.plan.mesh) for stage in found.stages
    ]
    config = resolved_config(request, found.plan, meshes)
    return request, msgspec.structs.replace(found.plan, config=config)


CASES: dict[str, dict[str, Any]] = {
    "free": {},
    "parts": {
        "parallel": {"data": {"size": 2, "mode": "fsdp"}, "tensor": {"size": 2, "mode": "1d"}}
    },
    "inferred": {"parallel": {"tensor": {"size": 2, "mode": "free"}}, "memory": "1GB"},
    "preset": {"preset": "ddp", "training": False, "optimizer": "none"},
    "hints": {"hints": {"layers.0.up.weight": {"storage": "S(0)"}, "layers.1": "!S ~ 0.5 ms"}},
    "pipeline": {"parallel": {"pipeline": 2}, "microbatches": 4, "recompute": True},
    "chunks": {"parallel": {"pipeline": {"size": 2, "chunks": 2}}, "microbatches": 4},
    "file": {"cluster": {"profile": "cpu", "name": "boxes", "devices": 4, "devices_per_node": 2}},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Request, Plan]:
    options = {"devices": 4, "cluster": "cpu", **CASES[request.param]}
    if isinstance(options["cluster"], dict):
        options["cluster"] = load_cluster(options["cluster"], 4, default="cpu")
    return planned(Residual(4), **options)


def again(config: dict[str, Any]) -> Request:
    """The request that a config makes."""
    options = {name: each for name, each in config.items() if name != "outputs"}
    cluster = load_cluster(options.pop("cluster"), options["devices"], default="cpu")
    whole = config["outputs"] == "whole"
    return make_request(cluster=cluster, whole_outputs=whole, **options)


def test_a_config_asks_for_the_same_again(case: tuple[Request, Plan]) -> None:
    request, plan = case
    config = plan.config
    assert json.loads(json.dumps(config)) == config
    options = with_config(config, {})
    found = again(options)
    (choice,) = found.meshes
    assert choice.mesh == (plan.stages[0].mesh if plan.stages else plan.mesh)
    assert (found.devices, found.cluster) == (request.devices, request.cluster)
    assert (found.memory_bytes, found.setting) == (request.memory_bytes, request.setting)
    assert found.hints.keys() == request.hints.keys()
    if plan.pipeline is not None:
        assert found.pipeline is not None
        assert found.pipeline.schedule == plan.pipeline.schedule
        assert found.pipeline.size == plan.pipeline.size
        assert found.num_stages == len(plan.stages)
    assert (found.recompute == "none") is (not plan.recomputed)
    captured = capture_microbatch(Residual(4), BATCH, {}, found)
    second = plan_captured(captured, found, plan.model).plan
    assert second.step_time_s == pytest.approx(plan.step_time_s, rel=1e-9)
    assert second.mesh == plan.mesh


def test_a_config_is_saved_with_the_plan(case: tuple[Request, Plan]) -> None:
    _, plan = case
    text = write_plan(plan)
    assert write_plan(plan) == text
    found = read_plan(text.encode(), "text")
    assert found.config == plan.config
    assert write_plan(found) == text
    assert "edited by hand" not in str(found.notes)
    assert tomllib.loads(text)["config"] == plan.config
    assert decode_plan(encode_plan(plan), "rank 0") == plan
    assert all(not stage.config for stage in found.stages)


def test_the_cluster_of_a_plan_is_found_again(case: tuple[Request, Plan]) -> None:
    request, plan = case
    assert cluster_of(plan, 4) == request.cluster
    assert cluster_of(msgspec.structs.replace(plan, cluster="cpu", config={}), 8).num_devices == 8
    assert cluster_of(plan, 2).num_devices == 2


def test_meshes_of_pipeline_ranks_are_stages() -> None:
    own = [{"data": 2}, {"mesh": {"x": 2}}]
    request = make_request(4, "cpu", {"pipeline": {"size": 2, "stages": own}}, microbatches=2)
    assert request.pipeline is not None
    assert request.pipeline.meshes is not None
    _, plan = planned(MLP(16, 32), devices=4, cluster="cpu", microbatches=2)
    meshes = [each[0] for each in request.pipeline.meshes]
    config = resolved_config(request, plan, meshes)
    assert config["parallel"]["pipeline"]["stages"] == [dict(e.as_parallel()) for e in meshes]
    assert set(config["parallel"]) == {"pipeline"}
    found = again(config)
    assert found.pipeline is not None
    assert found.pipeline.meshes is not None
    read = [(each[0].mesh, each[0].schemes) for each in found.pipeline.meshes]
    assert read == [(each.mesh, each.schemes) for each in meshes]


# -- in plan files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan() -> Plan:
    parallel = {"data": 2, "tensor": {"size": 2, "mode": "1d"}}
    return planned(Residual(2), devices=4, cluster="cpu", parallel=parallel)[1]


def test_files_without_a_config_are_read(plan: Plan) -> None:
    lines = write_plan(plan).split("\n")
    start = next(at for at, line in enumerate(lines) if line.startswith("[config]"))
    stop = next(at for at, line in enumerate(lines) if line.startswith("[end]"))
    found = read_plan("\n".join([*lines[:start], *lines[stop:]]).encode(), "text")
    assert found.config == {}
    assert found.choices == plan.choices
    assert "edited by hand" not in str(found.notes)
    assert "config" not in plan.diff(found)


def test_a_difference_shows_what_was_resolved_otherwise(plan: Plan) -> None:
    assert plan.diff(plan) == "no difference"
    config = json.loads(json.dumps(plan.config))
    config["parallel"]["tensor"]["size"] = 4
    config["time_limit_s"] = 5.0
    found = plan.diff(msgspec.structs.replace(plan, config=config)).split("\n")
    assert found == [
        "config parallel.tensor.size: 2 -> 4",
        "config time_limit_s: 60.0 -> 5.0",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "when = 2024-01-01",
            r"\[config\] when: .* is no text, number, list or table; take it out",
        ),
        ("hints.a = [[00:00:00]]", r"\[config\] hints a: .* is no text"),
        ("gap = nan", "nan is no number"),
    ],
)
def test_a_config_of_other_things_is_refused(plan: Plan, line: str, message: str) -> None:
    key = line.partition(" ")[0]
    start, head, config = write_plan(plan).partition("[config]\n")
    own = "\n".join(each for each in config.split("\n") if not each.startswith(f"{key} ="))
    with pytest.raises(PlanFileError, match=message):
        read_plan(f"{start}{head}{line}\n{own}".encode(), "text")
    text = write_plan(plan).replace("[config]", "[configs]", 1)
    with pytest.raises(PlanFileError):
        read_plan(text.encode(), "text")


def test_a_cluster_that_was_edited_leaves_no_proof() -> None:
    _, plan = planned(Residual(2), devices=4, cluster=load_cluster(CASES["file"]["cluster"], 4, ""))
    text = write_plan(plan)
    edited = text.replace("devices_per_node = 2\n", "devices_per_node = 4\n")
    assert edited != text
    assert "edited by hand" in str(read_plan(edited.encode(), "text").notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? [1, 2]\n: 3\n", "a key is a text"),
        ("hints: &a\n  x: *a\n", "refers to itself without end"),
    ],
)
def test_strange_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        autoplan.read_config(path)


def test_an_override_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("\ufeffdevices = 4\n", encoding="utf-8")
    assert autoplan.read_config(path) == {"devices": 4}
    with pytest.raises(ConfigError, match="is no text"):
        autoplan.read_config(path, [3])  # type: ignore[list-item]
