"""Fixtures of the tests of MLflow's runs and registry."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from registered_models import GOOD, evidence, made_adapter
from small_trainings import small_recipe

from kronos_pipeline.config import Recipe
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker

_numbers = count()


@pytest.fixture(scope="module")
def recipe(tiny_base: Path) -> Recipe:
    """Return the settings of trainings of a second."""
    return small_recipe(tiny_base)


@pytest.fixture(scope="module")
def tracker(own_mlflow_store: str, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Return a tracker of the store of the test file."""
    return Tracker(own_mlflow_store, tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="module")
def run_id(tracker: Tracker) -> str:
    """Return a finished run, from which versions can be registered."""
    with tracker.training_run("made", Recipe()) as run:
        pass
    return run.run_id


@pytest.fixture(scope="module")
def adapter(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an adapter of AAPL with random weights."""
    return made_adapter(tmp_path_factory.mktemp("adapter") / "AAPL", recipe)


@pytest.fixture
def registry(tracker: Tracker) -> Registry:
    """Return the registry of the store of the test file."""
    return Registry(tracker)


@pytest.fixture
def name() -> str:
    """Return a registered model that no other test uses."""
    return registered_name(f"T{next(_numbers)}")


@pytest.fixture
def register(registry: Registry, adapter: Path, name: str, run_id: str) -> Callable[[], int]:
    """Return a function that registers the adapter as the next version, and returns its number."""

    def register_adapter() -> int:
        metrics = {"holdout/adapter/mae": 0.5}
        return registry.register(adapter, name, run_id, evidence=EvidenceTable(evidence(GOOD)), metrics=metrics)

    return register_adapter
