"""The version of a layer's code changes with its behaviour, and each kind of artifact follows its own layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kronos_pipeline import code_version as versions
from kronos_pipeline.code_version import BARS, PREDICTIONS, WEIGHTS, code_version, layers_version

KINDS = {"bars": BARS, "weights": WEIGHTS, "predictions": PREDICTIONS, "manifest": ()}
SOURCE = '''"""What it does."""

LIMIT = 3
"""Of what."""


def double(value: int) -> int:
    """Twice the value."""
    return 2 * value  # as it says
'''
EDITS = {
    "a comment": ("as it says", "as it said"),
    "a docstring": ("Twice the value", "The value, twice"),
    "the description of a constant": ("Of what", "Of anything"),
    "the layout": ("(value: int)", "(\n    value: int,\n)"),
    "a statement": ("2 * value", "3 * value"),
    "a constant": ("LIMIT = 3", "LIMIT = 4"),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a package with the same file in each layer."""
    folder = tmp_path_factory.mktemp("package")
    for layer in ("data", "model", "training", "evaluation", "orchestration"):
        (folder / layer).mkdir()
        (folder / layer / "one.py").write_text(SOURCE)
    return folder


def changed_by(package: Path, edited: Path, layer: str, edit: tuple[str, str]) -> set[str]:
    """Return the kinds of artifacts with a new version after an edit of a layer's file."""
    shutil.copytree(package, edited)
    file = edited / layer / "one.py"
    assert edit[0] in file.read_text()
    file.write_text(file.read_text().replace(*edit))
    before, after = (
        {kind: layers_version(*layers, package=root) for kind, layers in KINDS.items()} for root in (package, edited)
    )
    return {kind for kind in KINDS if before[kind] != after[kind]}


@pytest.mark.parametrize("edit", ["a comment", "a docstring", "the description of a constant", "the layout"])
def test_how_code_is_written_down_changes_no_version(package: Path, tmp_path: Path, edit: str) -> None:
    for layer in ("data", "model", "training", "evaluation"):
        assert changed_by(package, tmp_path / layer, layer, EDITS[edit]) == set()


@pytest.mark.parametrize("edit", ["a statement", "a constant"])
@pytest.mark.parametrize(
    ("layer", "kinds"),
    [
        ("data", {"bars", "weights", "predictions", "manifest"}),
        ("model", {"weights", "predictions", "manifest"}),
        ("training", {"weights", "predictions", "manifest"}),
        ("evaluation", {"predictions", "manifest"}),
        ("orchestration", {"manifest"}),
    ],
)
def test_what_code_does_changes_the_versions_of_what_it_shapes(
    package: Path, tmp_path: Path, edit: str, layer: str, kinds: set[str]
) -> None:
    assert changed_by(package, tmp_path / "edited", layer, EDITS[edit]) == kinds


def test_the_layers_are_folders_of_the_package() -> None:
    root = Path(versions.__file__).parent
    assert all((root / layer).is_dir() for layer in PREDICTIONS)
    version, _, digest = code_version().partition("+")
    assert version.count(".") == 2
    assert digest == layers_version()
