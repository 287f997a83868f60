"""Fixtures that more than one layer's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local base model of a few thousand random parameters; what a test writes into it, later tests see."""
    from tiny import save_tiny_base

    return save_tiny_base(tmp_path_factory.mktemp("tiny_base"))
