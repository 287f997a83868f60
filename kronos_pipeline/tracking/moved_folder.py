"""Let MLflow's records follow an output folder that was moved or restored to another path.

MLflow records absolute locations, so after a move no champion could be fetched, and a run that is written to again
would make the former folder anew. MLflow has no command that changes them in a database.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.tracking.backups import connect

_TABLES = {"experiments", "runs", "logged_models", "model_versions"}
_ROOTS = "SELECT DISTINCT artifact_location FROM experiments"
_PLACES = (
    "SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, length(:old)) = :old",
    "SELECT artifact_location FROM logged_models WHERE substr(artifact_location, 1, length(:old)) = :old",
)
_CHANGES = (
    "UPDATE runs SET artifact_uri = :new || substr(artifact_uri, length(:old) + 1) "
    "WHERE substr(artifact_uri, 1, length(:old)) = :old",
    "UPDATE logged_models SET artifact_location = :new || substr(artifact_location, length(:old) + 1) "
    "WHERE substr(artifact_location, 1, length(:old)) = :old",
    "UPDATE model_versions SET source = :new || substr(source, length(:old) + 1) "
    "WHERE substr(source, 1, length(:old)) = :old",
    "UPDATE model_versions SET storage_location = :new || substr(storage_location, length(:old) + 1) "
    "WHERE substr(storage_location, 1, length(:old)) = :old",
    "UPDATE experiments SET artifact_location = rtrim(:new, '/') WHERE artifact_location = rtrim(:old, '/')",
)
_log = logging.getLogger(__name__)


def follow_move(database: Path) -> None:
    """Change the locations in an output folder's `mlflow.db` whose files are in this folder, and nowhere else.

    A folder that was copied keeps the locations of its former runs, as long as the other folder has their files.

    Raises:
        sqlite3.Error: the database is damaged, or cannot be read or written.
    """
    here = ArtifactLayout(database.absolute().parent).mlflow_artifacts
    with closing(connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables >= _TABLES:
            return  # of another version of MLflow, which says so when it opens the database
        moved = [root for root in _roots(connection, here) if _is_moved(connection, root, here)]
        for root in moved:
            with connection:  # one transaction, so that a kill leaves all locations or none
                for change in _CHANGES:
                    connection.execute(change, {"old": f"{root.as_uri()}/", "new": f"{here.as_uri()}/"})
            _log.info("MLflow's records follow the output folder from %s to %s.", root.parent, here.parent)


def local_path(location: str) -> Path | None:
    """Return the path of a location on this machine's file system, or None for a server's or a bucket's."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if parts.scheme else location)


def _roots(connection: sqlite3.Connection, here: Path) -> Iterator[Path]:
    """Yield the folders of artifacts of other output folders that the experiments name."""
    for (location,) in connection.execute(_ROOTS).fetchall():
        root = local_path(location or "")
        if root is not None and root.name == here.name and root != here and root.is_absolute():
            yield root


def _is_moved(connection: sqlite3.Connection, root: Path, here: Path) -> bool:
    """Return whether `here` has files of the records below `root`, which has none any more."""
    arrived = False
    for query in _PLACES:
        for (location,) in connection.execute(query, {"old": f"{root.as_uri()}/"}):
            place = local_path(location)
            if place is None or place.exists():
                return False
            arrived = arrived or (here / place.relative_to(root)).exists()
    return arrived
