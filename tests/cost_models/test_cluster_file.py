"""Clusters as files, and as plain data."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

import autoplan
from autoplan.cost_models import Cluster, describe_cluster, load_cluster, load_profile
from autoplan.errors import ConfigError
from autoplan.mesh import Mesh
from autoplan.parallel.parts import divisors
from tests.cost_models.test_cluster_levels import clusters
from tests.planner.models import MLP

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster.toml"
H100 = load_profile("h100")


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_example_is_read() -> None:
    cluster = load_cluster(EXAMPLE, 64, default="cpu")
    assert cluster == load_cluster(str(EXAMPLE), 64, default="cpu")
    assert [(each.name, each.size) for each in cluster.levels] == [
        ("node", 8), ("pod", 32), ("spine", None)
    ]  # fmt: skip
    assert cluster.profile.name == "h100 in two pods"
    assert cluster.profile.memory_bytes == H100.memory_bytes
    mesh = Mesh.of(data=2, sequence=4, tensor=8)
    rates = [cluster.link(mesh, axis).bandwidth_bytes_per_s for axis in mesh.axes]
    node = H100.node_link.achievable_bytes_per_s
    assert rates == pytest.approx([7.1e9 * 0.9, 25e9 * 0.94, node])


@pytest.mark.parametrize("devices", [8, 16, 24])
def test_a_file_of_two_levels_is_the_profile(tmp_path: Path, devices: int) -> None:
    path = write(
        tmp_path,
        'profile = "h100"\n[[levels]]\nname = "node"\ndevices = 8\n[[levels]]\nname = "network"\n',
    )
    found, plain = (load_cluster(each, devices, default="cpu") for each in (path, "h100"))
    for mesh in (Mesh.of(data=devices // 4, tensor=4), Mesh.of(data=devices)):
        for axis in mesh.axes:
            assert found.link(mesh, axis) == plain.link(mesh, axis)


def test_figures_of_the_first_two_levels_become_the_profiles(tmp_path: Path) -> None:
    """So that questions about the profile's links are about these."""
    path = write(
        tmp_path,
        'profile = "h100"\n[[levels]]\nname = "node"\ndevices = 4\n[[levels]]\nname = "rail"\n'
        'bandwidth_bytes_per_s = { value = 25e9, source = "one port" }\n',
    )
    cluster = load_cluster(path, 16, default="cpu")
    assert cluster.node_size == 4
    assert cluster.profile.name == "mine"
    assert cluster.profile.network_link.bandwidth_bytes_per_s.value == 25e9
    assert cluster.profile.network_link.latency_s == H100.network_link.latency_s
    assert all(level.link is None for level in cluster.levels)


def test_a_profile_may_lie_beside_the_file(tmp_path: Path) -> None:
    shipped = Path(autoplan.cost_models.profile.__file__).parent / "profiles" / "a100-80gb.toml"
    (tmp_path / "own.toml").write_text(shipped.read_text())
    path = write(tmp_path, 'profile = "own.toml"\ndevices_per_node = 2\n')
    assert load_cluster(path, 8, default="cpu") == Cluster(load_profile("a100"), 8, 2)


