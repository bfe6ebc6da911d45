"""Hardware profiles: the shipped ones are whole and sourced, broken ones say what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import autoplan.cost_models.profile as profile_module
from autoplan.cost_models import load_profile, profile_names
from autoplan.errors import ConfigError

SHIPPED = Path(profile_module.__file__).parent / "profiles"


def numbers(value: object, at: str = "") -> Iterator[tuple[str, object]]:
    """Every {value, source} or bare number in a profile, with its place."""
    if isinstance(value, dict) and "value" not in value:
        for key, inner in value.items():
            yield from numbers(inner, f"{at}.{key}")
    elif isinstance(value, dict | int | float):
        yield at, value


def test_the_required_profiles_are_shipped() -> None:
    assert {"h100", "h200", "a100-80gb", "a100-40gb", "cpu"} <= set(profile_names())
    assert {path.stem for path in SHIPPED.glob("*.toml")} == set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_every_number_has_a_source(name: str) -> None:
    found = dict(numbers(msgspec.to_builtins(load_profile(name))))
    assert len(found) >= 14
    for place, number in found.items():
        assert isinstance(number, dict), f"{place} has no source"
        assert len(number["source"]) > 10, f"{place}: {number['source']!r}"


@pytest.mark.parametrize("name", profile_names())
def test_achievable_is_at_most_the_peak_and_links_are_ordered(name: str) -> None:
    profile = load_profile(name)
    node, network = profile.node_link, profile.network_link
    for level in (node, network):
        assert level.achievable_bytes_per_s <= level.bandwidth_bytes_per_s.value
    assert network.achievable_bytes_per_s <= node.achievable_bytes_per_s
    assert node.latency_s.value <= network.latency_s.value
    assert profile.attention_fraction.value <= profile.matmul_fraction.value <= 1
    assert profile.peak("float64") <= profile.peak("float32") <= profile.peak("bfloat16")


def test_no_two_profiles_share_a_name() -> None:
    names = [alias for name in profile_names() for alias in (name, *load_profile(name).aliases)]
    assert len(names) == len(set(names))


def test_names_aliases_and_paths_lead_to_the_same_profile() -> None:
    by_name = load_profile("a100-80gb")
    assert load_profile("a100") == load_profile("A100") == by_name
    assert (
        load_profile(str(SHIPPED / "a100-80gb.toml"))
        == load_profile(SHIPPED / "a100-80gb.toml")
        == by_name
    )


def test_a_dtype_without_a_peak_runs_at_the_rate_of_float32() -> None:
    v100 = load_profile("v100")
    assert v100.peak("bfloat16") == v100.peak("int64") == v100.peak("float32") == 15.7e12
    assert v100.peak("float16") == 125e12


def test_an_unknown_name_is_answered_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'h10O' .did you mean 'h100'.*a100-40gb.*cpu"):
        load_profile("h10O")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name = ", "name ", "is not TOML"),
        ('device_type = "cuda"', 'device_type = "gpu"', "device_type"),
        ("value = 80e9", 'value = "80GB"', re.escape("memory_bytes.value")),
        (
            "matmul_fraction = { value = 0",
            "matmul_fraction = { value = 1",
            re.escape("matmul_fraction.value"),
        ),
        ("bfloat16 = ", "bfloat61 = ", "bfloat61"),
        ("kernel_launch_s", "launch_s", "kernel_launch_s|launch_s"),
        ('source = "NVIDIA', 'note = "NVIDIA', "source|note"),
    ],
)
def test_a_broken_file_is_one_error_with_file_and_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (SHIPPED / "h100.toml").read_text()
    assert old in text
    broken = tmp_path / "mine.toml"
    broken.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as error:
        load_profile(str(broken))
    assert str(broken) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml.*No such file"):
        load_profile(str(tmp_path / "none.toml"))
