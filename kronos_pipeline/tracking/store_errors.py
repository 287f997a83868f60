"""Errors of the MLflow store in a sentence: what failed, and what to do about it.

MLflow, SQLAlchemy, the clients of object stores and the system raise exceptions of many families, and a server that is
no MLflow server makes MLflow's parsing fail in any way. All of them end here.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.client import IncompleteRead
from pathlib import Path
from urllib.parse import unquote

from kronos_pipeline.addresses import without_password, without_secrets
from kronos_pipeline.errors import KronosError, first_sentence
from kronos_pipeline.tracking.backups import back_up, restore_advice

_SQLITE = "sqlite:///"
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
"""MLflow's codes of a request that a working store refuses."""
_STATUS = re.compile(r"(?:error code|failed with code|too many|status code)\D{0,3}(\d{3})", re.IGNORECASE)
_AWAY_STATUS = (502, 503, 504)
"""HTTP statuses of a proxy whose server is away, and of a server whose database is away."""
_LOST = (ConnectionError, TimeoutError, socket.gaierror, IncompleteRead)
_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
_DATABASE_AWAY = re.compile(
    "connection refused|timeout expired|timed out|could not translate host name|no route to host|network is unreachable"
    "|server closed the connection|starting up|shutting down|terminating connection|no such file or directory",
    re.IGNORECASE,
)
"""Words of PostgreSQL's client about a server that is away; it has no codes for them."""
_PARSING = (ValueError, TypeError, KeyError, AttributeError)
_SQLITE_REMEDIES = {
    "disk is full": "its disk is full; free space there, and run the command again",
    "no space left": "its disk is full; free space there, and run the command again",
    "quota exceeded": "the disk quota of this user is used up; free space there, and run the command again",
    "permission denied": "it cannot be opened; give this user the right to read and write the file and its folder",
    "read-only file system": "its disk is read-only; mount the disk for writing, or choose another --output-dir",
    "unable to open": "it cannot be opened; check that it is a file, and that this user may write to its folder",
    "database is locked": "another process keeps it locked; run the command again when that process has ended",
    "disk i/o error": "its disk reports an error; check the free space and the health of the disk (dmesg, smartctl)",
}
"""Words of an error of SQLite or the system, in lower case, and what they mean for the database."""
_READONLY = "readonly database"
"""Words of SQLite for a file that it may not write, that it could not open for writing, or that is elsewhere now."""
_DAMAGE = ("malformed", "not a database", "file is encrypted", "it is damaged")


class TrackingError(KronosError):
    """Unreachable, damaged or read-only MLflow store, or a request that it refuses."""


class UnreachableError(TrackingError):
    """A store that does not answer: no connection, a timeout, or a proxy without a server behind it."""


class RefusedError(TrackingError):
    """A request that a working store refuses, such as for a run that does not exist: a repetition does not help."""


@contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """Convert every error of MLflow, the database, the network and the system to a TrackingError with the remedy."""
    try:
        yield
    except KronosError:
        raise
    except Exception as error:
        raise explain(uri, error) from error


def explain(uri: str, error: Exception) -> TrackingError:
    """Return the error for people of a store that failed."""
    shown = without_password(uri)
    reason = without_secrets(first_sentence(error), uri)
    if "out-of-date database schema" in reason or "Can't locate revision" in reason:
        advice = f"it was made by another version of MLflow; {_saved(uri)} `mlflow db upgrade '{shown}'`"
        return TrackingError(f"The MLflow store {shown} cannot be used: {advice}.")
    if getattr(error, "error_code", None) in _ABSENT:
        return RefusedError(f"The MLflow store {shown} refuses the request: {reason}.")
    if is_sqlite(uri):
        return TrackingError(f"The MLflow store {shown} cannot be used: {_of_sqlite(uri, reason, error)}.")
    kind = UnreachableError if _is_unreachable(reason, error) else TrackingError
    return kind(f"The MLflow store {shown} cannot be used: {_of_server(reason, error)}.")


def _saved(uri: str) -> str:
    """Back up a database before its upgrade, and return the words for it."""
    if is_sqlite(uri):
        try:
            return f"its backup is {back_up(sqlite_path(uri), datetime.now())}; upgrade it with"
        except (sqlite3.Error, OSError) as error:
            return f"it could not be backed up ({error}): save a copy, and run"
    return "save a copy and run"


