"""Fixtures of the tests of commands."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from market_files import daily_frame, write_frame

_numbers = count()


@pytest.fixture
def store(own_mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set MLFLOW_TRACKING_URI to the store of the test file, and return it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own_mlflow_store)
    return own_mlflow_store


@pytest.fixture
def ticker(tmp_path: Path) -> str:
    """Return a symbol that no other test uses, with a CSV of 90 daily bars in the folder `data`."""
    name = f"D{next(_numbers)}=X"
    write_frame(tmp_path / "data", name, daily_frame(90))
    return name
