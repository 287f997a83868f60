"""Deletion of files below the output folder: what goes, how many bytes, never through a link and never outside.

A folder is renamed to a temporary name before its files are deleted, so a kill leaves the whole folder or none of it
under its name; the next clean-up deletes what has a temporary name.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kronos_pipeline.errors import ArtifactError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of the temporary files, folders and links of this project."""


@dataclass(frozen=True)
class Removal:
    """Something that a clean-up deletes.

    Attributes:
        rule: the rule by which it goes.
        name: its name for people, such as a path relative to the output folder.
        size: the bytes that go with it; 0 if they are not known.
        delete: deletes it, or raises KronosError. It checks again that the rule holds, and deletes nothing otherwise.
    """

    rule: str
    name: str
    size: int
    delete: Callable[[], None]


def path_removal(rule: str, path: Path, root: Path, still: Callable[[], bool] = lambda: True) -> Removal:
    """Return the removal of a file or folder below `root`; `still` says at the deletion whether the rule holds."""

    def delete() -> None:
        if still():
            delete_path(path, root)

    return Removal(rule, path.relative_to(root).as_posix(), size_of(path), delete)


def is_within(path: Path, root: Path) -> bool:
    """Return whether a path lies below a folder without a symbolic link on the way; the path itself may be a link."""
    try:
        relative = path.absolute().relative_to(root.absolute())
    except ValueError:
        return False
    return (
        bool(relative.parts)
        and ".." not in relative.parts
        and path.parent.resolve() == (root.resolve() / relative).parent
    )


def entries(folder: Path, pattern: str, root: Path) -> list[Path]:
    """Return the entries of a folder below `root` with a matching name, sorted; none if a link leads to the folder."""
    return sorted(folder.glob(pattern)) if is_within(folder / "entry", root) else []


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which may not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(existing).free


def size_of(path: Path) -> int:
    """Return the bytes of the files below a path, of links those of the link; 0 for a path that is gone."""
    try:
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            return sum(size_of(Path(entry.path)) for entry in entries)
    except FileNotFoundError:
        return 0


def newest_change(path: Path) -> float:
    """Return the time of the newest change of a file or of any file below a folder, in seconds since 1970."""
    try:
        newest = path.lstat().st_mtime
        if path.is_dir() and not path.is_symlink():
            with os.scandir(path) as entries:
                newest = max([newest, *(newest_change(Path(entry.path)) for entry in entries)])
    except FileNotFoundError:
        return 0.0
    return newest


def unchanged_since(path: Path, moment: datetime) -> bool:
    """Return whether nothing at or below a path has changed since a moment, which has a zone."""
    return newest_change(path) < moment.timestamp()


def delete_path(path: Path, root: Path) -> None:
    """Delete a file, link or folder below `root`; nothing happens if it is gone.

    Raises:
        ArtifactError: the path lies outside, or cannot be deleted.
    """
    if not is_within(path, root):
        raise ArtifactError(f"{path} is not deleted: it lies outside {root}, or a symbolic link leads to it.")
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        doomed = path
        if not TEMPORARY.fullmatch(path.name):
            doomed = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            path.rename(doomed)
        shutil.rmtree(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArtifactError(f"{path} cannot be deleted ({error.strerror or error}); delete it yourself.") from error