def is_sqlite(uri: str) -> bool:
    """Return whether the store is an SQLite file."""
    return uri.startswith(_SQLITE)


def sqlite_path(uri: str) -> Path:
    """Return the SQLite file of a store."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])).absolute()


def _of_sqlite(uri: str, reason: str, error: Exception) -> str:
    root = root_cause(error)
    words = f"{reason} {getattr(root, 'strerror', None) or ''}".lower()
    if isinstance(root, OSError) and root.errno == errno.ENOSPC:
        words = "no space left"
    if _READONLY in words:
        return f"{_why_readonly(sqlite_path(uri), root)} ({reason})"
    for text, meaning in _SQLITE_REMEDIES.items():
        if text in words:
            return f"{meaning} ({reason})"
    if any(text in words for text in _DAMAGE):
        return f"{reason}; {restore_advice(sqlite_path(uri))}"
    return _named(reason, root)


def is_readonly(error: BaseException) -> bool:
    """Return whether SQLite refuses to write, for any of the reasons that `_why_readonly` tells apart."""
    return isinstance(error, sqlite3.OperationalError) and _READONLY in str(error)


def _why_readonly(database: Path, error: BaseException) -> str:
    """Tell the causes of SQLite's "readonly database" apart, and return what to do."""
    if getattr(error, "sqlite_errorname", "") == "SQLITE_READONLY_DBMOVED":
        return (
            "its file was moved, replaced or deleted while this command used it; run the command again, with "
            "--output-dir if its folder was moved"
        )
    try:
        if os.statvfs(database).f_flag & os.ST_RDONLY:
            return "its disk is read-only; mount the disk for writing, or choose another --output-dir"
    except OSError:
        pass  # the file is gone, or the rights say more
    if os.access(database, os.W_OK) and os.access(database.parent, os.W_OK):
        return "it could not be opened for writing for a moment; run the command again"
    return "it cannot be written to; give this user the right to write the file and its folder"


def _of_server(reason: str, error: Exception) -> str:
    from mlflow.exceptions import RestException

    root = root_cause(error)
    found = _STATUS.search(f"{reason} {error}")
    status = int(found[1]) if found else 0
    if isinstance(root, ImportError):
        return f"a package is missing ({reason}); install the extra postgres, or that of its driver"
    code = error.error_code if isinstance(error, RestException) else ""
    if status in (401, 403) or code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return (
            f"it refuses this user ({reason}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, to those of a user with the right to write"
        )
    if status >= 500 or code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
        return f"the server fails ({reason}); its log says why"
    if status or "valid JSON" in reason or isinstance(root, _PARSING):
        what = f"HTTP {status}" if status else reason
        return f"it does not answer as an MLflow server does ({what}); correct MLFLOW_TRACKING_URI"
    return f"{_named(reason, root)}; start it, mend MLFLOW_TRACKING_URI, or unset that to track in --output-dir"


def _is_unreachable(reason: str, error: Exception) -> bool:
    """Return whether a server or its database does not answer; a refusal or a damaged database is an answer."""
    root = root_cause(error)
    if isinstance(root, _LOST) or (isinstance(root, OSError) and root.errno in _NO_ROUTE):
        return True
    if type(root).__module__.startswith("psycopg2"):
        return _DATABASE_AWAY.search(str(root)) is not None
    found = _STATUS.search(f"{reason} {error}")
    unavailable = getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE"
    # MLflow's server gives this code for every error of operation of its database, a missing table of SQLite too.
    return (unavailable or (found is not None and int(found[1]) in _AWAY_STATUS)) and "sqlite3" not in str(error)


def _named(reason: str, root: BaseException) -> str:
    """Return a reason with the kind of its error, unless the reason is a sentence of MLflow, the database or the OS."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    plain = isinstance(root, MlflowException | SQLAlchemyError | ImportError | OSError) or "sqlite3" in str(type(root))
    return reason if plain else f"{type(root).__name__}: {reason}"


def root_cause(error: BaseException) -> BaseException:
    """Return the error that a chain of errors began with."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__) or _wrapped(error):
        error = cause
    return error


def _wrapped(error: BaseException) -> BaseException | None:
    """Return the error among the arguments of an error: urllib3 names the reset of a connection by it alone."""
    return next((part for part in error.args if isinstance(part, BaseException)), None)
