"""Atomic writes: a reader sees the complete old file or folder, or the complete new file or folder.

Files are written to a temporary sibling, flushed to the disk and renamed. A folder cannot replace another by renaming,
so a published folder is a symbolic link to a version beside it, and a new link replaces the old link by renaming:

    adapters/AAPL -> .versions/AAPL-20260102T030405000000-1f2e3d4c/
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from kronos_pipeline.errors import ArtifactError

VERSIONS = ".versions"
"""Folder of the versions of published folders, beside their links."""
_VERSIONS_KEPT = 2


def check_writable(folder: Path) -> None:
    """Create `folder` and check that it is writable, before long work.

    Raises:
        ArtifactError: the folder cannot be created or written to.
    """
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = _sibling(folder / "probe")
        probe.touch()
        probe.unlink()


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file atomically: readers see the complete old file or the complete new file.

    Args:
        path: the file; missing parent folders are created.
        write: receives the temporary file, open for writing bytes.

    Raises:
        ArtifactError: the file cannot be written; an earlier file stays unchanged.
    """
    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _sibling(path)
        try:
            with temporary.open("wb") as handle:
                write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Publish a folder atomically: readers see the complete folder or the previous version.

    Yields an empty folder to fill. After the block, `path` becomes a link to it; if the block raises, the folder is
    removed and `path` stays unchanged. The previous version is kept for readers that have it open.

    Raises:
        ArtifactError: the folder cannot be written, or `path` is a folder that this project did not create.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    with publish_version(path, f"{path.name}-{stamp}-{uuid.uuid4().hex[:8]}") as version:
        yield version


@contextmanager
def publish_version(path: Path, name: str) -> Iterator[Path]:
    """Publish a folder as `publish_folder` does, under the name of a version that another machine made.

    Raises:
        ArtifactError: see `publish_folder`.
    """
    with readable_errors(path):
        if path.exists() and not path.is_symlink():
            raise ArtifactError(f"{path} is in the way: it is no artifact of this project; move it and run again.")
        version = path.parent / VERSIONS / name
        version.mkdir(parents=True)
        try:
            yield version
            for entry in (*version.rglob("*"), version, version.parent):
                _sync(entry)
            link_version(path, name)
        except BaseException:
            if version_of(path) != name:  # also a link that is in place can fail, as the disk is flushed after it
                shutil.rmtree(version, ignore_errors=True)
            raise
        _drop_old_versions(path)


def link_version(path: Path, name: str) -> None:
    """Replace the link of a published folder by a link to another complete version, which is there already."""
    link = _sibling(path)
    try:
        link.symlink_to(Path(VERSIONS) / name, target_is_directory=True)
        link.replace(path)
    finally:
        link.unlink(missing_ok=True)
    _sync(path.parent)


def version_of(path: Path) -> str | None:
    """Return the name of the version that a published folder is a link to; None for anything else."""
    return path.readlink().name if path.is_symlink() else None


def set_aside(path: Path) -> Path:
    """Rename a damaged file, or a folder in its place, to a free name that ends in `.damaged`; return the name.

    Raises:
        OSError: it cannot be renamed.
    """
    names = (path.with_name(f"{path.name}{number}.damaged") for number in ("", *(f".{n}" for n in range(2, 100))))
    target = next((name for name in names if not name.exists()), path.with_name(f"{path.name}.damaged"))
    path.replace(target)
    return target


def _drop_old_versions(path: Path) -> None:
    # A stamp and eight hex digits follow the name, so AAPL does not match AAPL-B's versions.
    stamped = "[0-9]" * 8 + "T" + "[0-9]" * 12 + "-" + "[0-9a-f]" * 8
    escaped = path.name.replace("[", "[[]")
    versions = sorted((path.parent / VERSIONS).glob(f"{escaped}-{stamped}"), key=lambda version: version.name)
    current = path.readlink().name
    for version in versions[:-_VERSIONS_KEPT]:
        if version.name != current:  # an older version is current if a process that began later ended sooner
            shutil.rmtree(version, ignore_errors=True)


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn the errors of writing to a path into errors for users."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"{path} cannot be written ({reason}); choose another --output-dir or mend it.") from error
