"""Fixtures of the artifact store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def moto() -> Iterator[object]:
    """A local S3 with a bucket; the test is skipped without moto or s3fs."""
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    from moto_server import MotoServer

    server = MotoServer()
    yield server
    server.close()
