"""Dependencies: pins for every machine, and requirements with every import of the plain command."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kronos_pipeline.base_models import find_base_model

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "external" / "kronos" / "requirements.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]


@pytest.fixture(scope="module")
def pins() -> dict[str, list[Version]]:
    """Return the pinned versions of each package: one, or one for each kind of machine."""
    versions: dict[str, list[Version]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert requirement.url is None, line
        versions.setdefault(canonicalize_name(requirement.name), []).append(Version(specifier.version))
    return versions


def test_pins_are_plain_releases_that_every_registry_has(pins: dict[str, list[Version]]) -> None:
    assert {name for name, versions in pins.items() for version in versions if version.local} == set()


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_within_its_bounds(requirement: Requirement, pins: dict[str, list[Version]]) -> None:
    assert all(version in requirement.specifier for version in pins[canonicalize_name(requirement.name)])


def test_torch_has_an_upper_bound() -> None:
    (torch,) = (requirement for requirement in DECLARED if requirement.name == "torch")
    assert Version("2.14") not in torch.specifier


@pytest.mark.slow
def test_requirements_name_what_the_plain_command_imports_and_nothing_else() -> None:
    lines = REQUIREMENTS.read_text().splitlines()
    assert "-c ../../constraints.txt" in lines
    named = {canonicalize_name(re.split(r"\[", line)[0]) for line in lines if line and not line.startswith(("#", "-"))}

    graph = grimp.build_graph("kronos_pipeline", include_external_packages=True, cache_dir=None)
    for optional in ("chronos", "lightgbm", "quantile_trees"):  # they import the extras, and only if a user asks
        graph.remove_module(f"kronos_pipeline.evaluation.rivals.{optional}")
    # The entry `run_training` imports this module by its name, to be quick to answer Ctrl-C.
    reached = graph.find_upstream_modules("kronos_pipeline.cli.train")
    external = {name for name in reached if not name.startswith("kronos_pipeline")} - set(sys.stdlib_module_names)
    distributions = packages_distributions()
    homes = {name: {canonicalize_name(home) for home in distributions[name]} for name in external}
    assert {name for name in external if not homes[name] & named} == set(), "imported, and not named"
    assert named - set().union(*homes.values()) == set(), "named, and not imported"


def test_the_readme_of_the_model_names_the_pinned_revisions() -> None:
    text = (REQUIREMENTS.parent / "README.md").read_text()
    for name in ("mini", "small", "base"):
        source = find_base_model(f"NeoQuasar/Kronos-{name}")
        for weights in (source.predictor, source.tokenizer):
            assert re.search(rf"`{weights.name}`[^|]*\| `{weights.revision}`", text), weights
        assert re.search(rf"`{source.predictor.name}`.*`{source.tokenizer.name}` \| {source.context} bars", text), name
