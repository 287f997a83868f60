"""Fixtures of the tests on CUDA devices."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give each process its own simulated devices, so its trainings need not wait for another process."""
    if importlib.util.find_spec("simcuda") is None:
        yield
        return
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("locks"))
    yield
    tempfile.tempdir = before
