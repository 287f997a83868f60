"""A pytest plugin that leaves out two slow parts of a training that few tests are about: drawing, and syncing to disk.

A training draws six pictures per ticker, half a second each, and waits for the disk at each commit and each file.
Tests marked `pictures` draw, and tests marked `synced` wait; in all others a picture is one pixel. A process that
a test starts does both, as a user's process does.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from typing import Any

import pytest
import sqlalchemy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from one_pixel import draw_one_pixel

_draw: Any = FigureCanvasAgg.draw  # matplotlib has no types here
_sync = os.fsync
_marks: set[str] = set()
"""The marks of the test that runs."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    _marks.update(mark.name for mark in item.iter_markers())
    try:
        return (yield)
    finally:
        _marks.clear()


def _draw_if_asked(canvas: Any) -> None:
    if "pictures" in _marks:
        _draw(canvas)
    else:
        draw_one_pixel(canvas)


def _sync_if_asked(descriptor: int) -> None:
    if "synced" in _marks:
        _sync(descriptor)


def _disable_sync(connection: object, _: object) -> None:
    if isinstance(connection, sqlite3.Connection) and "synced" not in _marks:
        connection.execute("PRAGMA synchronous = OFF")


FigureCanvasAgg.draw = _draw_if_asked  # type: ignore[method-assign]
os.fsync = _sync_if_asked  # type: ignore[assignment]
sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _disable_sync)
