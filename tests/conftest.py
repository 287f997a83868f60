"""Fixtures that more than one layer's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SETTINGS = ("KRONOS_DATA_DIR", "KRONOS_OUTPUT_DIR", "KRONOS_BASE_MODEL", "KRONOS_DEVICE", "MLFLOW_TRACKING_URI")
_DAGSTER = ("DAGSTER_HOME", "DAGSTER_MODULE_NAME")
for _variable in _SETTINGS + _DAGSTER:
    os.environ.pop(_variable, None)  # settings of the shell that runs the tests, such as those of env.sh


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local base model of a few thousand random parameters; what a test writes into it, later tests see."""
    from tiny import save_tiny_base

    return save_tiny_base(tmp_path_factory.mktemp("tiny_base"))
