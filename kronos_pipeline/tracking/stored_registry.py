"""The registered models of an MLflow store, read from its SQLite file or its PostgreSQL database in milliseconds.

MLflow takes seconds to import and to open a store, too long for a look at what is there. The tables are those of
MLflow's schema; a test compares the reading with `Registry`. Nothing is written, but the unfinished transaction of a
killed process is undone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kronos_pipeline.addresses import without_password, without_secrets
from kronos_pipeline.errors import first_sentence
from kronos_pipeline.leases import is_postgres
from kronos_pipeline.tracking.backups import connect, find_damage, restore_advice
from kronos_pipeline.tracking.champions import Champions, read_champions
from kronos_pipeline.tracking.store import TrackingError, is_sqlite, sqlite_path
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_store import VersionStore

_ALL_TAGS = "SELECT name, version, key, value FROM model_version_tags WHERE key NOT LIKE 'comparisons%'"
"""The comparisons are long, and not needed for a look."""
_CHAMPION_TAGS = (
    "SELECT name, version, key, value FROM model_version_tags "
    "WHERE key IN ('trained_on', 'decided_at', 'decided_by', 'promoted') OR key LIKE 'decided_at.%'"
)
"""A tenth of all tags."""


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model.

    Attributes:
        versions: its versions, oldest first.
        champions: the champion of each target, by number.
        registered: the time of each version's registration by number, ISO 8601; empty if it is not known.
        sources: the place of each version's files by number; empty if it is not known.
    """

    versions: tuple[Version, ...]
    champions: Champions
    registered: Mapping[int, str] = field(default_factory=dict)
    sources: Mapping[int, str] = field(default_factory=dict)


def read_registered_models(uri: str, *, champions_only: bool = False) -> dict[str, RegisteredModel] | None:
    """Read the registered models by name; empty without a store, None for a store behind a server or of other kinds.

    Args:
        uri: the address of the store.
        champions_only: of the versions' tags, read only those that say for which tickers and since when a version is
            champion, which takes a third of the time.

    Raises:
        TrackingError: the file or the database cannot be read, or is of another schema.
    """
    tags = _CHAMPION_TAGS if champions_only else _ALL_TAGS
    if is_postgres(uri):
        return _read_postgres(uri, tags)
    if not is_sqlite(uri):
        return None
    path = sqlite_path(uri)
    if not path.is_file():
        return {}
    try:
        if damage := find_damage(path):
            raise TrackingError(f"The MLflow store {path} is damaged: {damage}; {restore_advice(path)}.")
        with closing(connect(path)) as database:
            return _read(database.execute, tags)
    except sqlite3.Error as error:
        raise TrackingError(f"The MLflow store {path} cannot be read: {error}.") from error


def _read_postgres(uri: str, tags: str) -> dict[str, RegisteredModel]:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri)
        # One snapshot of all tables: the alias of a champion belongs to its version.
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as database:
            if "registered_models" not in sqlalchemy.inspect(database).get_table_names():
                return {}
            return _read(lambda query: [tuple(row) for row in database.execute(sqlalchemy.text(query))], tags)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        reason = (
            "the extra postgres is missing"
            if isinstance(error, ImportError)
            else without_secrets(first_sentence(error), uri)
        )
        raise TrackingError(f"The MLflow store {without_password(uri)} cannot be read: {reason}.") from error


def _read(execute: Callable[[str], Iterable[Any]], of_versions: str) -> dict[str, RegisteredModel]:
    aliases: dict[tuple[str, int], list[str]] = {}
    for name, number, alias in execute("SELECT name, version, alias FROM registered_model_aliases"):
        aliases.setdefault((name, int(number)), []).append(alias)
    version_tags: dict[tuple[str, int], dict[str, str]] = {}
    for name, number, key, value in execute(of_versions):
        version_tags.setdefault((name, int(number)), {})[key] = value
    model_tags: dict[str, dict[str, str]] = {}
    for name, key, value in execute("SELECT name, key, value FROM registered_model_tags"):
        model_tags.setdefault(name, {})[key] = value
    versions: dict[str, list[Version]] = {}
    times: dict[str, dict[int, str]] = {}
    sources: dict[str, dict[int, str]] = {}
    # MLflow keeps a row of a deleted version, so that its number is not given again.
    existing = (
        "SELECT name, version, run_id, creation_time, source FROM model_versions "
        "WHERE current_stage IS NULL OR current_stage != 'Deleted_Internal' ORDER BY version"
    )
    for name, number, run_id, milliseconds, source in execute(existing):
        key = name, int(number)
        time = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
        times.setdefault(name, {})[int(number)] = time.isoformat(timespec="seconds")
        sources.setdefault(name, {})[int(number)] = str(source)
        tags = version_tags.get(key, {})
        own_aliases = tuple(sorted(aliases.get(key, ())))
        versions.setdefault(name, []).append(Version(*key, str(run_id), own_aliases, tags, time))
    return {
        name: RegisteredModel(
            tuple(of_name), read_champions(of_name, model_tags.get(name, {})), times[name], sources[name]
        )
        for name, of_name in versions.items()
    }


def fetch_registered_models(uri: str) -> dict[str, RegisteredModel]:
    """Fetch the registered models of any store by MLflow; it takes seconds.

    Raises:
        TrackingError: the store cannot be used.
    """
    return {
        name: RegisteredModel(tuple(versions), read_champions(versions, tags))
        for name, (versions, tags) in VersionStore(uri).models().items()
        if versions
    }
