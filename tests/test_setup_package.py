"""The wheel: type hints, license and command travel with the packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kronos_pipeline", "kronostraining")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Build the wheel from a copy of the checkout and return its files by name."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    script = "import setuptools.build_meta; setuptools.build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", script], cwd=copy, check=True, capture_output=True)
    (path,) = copy.glob("*.whl")
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata_file(wheel: Mapping[str, bytes], ending: str) -> bytes:
    """Return the only file of the wheel's metadata folder with this ending."""
    (content,) = (content for name, content in wheel.items() if ".dist-info/" in name and name.endswith(ending))
    return content


@pytest.mark.parametrize("package", PACKAGES)
def test_a_type_checker_finds_the_hints_of_the_installed_packages(package: str, wheel: Mapping[str, bytes]) -> None:
    assert f"{package}/py.typed" in wheel


def test_every_module_is_in_the_wheel(wheel: Mapping[str, bytes]) -> None:
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules <= set(wheel)


def test_the_wheel_carries_the_license_that_it_names(wheel: Mapping[str, bytes]) -> None:
    assert message_from_bytes(metadata_file(wheel, "/METADATA"))["License-Expression"] == "MIT"
    assert metadata_file(wheel, "/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