def test_a_profiles_own_file_is_still_one(tmp_path: Path) -> None:
    shipped = Path(autoplan.cost_models.profile.__file__).parent / "profiles" / "cpu.toml"
    assert load_cluster(shipped, 4, default="h100") == Cluster(load_profile("cpu"), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('profile = "h100"\ndevices = 32\n', r"mine.toml.*devices = 32, the plan is for 64; make"),
        ('[[levels]]\nname = "node"\n', r"mine.toml.*does not fit.*profile"),
        ('profile = "h10O"\n', r"no hardware profile is called 'h10O' .did you mean 'h100'"),
        ('profile = "h100"\nlevles = []\n', r"mine.toml.*levles.*did you mean 'levels'"),
        ('profile = "h100"\n[[levels]]\nname = "node"\ndevice = 8\n',
         r"mine.toml.*device.*did you mean 'devices'"),
        ('profile = "h100"\n[[levels]]\nname = "node"\ndevices = "8"\n', r"mine.toml.*levels"),
        ('profile = "h100"\n[[levels]]\nname = "node"\ndevices = 8\nlatency_s = { value = 1e-6 }\n',
         r"mine.toml.*source"),
        ('profile = "h100"\n[[levels]]\nname = "a"\ndevices = 8\n'
         '[[levels]]\nname = "b"\ndevices = 16\n'
         '[[levels]]\nname = "c"\nlatency_s = { value = 1e-6, source = "made up" }\n',
         r"mine.toml.*'c' says no bandwidth_bytes_per_s and no bandwidth_fraction"),
        ('profile = "h100"\n[[levels]]\nname = "a"\ndevices = 8\n', r"mine.toml.*nothing joins"),
        ('profile = "h100"\n[[levels]]\nname = "a"\nexceptions = [{ of = "a", groups = [0], '
         'latency_s = { value = 1e-9, source = "made up" } }]\n',
         r"mine.toml.*'a': the exception of a 0 is faster than the level's own link; give the lev"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_cluster(write(tmp_path, text), 64, default="cpu")
    assert str(error.value).endswith(".")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml.*No such file"):
        load_cluster(str(tmp_path / "none.toml"), 8, default="cpu")


@given(clusters())
@settings(max_examples=60, deadline=None)
def test_a_cluster_comes_back_from_plain_data(cluster: Cluster) -> None:
    plain = describe_cluster(cluster)
    assert json.loads(json.dumps(plain)) == plain
    again = load_cluster(plain, cluster.num_devices, default="cpu")
    for inner in divisors(cluster.num_devices):
        mesh = Mesh.of(a=cluster.num_devices // inner, b=inner)
        assert all(again.link(mesh, axis) == cluster.link(mesh, axis) for axis in mesh.axes)
    plain = describe_cluster(again)
    assert load_cluster(plain, cluster.num_devices, default="cpu") == again


def test_a_shipped_profile_is_its_name() -> None:
    assert describe_cluster(Cluster(H100, 8)) == "h100"
    plain: Any = describe_cluster(Cluster(H100, 8, 4))
    assert plain == {"profile": "h100", "devices": 8, "devices_per_node": 4}
    assert load_cluster(plain, 8, default="cpu") == Cluster(H100, 8, 4)


def test_the_example_comes_back_from_plain_data() -> None:
    cluster = load_cluster(EXAMPLE, 64, default="cpu")
    assert load_cluster(describe_cluster(cluster), 64, default="cpu") == cluster
    assert tomllib.loads(EXAMPLE.read_text())["devices"] == 64


def test_questions_about_links_are_about_the_files(tmp_path: Path) -> None:
    """A slower network than the exceptions of it is one that these make no slower."""
    path = write(
        tmp_path,
        'profile = "cpu"\n[[levels]]\nname = "box"\ndevices = 2\n[[levels]]\nname = "network"\n'
        'exceptions = [{ of = "box", groups = [1], latency_s = { value = 1e-2, source = "a" } }]\n',
    )
    options: dict[str, Any] = {"devices": 4, "parallel": {"data": 4}, "hints": {"up": "S(0)"}}
    batch = (torch.randn(16, 8),)
    plan = autoplan.plan(MLP(), batch, cluster=path, **options)
    assert plan.step_time_s > autoplan.plan(MLP(), batch, cluster="cpu", **options).step_time_s
    assert "network bandwidth" in str(plan.sensitivity())


def test_a_plan_names_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'profile = "cpu"\nname = "two boxes"\n[[levels]]\nname = "box"\ndevices = 2\n'
        '[[levels]]\nname = "network"\n',
    )
    plan = autoplan.plan(MLP(), (torch.randn(8, 8),), devices=4, cluster=path)
    assert plan.cluster == "two boxes"
