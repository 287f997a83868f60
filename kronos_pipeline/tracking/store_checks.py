"""Checks of the MLflow store and of the files of its champions, without MLflow, for `kronos doctor --system`.

Each returns a state ("ok", "warning", "error"), what was found, and a remedy.
"""

from __future__ import annotations

import importlib.util
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from kronos_pipeline.addresses import without_password, without_secrets
from kronos_pipeline.errors import count, enumerate_some, first_sentence, readable_size
from kronos_pipeline.tracking.backups import connect
from kronos_pipeline.tracking.packaging import FOLDER
from kronos_pipeline.tracking.store import is_sqlite, sqlite_path
from kronos_pipeline.tracking.stored_registry import read_registered_models

Result = tuple[str, str, str]
_LARGEST_CHECKED = 200_000_000
"""Bytes of a database whose pages are all read within a second or two."""
_SECONDS = 3


def check_store(uri: str) -> Result:
    """Check that the store answers, is whole and has the schema of the installed MLflow."""
    shown = without_password(uri)
    try:
        if uri.startswith(("http://", "https://")):
            return _check_server(uri, shown)
        version, size = _sqlite_version(sqlite_path(uri)) if is_sqlite(uri) else (_sql_version(uri), "")
    except FileNotFoundError:
        return "warning", f"{shown} does not exist yet", "the first training makes it"
    except Exception as error:
        remedy = (
            "restore a backup, or move the file away" if is_sqlite(uri) else "start it, or mend MLFLOW_TRACKING_URI"
        )
        return "error", f"{shown}: {without_secrets(first_sentence(error), uri)}", remedy
    head = _schema_head()
    if head is not None and version != head:
        upgrade = f"make a backup, then mlflow db upgrade '{shown}'"
        return "error", f"{shown} has schema {version}, and the installed MLflow needs {head}", upgrade
    return "ok", " ".join(filter(None, [shown, size, f"schema {version}"])), ""


def check_champions(uri: str) -> Result:
    """Check that the files of every champion are there."""
    models = read_registered_models(uri, champions_only=True)
    if models is None:
        return "ok", "the registry is on a server; `kronos forecast` checks a champion as it loads it", ""
    if not models:
        return "ok", "no registered model yet", ""
    champions = {
        f"{name} version {number}": urlsplit(model.sources[number])
        for name, model in models.items()
        for number in model.champions.numbers.values()
    }
    lost = [
        champion
        for champion, source in champions.items()
        if source.scheme in ("", "file") and not (Path(unquote(source.path)) / FOLDER).is_dir()
    ]
    if lost:
        remedy = "restore a backup of mlruns, or kronos rollback"
        return "error", f"the files of {count(len(lost), 'champion')} are gone: {enumerate_some(lost)}", remedy
    return "ok", f"{count(len(champions), 'champion')} of {count(len(models), 'model')}, files present", ""


def _check_server(uri: str, shown: str) -> Result:
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=_SECONDS):  # noqa: S310 - http alone, see `check_store`
            pass
    except HTTPError as error:
        return "ok", f"{shown} answers ({error.code})", ""
    return "ok", f"{shown} answers", ""


def _sqlite_version(path: Path) -> tuple[str, str]:
    size = path.stat().st_size
    with closing(connect(path, _SECONDS)) as database:
        if size <= _LARGEST_CHECKED and (found := database.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"damaged: {found}")
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0]), readable_size(size)


def _sql_version(uri: str) -> str:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": _SECONDS})
    try:
        with engine.connect() as connection:
            return str(connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar_one())
    finally:
        engine.dispose()


def _schema_head() -> str | None:
    """Return the newest revision of the installed MLflow's schema, from its migrations, without importing it."""
    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        return None
    revisions: dict[str, str] = {}
    for path in (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py"):
        found = dict(re.findall(r"^(revision|down_revision) = [\"']?(\w+)", path.read_text(), re.MULTILINE))
        if "revision" in found:
            revisions[found["revision"]] = found.get("down_revision", "")
    heads = set(revisions) - set(revisions.values())
    return heads.pop() if len(heads) == 1 else None
