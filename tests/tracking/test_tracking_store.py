"""The MLflow store: found, created once, and an error within seconds if it cannot be used."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient

from kronos_pipeline.addresses import without_password
from kronos_pipeline.config import Recipe
from kronos_pipeline.tracking.moved_folder import local_path
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import (
    EXPERIMENT,
    TrackingError,
    find_store_uri,
    is_local,
    open_store,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import sys
from pathlib import Path
from kronos_pipeline.config import Recipe
from kronos_pipeline.tracking.runs import Tracker
with Tracker(None, Path(sys.argv[1])).training_run(sys.argv[2], Recipe()) as run:
    run.on_log(1, {"train_loss": 1.0})
"""


@pytest.fixture(autouse=True)
def no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def shared_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder with a store that two processes made at once, over the start of a killed third."""
    output = tmp_path_factory.mktemp("output")
    (output / ".mlflow.db.unfinished").write_bytes(b"half a schema")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(output), name],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    complaints = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], complaints
    return output


@pytest.fixture
def output(shared_output: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder's store, in a folder for the test."""
    shutil.copy(shared_output / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def names_of_runs(folder: Path) -> set[str]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name for run in client.search_runs(experiments)}


def train(tracker: Tracker, name: str) -> None:
    with tracker.training_run(name, Recipe()):
        pass


def test_two_processes_make_one_store_together(shared_output: Path) -> None:
    assert names_of_runs(shared_output) == {"one", "two"}
    with sqlite3.connect(shared_output / "mlflow.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    experiments = [
        experiment.name for experiment in MlflowClient(find_store_uri(None, shared_output)).search_experiments()
    ]
    assert sorted(experiments) == ["Default", EXPERIMENT]
    assert not (shared_output / ".mlflow.db.unfinished").exists()


@pytest.mark.synced
def test_only_a_store_in_the_making_is_written_without_waiting_for_the_disk(tmp_path: Path) -> None:
    waits: dict[str, set[int]] = {}

    def note(connection: sqlite3.Connection, _: object) -> None:
        file = Path(connection.execute("PRAGMA database_list").fetchone()[2])
        if file.parent != tmp_path.resolve():  # files that an earlier test has left open
            return
        waits.setdefault(file.name, set()).add(connection.execute("PRAGMA synchronous").fetchone()[0])
        if file.suffix == ".unfinished":  # another thread may open it meanwhile
            sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'another.db'}").connect().close()

    sqlalchemy.event.listen(sqlalchemy.Engine, "checkin", note)
    try:
        client = open_store(find_store_uri(None, tmp_path))
        assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "checkin", note)
    off, full = 0, 2
    assert waits == {".mlflow.db.unfinished": {off}, "another.db": {full}, "mlflow.db": {full}}


def test_a_store_that_exists_is_added_to(output: Path) -> None:
    train(Tracker(None, output), "three")
    assert names_of_runs(output) == {"one", "two", "three"}


def test_an_output_folder_that_was_moved_keeps_new_artifacts_where_it_is(output: Path, shared_output: Path) -> None:
    (output / "plot.png").write_bytes(b"plot")
    tracker = Tracker(None, output)
    for name in ("three", "four"):
        with tracker.training_run(name, Recipe()) as run:
            pass
        tracker.log_evaluation(run.run_id, {}, [output / "plot.png"])
    assert len(list((output / "mlruns").rglob("plot.png"))) == 2
    assert list(shared_output.rglob("plot.png")) == []


@pytest.fixture
def with_a_file(empty_mlflow_store: Path, tmp_path: Path) -> tuple[Path, str]:
    """Return an output folder, and a run in its store with the file note.txt."""
    folder = tmp_path / "%41 folder"
    folder.mkdir()
    shutil.copy(empty_mlflow_store, folder / "mlflow.db")
    tracker = Tracker(None, folder)
    with tracker.training_run("one", Recipe()) as run:
        pass
    # Written without MLflow, which remembers for the rest of a process where the files of a run are.
    artifacts = local_path(open_store(tracker.uri).get_run(run.run_id).info.artifact_uri)
    assert artifacts == folder / "mlruns" / run.run_id / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "note.txt").write_text("note")
    return folder, run.run_id


