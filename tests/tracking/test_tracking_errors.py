"""Errors of MLflow's store: one sentence with the cause and the true remedy, and no traceback of a library."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import sqlalchemy
from urllib3.exceptions import ProtocolError

from kronos_pipeline.addresses import without_password
from kronos_pipeline.config import Recipe
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError
from kronos_pipeline.tracking.store_errors import RefusedError, UnreachableError, explain, readable_errors
from kronos_pipeline.tracking.version_store import VersionStore

pytestmark = pytest.mark.slow

Serve = Callable[[int, str], str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return a function that starts a server with one answer to every request, and returns its address."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_GET  # noqa: N815 - the base class calls it so

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://me:secret@127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def train(uri: str | None, folder: Path) -> None:
    with Tracker(uri, folder).training_run("never", Recipe()):
        pass


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (200, "<html>a router</html>", "does not answer as an MLflow server does"),
        (200, '{"experiment": 5}', "does not answer as an MLflow server does"),
        (200, "{}", "does not answer as an MLflow server does"),
        (200, "null", "does not answer as an MLflow server does"),
        (404, "<html>nginx</html>", r"does not answer as an MLflow server does \(HTTP 404\)"),
        (302, "", r"does not answer as an MLflow server does \(HTTP 302\)"),
        (401, "You are not authenticated.", "refuses this user .* MLFLOW_TRACKING_USERNAME"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "refuses this user .* MLFLOW_TRACKING_USERNAME"),
        (500, "oops", "the server fails .* its log says why"),
        (503, "busy", "the server fails .* its log says why"),
    ],
)
def test_an_answer_of_a_server_that_is_no_use_is_told_with_its_remedy(
    status: int, body: str, advice: str, serve: Serve, tmp_path: Path
) -> None:
    uri = serve(status, body)
    with pytest.raises(TrackingError, match=advice) as caught:
        train(uri, tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("gs://bucket/model", "needs a package that is not installed here"),
        ("sftp://127.0.0.1:1/model", "needs a package that is not installed here"),
        ("wasbs://box@account.blob.core.windows.net/model", "needs a package that is not installed here"),
        ("nothing://somewhere/model", "MLflow here knows no such kind of address"),
        ("b2://bucket/model", "train again"),
        ("http://127.0.0.1:1/model", "train again"),
        ("ftp://127.0.0.1:1/model", "Connection refused"),
        ("/nowhere/model", "bring them back, or train again"),
    ],
)
def test_files_of_a_version_that_cannot_be_fetched_are_told(
    location: str, reason: str, register: Callable[[], int], registry: Registry, name: str, tmp_path: Path
) -> None:
    version = registry.version(name, register())
    with sqlite3.connect(registry.uri.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE model_versions SET source = ?, storage_location = ?", (location, location))
    database.close()
    store = VersionStore(registry.uri)
    with pytest.raises(TrackingError, match=reason) as caught:
        store.fetch(version, "artifacts/model", tmp_path)
    assert f"The files of {version} cannot be fetched from {without_password(location)}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_without_a_traceback_of_the_database(
    empty_mlflow_store: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_mlflow_store, tmp_path / 'mlflow.db')}"

    def fill(connection: sqlite3.Connection, _: object) -> None:
        if Path(connection.execute("PRAGMA database_list").fetchone()[2]).parent == tmp_path.resolve():
            connection.execute("PRAGMA max_page_count = 1")  # SQLite answers as on a full disk

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", fill)
    try:
        while not Tracker(uri, tmp_path).outbox.runs():
            train(uri, tmp_path)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", fill)
    assert "its disk is full; free space there" in caplog.text
    assert "move it away" not in caplog.text
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out + caplog.text


def put_another_in_its_place(database: Path) -> None:
    shutil.copy(database, database.with_name("restored.db"))
    database.with_name("restored.db").replace(database)


@pytest.mark.parametrize(
    ("happens", "keeps_the_run"),
    [
        (put_another_in_its_place, True),
        (Path.unlink, False),
        (lambda database: database.parent.rename(database.parent.with_name("elsewhere")), False),
    ],
    ids=["replaced", "deleted", "folder moved"],
)
def test_a_database_that_goes_away_below_a_training_is_named_so_and_the_run_is_delivered_to_the_file_that_is_there(
    empty_mlflow_store: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    happens: Callable[[Path], object],
    keeps_the_run: bool,
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    database = Path(shutil.copy(empty_mlflow_store, output / "mlflow.db"))
    tracker = Tracker(f"sqlite:///{database}", output)
    with tracker.training_run("any", Recipe()) as run:
        happens(database)
        run.on_log(1, {"train_loss": 0.5})
    assert "its file was moved, replaced or deleted while this command used it; run the command again" in caplog.text
    assert tracker.outbox.runs() == [run.run_id]
    delivered = tracker.deliver() or Tracker(tracker.uri, output).deliver()  # at its end, or by the next command
    assert delivered == [f"1 run that waited delivered to the MLflow store sqlite:///{database}"]
    with closing(sqlite3.connect(database)) as connection:
        [(run_id, status)] = connection.execute("SELECT run_uuid, status FROM runs").fetchall()
        losses = connection.execute("SELECT value FROM metrics WHERE key = 'train_loss'").fetchall()
    assert (status, losses) == ("FINISHED", [(0.5,)])
    assert (run_id == run.run_id) is keeps_the_run


def test_a_file_that_opens_for_reading_alone_for_a_moment_can_be_written_to_again_by_the_same_process(
    empty_mlflow_store: Path, tmp_path: Path
) -> None:
    database = Path(shutil.copy(empty_mlflow_store, tmp_path / "mlflow.db"))

    fails = True

    def open_for_reading(*_: object) -> sqlite3.Connection | None:
        if not fails:
            return None
        return sqlite3.connect(f"file:{database}?mode=ro", uri=True, check_same_thread=False)

    tracker = Tracker(f"sqlite:///{database}", tmp_path)
    sqlalchemy.event.listen(sqlalchemy.Engine, "do_connect", open_for_reading)  # as SQLite does after an I/O error
    try:
        with pytest.raises(TrackingError, match="opened for writing for a moment; run the command again"):
            train(tracker.uri, tmp_path)
        fails = False
        with suppress(TrackingError):
            train(tracker.uri, tmp_path)  # with the connection that was opened as the failure was handled
        train(tracker.uri, tmp_path)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "do_connect", open_for_reading)
    assert tracker.outbox.runs() == []


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(28, "No space left on device"), "disk is full; free space"),
        (OSError(122, "Disk quota exceeded"), "quota of this user"),
        (PermissionError(13, "Permission denied"), "give this user the right"),
        (OSError(30, "Read-only file system"), "its disk is read-only"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "give this user the right"),
        (sqlite3.OperationalError("database is locked"), "another process keeps it locked"),
        (sqlite3.OperationalError("disk I/O error"), "health of the disk"),
        (sqlite3.DatabaseError("database disk image is malformed"), "move it away"),
        (KeyError("unheard of"), "KeyError"),
    ],
)
def test_the_advice_fits_the_cause(error: Exception, advice: str) -> None:
    with pytest.raises(TrackingError, match=advice), readable_errors("sqlite:////tmp/mlflow.db"):
        raise error


def test_a_server_that_resets_a_connection_does_not_answer() -> None:
    """The reset of a connection that was kept open is an argument of urllib3's error, and no cause of it."""
    reset = ConnectionResetError(104, "Connection reset by peer")
    error = requests.ConnectionError(ProtocolError("Connection aborted.", reset))
    assert isinstance(explain("http://127.0.0.1:5000", error), UnreachableError)


def test_a_run_that_is_not_there_is_no_fault_of_the_store(tracker: Tracker) -> None:
    with pytest.raises(RefusedError, match="refuses the request: Run with id=nowhere not found"):
        tracker.log_evaluation("nowhere", {"mae": 1.0})
