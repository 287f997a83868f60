"""Locate, create and open the MLflow store, and fail within seconds if it is unavailable.

MLflow takes seconds to import, so the functions that need it import it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.atomic_writes import check_writable
from kronos_pipeline.checksums import text_hash
from kronos_pipeline.leases import LeaseError, is_postgres, with_driver
from kronos_pipeline.locks import exclusive, held_by, named_lock
from kronos_pipeline.tracking.backups import back_up_daily, find_damage
from kronos_pipeline.tracking.moved_folder import follow_move
from kronos_pipeline.tracking.store_errors import (
    TrackingError,
    is_readonly,
    is_sqlite,
    readable_errors,
    sqlite_path,
)

if TYPE_CHECKING:
    import sqlalchemy
    from mlflow import MlflowClient

__all__ = [
    "EXPERIMENT",
    "LEADERBOARDS",
    "TrackingError",
    "check_server",
    "find_store_uri",
    "is_local",
    "is_sqlite",
    "open_experiment",
    "open_store",
    "readable_errors",
    "sqlite_path",
]

EXPERIMENT = "kronos_pipeline"
LEADERBOARDS = "kronos_pipeline leaderboards"
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag that makes MLflow open an experiment in "Model training" and not in "GenAI"."""
_DESCRIPTIONS = {
    EXPERIMENT: "One run for each training of an adapter, a checkpoint or a refit. Group the runs by the tags night, "
    "ticker or kind.",
    LEADERBOARDS: "One run for each leaderboard over all tickers whose models or bars have changed.",
}
_SQLITE = "sqlite:///"
_PROBE_SECONDS = 5
_LOCK_SECONDS = 120
_CHANGE_SECONDS = 300
_log = logging.getLogger(__name__)


def find_store_uri(tracking_uri: str | None, output_dir: Path) -> str:
    """Return the store's URI: the argument, else MLFLOW_TRACKING_URI, else `mlflow.db` in the output folder."""
    database = ArtifactLayout(output_dir.absolute()).mlflow_database
    return with_driver(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(database))


def open_store(uri: str) -> MlflowClient:
    """Connect to a store; create a missing SQLite file.

    Raises:
        TrackingError: the store cannot be reached, is damaged, or belongs to another version of MLflow.
        ArtifactError: the folder of the SQLite file cannot be written to.
    """
    _silence_mlflow()
    from mlflow import MlflowClient

    with readable_errors(uri):
        if is_sqlite(uri):
            _make_sqlite(sqlite_path(uri))
            _check_sqlite(sqlite_path(uri))
            _open_anew_after_refusals()
        if uri.startswith(("http://", "https://")):
            check_server(uri)
        elif "://" in uri and not uri.startswith("file:") and not _has_tables(uri):
            # Two processes that create MLflow's tables together disturb each other.
            with registry_lock(uri, "tables"):
                return MlflowClient(uri)
        return MlflowClient(uri)


def open_experiment(client: MlflowClient, artifacts: Path | None, purpose: str = EXPERIMENT) -> str:
    """Return the id of an experiment of the project; create a missing experiment.

    Args:
        client: a client of the store.
        artifacts: the folder for the artifacts of its runs; None if a server stores artifacts.
        purpose: EXPERIMENT for trainings, or LEADERBOARDS.
    """
    from mlflow.exceptions import MlflowException

    location = None if artifacts is None else artifacts.as_uri()
    name = purpose
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and location is not None and experiment.artifact_location != location:
        # An experiment's artifact location is fixed, so a moved output folder gets an experiment of its own.
        name = f"{purpose} in {artifacts}"
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            tags = {**_KIND, "mlflow.note.content": _DESCRIPTIONS[purpose]}
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for key, value in _KIND.items():
        if key not in experiment.tags:  # of an earlier version of the project
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)


def registry_lock(uri: str, name: str) -> FileLock:
    """Return the lock for changes of one registered model, or of the store's tables.

    A store on PostgreSQL, or with KRONOS_LEASE_DATABASE, has locks across machines.
    """
    if is_sqlite(uri):
        path = sqlite_path(uri).with_name(f".{sqlite_path(uri).name}.registry.lock")  # one file for all models
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        path = Path(tempfile.gettempdir()) / f"kronos-pipeline-{os.getuid()}-{text_hash(uri, name)[:16]}.lock"
    return named_lock(path, f"registry/{name}")


@contextmanager
def change_model(uri: str, name: str) -> Iterator[None]:
    """Let no other process change a registered model during the block, which reads it and then writes it.

    Raises:
        TrackingError: another process holds the lock for minutes, or the lock cannot be used.
    """
    with ExitStack() as held:
        with readable_errors(uri):
            lock = registry_lock(uri, name)
            try:
                held.enter_context(exclusive(lock, _CHANGE_SECONDS))
            except Timeout as error:
                raise TrackingError(
                    f"{name} is being changed by {held_by(lock)} for {_CHANGE_SECONDS} s; wait for it, or end it."
                ) from error
            except LeaseError as error:  # the same database: who waits for it to come back waits for this, too
                raise TrackingError(str(error)) from error
        yield