def test_the_records_of_an_output_folder_that_was_moved_follow_its_files(
    with_a_file: tuple[Path, str], tmp_path: Path
) -> None:
    folder, run_id = with_a_file
    moved = folder.rename(tmp_path / "moved")
    folder.mkdir()  # another output folder in its place
    (tmp_path / "plot.png").write_bytes(b"plot")
    tracker = Tracker(None, moved)
    tracker.log_evaluation(run_id, {}, [tmp_path / "plot.png"])
    train(tracker, "two")

    client = open_store(tracker.uri)
    assert {experiment.name for experiment in client.search_experiments()} == {EXPERIMENT, "Default"}
    assert Path(client.download_artifacts(run_id, "note.txt", str(tmp_path))).read_text() == "note"
    assert list(folder.iterdir()) == []


def test_the_records_of_a_copied_output_folder_stay_with_the_files_of_the_original_while_they_are_there(
    with_a_file: tuple[Path, str], tmp_path: Path
) -> None:
    original, run_id = with_a_file
    uri = find_store_uri(None, shutil.copytree(original, tmp_path / "copy"))
    assert open_store(uri).get_run(run_id).info.artifact_uri.startswith(original.as_uri())
    shutil.rmtree(original)
    assert open_store(uri).get_run(run_id).info.artifact_uri.startswith((tmp_path / "copy").as_uri())


def test_a_deleted_experiment_is_restored(output: Path) -> None:
    train(Tracker(None, output), "three")
    client = MlflowClient(find_store_uri(None, output))
    (experiment_of_output,) = (experiment for experiment in client.search_experiments() if "in " in experiment.name)
    client.delete_experiment(experiment_of_output.experiment_id)
    train(Tracker(None, output), "four")
    assert "four" in names_of_runs(output)


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_store_is_named_at_once_and_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be used: .*; there is no backup of it; move it away"):
        train(Tracker(None, tmp_path), "never")
    assert time.monotonic() - start < 60
    assert (tmp_path / "mlflow.db").read_bytes() == content


def test_a_store_of_another_mlflow_version_says_how_to_upgrade(output: Path) -> None:
    with sqlite3.connect(output / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    database.close()
    with pytest.raises(
        TrackingError, match=r"made by another version of MLflow; its backup is .*; upgrade it with `mlflow db upgrade"
    ):
        train(Tracker(None, output), "never")


def test_a_server_that_is_away_is_told_within_seconds_and_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    tracker = Tracker(f"http://me:secret@127.0.0.1:{port}", tmp_path)
    start = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        train(tracker, "never")
    assert time.monotonic() - start < 60
    message = str(caught.value)
    assert f"http://127.0.0.1:{port} cannot be used" in message
    assert "Connection refused" in message
    assert "MLFLOW_TRACKING_URI" in message
    assert "secret" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_the_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be used"):
        open_store(find_store_uri(None, tmp_path))


@pytest.mark.parametrize("uri", ["nonsense://somewhere", "postgresql+nodriver://me@127.0.0.1/db"])
def test_an_address_of_no_known_kind_is_told(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"):
        train(Tracker(uri, tmp_path), "never")


@pytest.mark.parametrize("name", ["with space", "100%25", "what?x=1", "a#b", "ünï"])
def test_an_output_folder_may_be_called_anything(name: str, shared_output: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(shared_output / "mlflow.db", folder)
    (folder / "plot.png").write_bytes(b"plot")
    tracker = Tracker(None, folder)
    with tracker.training_run("three", Recipe()) as run:
        pass
    tracker.log_evaluation(run.run_id, {}, [folder / "plot.png"])
    with sqlite3.connect(folder / "mlflow.db") as database:
        names = {row[0] for row in database.execute("SELECT name FROM runs")}
    assert names == {"one", "two", "three"}
    assert len(list((folder / "mlruns").rglob("plot.png"))) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(folder)]
    assert files == [], "MLflow makes an empty folder beside some of these, and nothing in it"


def test_the_store_is_the_one_given_else_the_environments_else_the_output_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_store_uri(None, Path("out")) == f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert find_store_uri(None, Path("out")) == "http://mlflow.example"
    assert find_store_uri("sqlite:///mine.db", Path("out")) == "sqlite:///mine.db"


def test_only_a_server_keeps_the_artifacts_itself() -> None:
    local = ["sqlite:///a.db", "file:///a", "/a", "postgresql+psycopg2://host/db"]
    assert [uri for uri in [*local, "http://host", "https://host", "databricks"] if is_local(uri)] == local


@pytest.mark.parametrize(
    ("uri", "printed"),
    [
        ("https://me:secret@host:5000/x?y=1", "https://host:5000/x?y=1"),
        ("postgresql+psycopg2://me:s@cret@host/db", "postgresql+psycopg2://host/db"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_a_password_is_not_shown(uri: str, printed: str) -> None:
    assert without_password(uri) == printed
