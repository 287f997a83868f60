"""Locks that one process holds at a time: of an artifact, of a registered model, of the ledger, of a GPU, of a run.

On one machine a lock is a file lock, which the system frees with its process. If `KRONOS_LEASE_DATABASE` or
`MLFLOW_TRACKING_URI` names a PostgreSQL database, each lock is a lease there too, so that it holds across machines:

    acquire:  file lock in a folder of this machine  -->  lease in the database
    release:  lease                                  -->  file lock

The file lock comes first. It makes the processes of one machine wait for each other without the database, and whoever
holds it knows that a lease of the same machine is left over from a killed process.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.errors import ArtifactError, SettingsError
from kronos_pipeline.leases import HeldLease, LeaseError, Leases, is_postgres, leases_of

LEASE_DATABASE = "KRONOS_LEASE_DATABASE"
TRAININGS_PER_GPU = "KRONOS_TRAININGS_PER_GPU"
_MOST_TRAININGS_PER_GPU = 64
_POLL_SECONDS = 1.0
_FOLDER_ID = ".folder_id"


class LeaseLock(FileLock):
    """A file lock of this machine, and a lease of the same name in a database."""

    lease: str
    leases: Leases
    _refused_at = 0.0

    def _acquire(self) -> None:
        if time.monotonic() < self._refused_at + _POLL_SECONDS:
            return
        super()._acquire()
        if not self.is_locked:
            return
        taken = False
        try:
            taken = self.leases.take(self.lease)
        finally:
            if not taken:
                self._refused_at = time.monotonic()
                super()._release()

    def _release(self) -> None:
        self.leases.free(self.lease)
        super()._release()


def named_lock(path: Path, name: str) -> FileLock:
    """Return a lock; a process may acquire it again while it holds it.

    Args:
        path: the file of the lock on a single machine.
        name: the name of the lock on all machines.

    Raises:
        LeaseError: the settings of leases are invalid.
    """
    url = lease_database()
    if url is None:
        return FileLock(path, is_singleton=True)
    folder = _local_folder()
    lock = LeaseLock(folder / f"{sha256(f'{url} {name}'.encode()).hexdigest()[:32]}.lock", is_singleton=True)
    lock.lease, lock.leases = name, leases_of(url, _folder_id(folder), os.getpid())
    return lock


def folder_lock(root: Path, path: str) -> FileLock:
    """Return the lock of a part of an output folder, which machines may mount at different places.

    Args:
        root: the output folder.
        path: the lock's file below it; its folder exists.

    Raises:
        ArtifactError: the folder cannot be written to.
        LeaseError: the settings of leases are invalid.
    """
    if lease_database() is None:
        return named_lock(root / path, path)
    with contextlib.suppress(OSError):
        (root / path).touch()  # the files of a folder show which locks there are, see `training.old_states`
    return named_lock(root / path, f"{_folder_id(root.absolute())}/{path}")


def trainings_per_gpu() -> int:
    """Return how many trainings a GPU takes at a time: the number of its locks, by default 1.

    Raises:
        SettingsError: the variable is no such number.
    """
    text = os.environ.get(TRAININGS_PER_GPU) or "1"
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST_TRAININGS_PER_GPU:
        limits = f"a whole number from 1 to {_MOST_TRAININGS_PER_GPU} is needed"
        raise SettingsError(f"{TRAININGS_PER_GPU} is {text!r}, and {limits}.")
    return int(text)


def lease_database() -> str | None:
    """Return the address of the database of leases, or None on a single machine."""
    if own := os.environ.get(LEASE_DATABASE):
        return own
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    return tracking if is_postgres(tracking) else None


def held_leases() -> list[HeldLease] | None:
    """Return the leases that are held on all machines; None on a single machine.

    Raises:
        LeaseError: the database of leases cannot be used, or the settings of leases are invalid.
    """
    url = lease_database()
    return None if url is None else leases_of(url, _folder_id(_local_folder()), os.getpid()).held()


def shared_time() -> float:
    """Return the time in seconds since 1970: by the clock of the database of leases, or by this machine's without one.

    So machines whose clocks differ agree on what came first. A database that is away does not matter to a time.
    """
    if url := lease_database():
        with contextlib.suppress(LeaseError):
            return leases_of(url, _folder_id(_local_folder()), os.getpid()).time()
    return time.time()


def held_by(lock: FileLock) -> str:
    """Return who holds a lock that this process waits for, in words."""
    if isinstance(lock, LeaseLock):
        return lock.leases.owner(lock.lease) or "a process that has just ended"
    return f"the holder of {Path(lock.lock_file).name}"


def fence(lock: FileLock) -> AbstractContextManager[None]:
    """Return a context that nobody takes a held lock over in, however long the process is paused in it.

    The context raises LeaseError at its start if the lock has been lost. A file lock cannot be lost.
    """
    return lock.leases.fence(lock.lease) if isinstance(lock, LeaseLock) else nullcontext()


@contextmanager
def exclusive(lock: FileLock, timeout: float = -1) -> Iterator[None]:
    """Hold a lock during a short block of writes, fenced.

    Raises:
        filelock.Timeout: another process holds the lock for `timeout` seconds.
        LeaseError: the database of leases cannot be used.
    """
    with lock.acquire(timeout=timeout), fence(lock):
        yield


def check_held(lock: FileLock) -> None:
    """Check that a held lock was not lost.

    Raises:
        LeaseError: another process has taken it over, or another lock of this process.
    """
    if isinstance(lock, LeaseLock):
        lock.leases.check()


def was_taken(lock: FileLock) -> bool:
    """Return whether a process holds a lock, or held it and has ended without a release of it.

    Raises:
        LeaseError: the database of leases cannot be used.
    """
    if isinstance(lock, LeaseLock):
        return lock.leases.owner(lock.lease) is not None
    return Path(lock.lock_file).exists()


def is_left_over(lock: FileLock) -> bool:
    """Return whether a process that held a lock has ended without a release of it.

    Raises:
        LeaseError: the database of leases cannot be used.
    """
    if lock.is_locked or not was_taken(lock):
        return False
    try:
        with lock.acquire(timeout=0):
            return True
    except Timeout:
        return False


def _local_folder() -> Path:
    """Return the folder of the file locks of this user on this machine."""
    folder = Path(tempfile.gettempdir()) / f"kronos-pipeline-{os.getuid()}-locks"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise ArtifactError(f"{folder} belongs to another user; remove it, or set TMPDIR to a folder of your own.")
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be made ({error.strerror}); set TMPDIR to another folder.") from error
    return folder


def set_folder_id(folder: Path, identity: str) -> None:
    """Give an output folder the id of the artifact store that it shares with other folders, so that locks hold for all.

    Raises:
        ArtifactError: the folder cannot be written to.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", identity):
        raise ValueError("no id of a folder")
    write_file(folder / _FOLDER_ID, lambda handle: handle.write(identity.encode()))
    _folder_id.cache_clear()


@lru_cache
def _folder_id(folder: Path) -> str:
    """Return the id of a folder, the same for all machines that mount it; a folder without an id gets a random id."""
    path = folder / _FOLDER_ID
    own = folder / f"{_FOLDER_ID}.{uuid.uuid4().hex}"
    try:
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            own.write_text(uuid.uuid4().hex, encoding="ascii")
            try:
                os.link(own, path)  # unlike a rename, a link fails if another process was faster
            except FileExistsError:
                pass
            finally:
                own.unlink()
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise ArtifactError(f"{path} cannot be read or made ({error}); mend its permissions.") from error