def is_local(uri: str) -> bool:
    """Return whether the client writes artifacts itself, and not a server."""
    return not uri.startswith(("http://", "https://", "databricks"))


def _sqlite_uri(path: Path) -> str:
    # SQLAlchemy decodes %XX and parses options after a ?. Leave other characters, as MLflow decodes nothing.
    return _SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def _check_sqlite(path: Path) -> None:
    """Check the database, back it up once a day, and let it follow its folder; a failed backup is no reason to stop.

    Raises:
        sqlite3.Error: the database is damaged or cannot be read.
    """
    if damage := find_damage(path):
        raise sqlite3.DatabaseError(f"it is damaged: {damage}")
    try:
        back_up_daily(path, datetime.now())
    except (sqlite3.OperationalError, OSError) as error:
        _log.warning("%s could not be backed up (%s).", path, error)
    try:
        follow_move(path)
    except sqlite3.OperationalError as error:
        _log.warning("%s could not be changed after its folder was moved (%s).", path, error)


def _make_sqlite(path: Path) -> None:
    """Create the SQLite file under a lock; rename it when it is complete, so that a kill leaves no half schema."""
    from mlflow import MlflowClient

    check_writable(path.parent)
    try:
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
            if path.exists():
                return
            unfinished = path.with_name(f".{path.name}.unfinished")
            for leftover in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):
                leftover.unlink(missing_ok=True)
            with _synced_once(unfinished):
                MlflowClient(_sqlite_uri(unfinished))
            unfinished.rename(path)
    except Timeout as error:
        raise TrackingError(
            f"A process that makes the MLflow store has held {path}.lock for {_LOCK_SECONDS} seconds; end it."
        ) from error


@contextmanager
def _synced_once(path: Path) -> Iterator[None]:
    """Sync an SQLite file to disk once, at the block's end, and not after each of MLflow's dozens of migrations.

    On a busy disk every sync waits. An incomplete file after a crash is useless anyway.
    """
    import sqlalchemy

    def disable_sync(connection: object, _: object) -> None:
        # Other threads may open other databases meanwhile; leave their settings unchanged.
        if isinstance(connection, sqlite3.Connection) and _file_of(connection) == path.resolve():
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", disable_sync)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", disable_sync)
    with path.open("r+b") as database:
        os.fsync(database.fileno())


def _file_of(connection: sqlite3.Connection) -> Path:
    return Path(connection.execute("PRAGMA database_list").fetchone()[2]).resolve()


def _open_anew_after_refusals() -> None:
    """Let SQLAlchemy open a file anew after SQLite refused to write to it, as its connections are kept for long.

    SQLite opens a file for reading if it cannot be opened for writing, and stays with a file that was replaced. A file
    that is missing is left to `_make_sqlite`: SQLite would make an empty file.
    """
    import sqlalchemy

    if not sqlalchemy.event.contains(sqlalchemy.Engine, "handle_error", _drop_readonly):
        sqlalchemy.event.listen(sqlalchemy.Engine, "handle_error", _drop_readonly)


def _drop_readonly(context: sqlalchemy.engine.ExceptionContext) -> None:
    if is_readonly(context.original_exception) and context.engine is not None:
        context.is_disconnect = Path(context.engine.url.database or "").is_file()


def check_server(uri: str) -> None:
    """Send one request to a server, as MLflow would retry for minutes. Any response counts, even a refusal."""
    from mlflow.utils import credentials, rest_utils

    request: Any = rest_utils.http_request  # MLflow types neither
    credentials_of: Any = credentials.get_default_host_creds
    request(credentials_of(uri), "/health", "GET", max_retries=0, timeout=_PROBE_SECONDS, raise_on_status=False)


def _has_tables(uri: str) -> bool:
    """Connect to a database once, as MLflow would retry for minutes, even with a damaged file.

    Returns:
        Whether the database has MLflow's tables.
    """
    import sqlalchemy

    options = {"connect_args": {"connect_timeout": _PROBE_SECONDS}} if is_postgres(uri) else {}
    engine = sqlalchemy.create_engine(uri, **options)
    try:
        return "alembic_version" in sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _silence_mlflow() -> None:
    """Silence MLflow's messages and telemetry and shorten its retries, unless the environment sets them."""
    for variable, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # Every error reaches a caller as an exception; MLflow would print the database's errors with a traceback too.
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    for library in ("alembic", "sqlalchemy"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
