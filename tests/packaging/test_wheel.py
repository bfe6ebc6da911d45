"""What the wheel holds: the files of autoplan/ with its links followed, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SUFFIXES = (".py", ".toml", ".js", ".css", ".html", ".md", ".LICENSE")

pytest.importorskip("setuptools.build_meta", reason="the build backend is not installed")


def package_files(root: Path) -> set[str]:
    """Code and data below `root`/autoplan, links followed, as paths relative to `root`."""
    return {
        (Path(folder) / name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root / "autoplan", followlinks=True)
        for name in names
        if name.endswith(_SUFFIXES) or name == "py.typed"
    }


def build_wheel(source: Path, into: Path) -> set[str]:
    """The names inside the wheel that pip builds from `source`, a folder or a source archive."""
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--wheel-dir", str(into)]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run(command + offline, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = into.glob("autoplan-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def build_sdist(source: Path, into: Path) -> Path:
    """The source archive of `source`, made by its build backend."""
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(into)!r})"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (archive,) = into.glob("autoplan-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, its links kept: no earlier build/ or egg-info can leak into a wheel.

    It adds a profile and a test of its own, so that the laws below never hold for lack of files.
    """
    copy = tmp_path_factory.mktemp("checkout") / "autoplan"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=unwanted)
    (copy / "cost_models" / "profiles").mkdir(exist_ok=True)
    (copy / "cost_models" / "profiles" / "of_this_test.toml").touch()
    (copy / "tests" / "test_of_this_test.py").touch()
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def test_links_lead_to_the_top_level() -> None:
    for name in ("strategies", "cost_models"):
        assert (ROOT / "autoplan" / name).readlink() == Path("..", name)


def test_every_folder_of_code_is_a_package() -> None:
    files = package_files(ROOT)
    folders = {Path(name).parent.as_posix() for name in files if name.endswith(".py")}
    missing = sorted(folder for folder in folders if f"{folder}/__init__.py" not in files)
    assert not missing, f"without an __init__.py these stay out of the wheel: {missing}"


def test_wheel_holds_the_whole_package(source: Path, wheel: set[str]) -> None:
    assert {name for name in wheel if name.startswith("autoplan/")} == package_files(source)
    assert "autoplan/cost_models/profiles/of_this_test.toml" in wheel


def test_wheel_claims_no_other_name(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"autoplan"}


def test_source_archive_builds_the_same_wheel(
    source: Path, wheel: set[str], tmp_path: Path
) -> None:
    archive = build_sdist(source, tmp_path)
    with tarfile.open(archive) as contents:
        assert not [member.name for member in contents if member.issym() or member.islnk()]
    assert build_wheel(archive, tmp_path) == wheel
