"""Check and backups of an SQLite database of MLflow.

    <output-dir>/mlflow.db
    <output-dir>/mlflow_backups/mlflow-20261128T021500.db     the newest five, at most one a day by itself
    <output-dir>/mlflow_backups/checked                       its time is that of the last check

The first command of a day that opens the database checks it, and copies it by SQLite's own backup, which waits for no
writer and leaves no half copy. A database that is damaged is never copied, so that no good backup is lost for it.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

_KEPT = 5
_DAY = 20 * 3600.0
"""Seconds after which a check or a backup is due again: less than a day, for a schedule that is a little early."""
_ALWAYS_CHECKED = 8 * 1024 * 1024
"""Bytes of a database up to which it is checked each time. Measured on a busy machine: 32 MB, the runs of 300 tickers,
take 0.3 s, and their backup 0.5 s."""
_CHECKED = "checked"


def connect(database: Path, seconds: float = 5) -> sqlite3.Connection:
    """Connect to a database that exists, and wait that long for its lock.

    It is opened for writing, if that is allowed, for the sake of reading: SQLite has to undo the unfinished transaction
    of a killed process first, and refuses to read where it cannot.

    Raises:
        sqlite3.OperationalError: it cannot be opened.
    """
    return sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=seconds)


def find_damage(database: Path, *, always: bool = False) -> str | None:
    """Return the first damage that SQLite's quick check finds, or None; a large database is checked once a day.

    Args:
        database: the file; it is read only.
        always: check a large database too.

    Raises:
        sqlite3.OperationalError: it cannot be opened or is locked, which is no damage.
    """
    stamp = _folder(database) / _CHECKED
    if not always and database.stat().st_size > _ALWAYS_CHECKED and not _is_older(stamp, _DAY):
        return None
    try:
        with closing(connect(database)) as connection:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
    if found != "ok":
        return " ".join(found.split())
    if stamp.parent.is_dir():
        stamp.touch()
    return None


def back_up(database: Path, now: datetime) -> Path:
    """Copy a whole database to a new backup, remove the oldest backups beyond five, and return the backup.

    Raises:
        sqlite3.Error: the database is damaged or cannot be read.
        OSError: the backup cannot be written.
    """
    if damage := find_damage(database, always=True):
        raise sqlite3.DatabaseError(damage)
    folder = _folder(database)
    folder.mkdir(exist_ok=True)
    backup = folder / f"{database.stem}-{now:%Y%m%dT%H%M%S}.db"
    unfinished = folder / f".{backup.name}.{os.getpid()}.tmp"
    try:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(unfinished)) as target:
            source.backup(target)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(backup)
    finally:
        unfinished.unlink(missing_ok=True)
    for old in backups_of(database)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return backup


def back_up_daily(database: Path, now: datetime) -> Path | None:
    """Make a backup if the newest one is a day old; None otherwise.

    Raises:
        sqlite3.Error, OSError: as `back_up`.
    """
    newest = next(reversed(backups_of(database)), None)
    return back_up(database, now) if newest is None or _is_older(newest, _DAY) else None


def backups_of(database: Path) -> list[Path]:
    """List the backups of a database, the oldest first."""
    return sorted(_folder(database).glob(f"{database.stem}-*.db"))


def restore_advice(database: Path) -> str:
    """Return the words that name the newest backup of a damaged database and the command that restores it."""
    path, damaged = shlex.quote(str(database)), shlex.quote(f"{database}.damaged")
    if not (backups := backups_of(database)):
        return f"there is no backup of it; move it away for a new file: mv {path} {damaged}"
    newest = shlex.quote(str(backups[-1]))
    return f"restore the newest backup while no other command runs: mv {path} {damaged} && cp {newest} {path}"


def _folder(database: Path) -> Path:
    return database.parent / "mlflow_backups"


def _is_older(path: Path, seconds: float) -> bool:
    try:
        return not 0 <= time.time() - path.stat().st_mtime <= seconds
    except OSError:
        return True
