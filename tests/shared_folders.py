"""Output folders of several machines, which share a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from kronos_pipeline.artifact_store.exchange import SharedFolder
from kronos_pipeline.artifact_store.objects import STORE, ChangedError, ObjectStore, open_store
from kronos_pipeline.artifacts import ArtifactLayout, write_json, write_manifest
from kronos_pipeline.atomic_writes import publish_folder


def machine(root: Path, url: str) -> SharedFolder:
    """A machine with an output folder of its own, which has met the store."""
    folder = SharedFolder(ArtifactLayout(root), open_store(url))
    folder.fetch([])
    return folder


def train(root: Path, name: str, text: str) -> None:
    """Publish an adapter whose weights are a text, and its metrics."""
    with publish_folder(ArtifactLayout(root).adapter(name)) as folder:
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text(text)
        (folder / "weights").write_text(text)
        write_manifest(folder, {"key": text})
    write_json(ArtifactLayout(root).ticker_metrics(name), {"text": text})


def check_conditions(store: ObjectStore) -> str:
    """Check that an object is replaced only as it was read; return its last tag."""
    key = "pointers/AAPL.json"
    tag = store.replace(key, b"1", None)
    with pytest.raises(ChangedError):
        store.replace(key, b"2", None)
    newer = store.replace(key, b"2", tag)
    with pytest.raises(ChangedError):
        store.replace(key, b"3", tag)
    assert store.read(key) == (b"2", newer)
    return newer


def weights(root: Path, name: str) -> str:
    return (ArtifactLayout(root).adapter(name) / "weights").read_text()


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def use_store(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(STORE, url)
