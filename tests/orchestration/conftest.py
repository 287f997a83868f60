"""Fixtures of the Dagster tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from code_locations import Location


@pytest.fixture(scope="session", autouse=True)
def _one_mlflow_store(empty_mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """Use one MLflow store for all tests of this folder: creating a store takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        store = shutil.copy(empty_mlflow_store, tmp_path_factory.mktemp("mlflow") / "mlflow.db")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        yield


@pytest.fixture
def location(tmp_path: Path, tiny_base: Path) -> Location:
    """Return a code location without tickers."""
    return Location(tmp_path, tiny_base)


@pytest.fixture(scope="module")
def new_location(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[[], Location]:
    """Return a function that makes code locations for the tests of a module."""
    return lambda: Location(tmp_path_factory.mktemp("location"), tiny_base)
