"""What an output folder had in common with its store when both last met, so that each later change is seen on its side.

    <output-dir>/.artifact_store/1f2e3d4c5b6a/AAPL.json     a file per group, as `pointers/AAPL.json` in the store

An artifact that differs from this record was made here and waits for its delivery; a pointer that differs from it was
replaced by another machine. The record is a cache: without it, contents are compared. The folder's name is a hash of
the store's address, so another store starts without a record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from kronos_pipeline.artifact_store.names import is_folder, local_groups, local_names
from kronos_pipeline.artifacts import read_json, write_json
from kronos_pipeline.atomic_writes import readable_errors, version_of
from kronos_pipeline.errors import ArtifactError

FOLDER = ".artifact_store"
_STORE = "@store.json"


class Known(BaseModel):
    """An artifact as both sides have it.

    Attributes:
        version: the version that the pointer named.
        local: the state of the artifact in the output folder, see `local_state`.
    """

    version: str
    local: str


class Record(BaseModel):
    """The record of a group.

    Attributes:
        tag: the tag of the pointer.
        artifacts: what both sides have, by name.
        damaged: versions of the store that turned out to be damaged, by name; a new version may replace them.
    """

    tag: str | None = None
    artifacts: dict[str, Known] = {}
    damaged: dict[str, str] = {}


class Records:
    """The records of an output folder for a store."""

    def __init__(self, root: Path, url: str) -> None:
        self._root = root
        self._folder = root / FOLDER / hashlib.sha256(url.encode()).hexdigest()[:12]

    def read(self, group: str) -> Record:
        """Return the record of a group; a record that is missing or damaged is empty."""
        path = self._folder / f"{group}.json"
        try:
            return Record.model_validate(read_json(path)) if path.is_file() else Record()
        except (ArtifactError, ValidationError):
            return Record()

    def write(self, group: str, record: Record) -> None:
        """Replace the record of a group.

        Raises:
            ArtifactError: it cannot be written.
        """
        write_json(self._folder / f"{group}.json", record.model_dump())

    @property
    def met(self) -> bool:
        """Whether this folder has reached the store before, so that its address is right."""
        return (self._folder / _STORE).is_file()

    def note_meeting(self, url: str) -> None:
        """Note that the store has answered."""
        if not self.met:
            write_json(self._folder / _STORE, {"url": url})

    @contextmanager
    def exclusive(self, group: str) -> Iterator[None]:
        """Let one process at a time exchange a group."""
        with readable_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f"{group}.lock"):
            yield

    def changed(self, group: str, record: Record) -> dict[str, str]:
        """Return the artifacts of a group that were made here since both sides met, with their states."""
        found = {}
        for name in local_names(self._root, group):
            state = local_state(self._root, group, name)
            known = record.artifacts.get(name)
            if state is not None and (known is None or known.local != state):
                found[name] = state
        return found

    def waiting(self) -> list[str]:
        """Return the artifacts that wait for their delivery, without a question to the store."""
        return [name for group in local_groups(self._root) for name in self.changed(group, self.read(group))]


def local_state(root: Path, group: str, name: str) -> str | None:
    """Return a text that changes with each write of an artifact; None if there is no such artifact.

    A published folder never changes, so its version is its state. A file is replaced by each write.
    """
    path = root / name
    try:
        if is_folder(name, group):
            return version_of(path) if path.is_dir() else None
        status = path.stat()
    except FileNotFoundError:
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
